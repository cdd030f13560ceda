"""`moetrace record` end to end: the built-in workload on a model of a few dims, given as a config.json."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moetrace.routing import Routing
from tests.conftest import Answer

pytest.importorskip("torch", reason="needs the record extra")
pytest.importorskip("transformers", reason="needs the record extra")

Call = Callable[..., Answer]
CONFIG = {
    "model_type": "olmoe",
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 97,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "auto_map": {"AutoModelForCausalLM": "other.Code"},
}
RUN = ("--layers", "2", "--batch", "3", "--context", "6", "--steps", "2", "--threads", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-moe"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder / "config.json"


def facts_of(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "recording.json").read_text())
    return facts


def test_a_recording_of_the_built_in_workload(call: Call, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = call("record", "--model", tiny, *RUN, "--seed", "3", "-o", out, "--json")
    assert (answer.status, json.loads(answer.out)["tokens_equal"]) == (0, True)
    assert sorted(p.name for p in out.iterdir()) == ["recording.json", "routing.parquet", "trace.json.gz"]
    facts = facts_of(out)
    assert (facts["model"], facts["native_layers"], facts["native_topk"]) == ("tiny-moe", 3, 4)
    assert facts["model_config"]["num_hidden_layers"] == 2
    assert (facts["batch"], facts["context"], facts["seed"], facts["weights"]) == (3, 6, 3, "random")
    assert (facts["dtype"], facts["experts_implementation"]) == ("bf16", "grouped_mm")
    assert [(s["phase"], s["tokens"], s["kv_tokens"]) for s in facts["steps"]] == [
        ("prefill", 18, 18),
        ("decode", 3, 21),
        ("decode", 3, 24),
    ]
    assert len(facts["unprofiled_s"]) == len(facts["recorded_s"]) == 3
    trace = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))
    events = trace["traceEvents"]
    steps = [e["name"] for e in events if e["name"].startswith("moetrace.step#")]
    assert steps[-1] == "moetrace.step#2 decode batch=3 tokens=3 kv=24"
    grouped = [e["args"]["Input Dims"] for e in events if e["name"] == "aten::_grouped_mm"]
    # gate and up together, then down, in 2 layers of 3 steps
    assert [dims[1] for dims in grouped] == [[8, 32, 32], [8, 16, 32]] * 6
    routing = Routing.load(out / "routing.parquet")
    assert (routing.steps, routing.layers) == ((0, 1, 2), (0, 1))
    assert routing.tokens(0, 1) == 18


def test_the_same_seed_gives_the_same_routing_and_another_seed_another(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert call("record", "--model", tiny, *RUN, "--seed", seed, "-o", tmp_path / name).status == 0
    a, b, c = (Routing.load(tmp_path / name / "routing.parquet") for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_n_a_and_the_other_ways_to_run_the_experts(call: Call, tiny: Path, tmp_path: Path) -> None:
    for experts in ("unfused", "batched"):
        options = ("--n-a", "2", "--experts", experts, "--dtype", "fp32", "--no-prefill")
        assert call("record", "--model", tiny, *RUN, *options, "-o", tmp_path / experts).status == 0
        facts = facts_of(tmp_path / experts)
        assert (facts["model_config"]["num_experts_per_tok"], facts["native_topk"]) == (2, 4)
        assert [s["phase"] for s in facts["steps"]] == ["decode", "decode"]
        routing = Routing.load(tmp_path / experts / "routing.parquet")
        assert set(routing.table().column("rank_of_choice").to_pylist()) == {1, 2}
    eager, batched = (Routing.load(tmp_path / e / "routing.parquet") for e in ("unfused", "batched"))
    assert eager.equals(batched)


def test_experts_that_ran_one_by_one_have_their_own_rows_and_say_what_to_record_for_another_n_a(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    assert call("record", "--model", tiny, *RUN, "--experts", "unfused", "-o", out).status == 0
    assert call("parse", out, "-o", run).status == 0
    ops = pd.read_parquet(run / "ops.parquet")
    states = ops[(ops.kernel == "aten::index") & (ops.act_bytes > 2 * 2 * 18)]  # not the routing weights
    # every choice's row of 32 is read and written in bf16, in each of two layers, and nothing more
    assert states.groupby("step").act_bytes.sum().tolist() == [
        2 * 2 * 2 * 32 * 4 * tokens for tokens in (18, 3, 3)
    ]
    for knob in ("n_a=2", "n_e=4", "routing=skewed", "experts=fused"):
        refused = call("replay", run, "--hw", "h100-sxm", "--set", knob)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert (
            "moetrace record --model MODEL --layers 2 --batch 3 --context 6 --steps 2 --experts fused"
            in refused.err
        )
        assert "--hw h100-sxm --batch 3 --input-len 6 --output-len 3" in refused.err


def test_routing_at_native_n_a_recut_equals_routing_recorded_there_in_the_first_layer(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    """Later layers see other hidden states, and later steps other tokens, so only step 0 of layer 0 must agree."""
    for n_a in ("4", "2"):
        assert call("record", "--model", tiny, *RUN, "--n-a", n_a, "-o", tmp_path / n_a).status == 0
    native, cut = (Routing.load(tmp_path / n_a / "routing.parquet").table().to_pandas() for n_a in ("4", "2"))
    first = native[(native.step == 0) & (native.layer == 0) & (native.rank_of_choice <= 2)]
    second = cut[(cut.step == 0) & (cut.layer == 0)]
    order = ["expert", "rank_of_choice"]
    assert first.sort_values(order).values.tolist() == second.sort_values(order).values.tolist()


def test_token_ids_of_the_workload_reach_the_run_and_make_a_pruning_exact(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    options = ("--token-ids", "--router-extra", "4", "-o", tmp_path / "out")
    assert call("record", "--model", tiny, *RUN, *options).status == 0
    assert call("parse", tmp_path / "out", "-o", tmp_path / "run").status == 0
    tokens = pd.read_parquet(tmp_path / "run" / "routing_tokens.parquet")
    assert tokens.equals(pd.read_parquet(tmp_path / "out" / "routing_tokens.parquet"))
    assert tokens.groupby(["step", "layer"]).token.nunique().to_dict() == {
        (s, k): 18 if s == 0 else 3 for s in (0, 1, 2) for k in (0, 1)
    }
    assert tokens.rank_of_choice.max() == 8
    replayed = call("replay", tmp_path / "run", "--hw", "cpu", "--set", "n_e=6@popular", "--json")
    assert "after pruning are exact for the hidden states recorded" in replayed.out, replayed.err


def test_experts_other_than_the_models(call: Call, tiny: Path, tmp_path: Path) -> None:
    options = ("--n-e", "16", "--expert-width", "24", "--n-a", "9", "--json")
    assert call("record", "--model", tiny, *RUN, *options, "-o", tmp_path / "out").status == 0
    facts = facts_of(tmp_path / "out")
    config = facts["model_config"]
    assert (config["num_experts"], config["num_experts_per_tok"], config["intermediate_size"]) == (16, 9, 24)
    assert (facts["native_topk"], facts["native_experts"]) == (4, 8)
    assert Routing.load(tmp_path / "out" / "routing.parquet").experts == 16


@pytest.mark.parametrize("how", ["uniform", "power_law:1.5"])
def test_recorded_counts_are_those_of_the_prescribed_distribution(
    call: Call, tiny: Path, tmp_path: Path, how: str
) -> None:
    from moetrace.record.forced import Prescribed

    answer = call("record", "--model", tiny, *RUN, "--routing", how, "-o", tmp_path / "out", "--json")
    assert (answer.status, json.loads(answer.out)["routing_taken"]) == (0, 1.0)
    facts = facts_of(tmp_path / "out")
    assert (facts["routing_prescribed"], facts["routing_taken"]) == (how, 1.0)
    routing, asked = Routing.load(tmp_path / "out" / "routing.parquet"), Prescribed(how, 8, 4, 0)
    for step, of_its_phase, tokens in ((0, 0, 18), (1, 0, 3), (2, 1, 3)):
        for layer in (0, 1):
            ids = asked.ids(of_its_phase, layer, tokens)
            for rank in range(4):
                here = (
                    (routing.step == step) & (routing.layer == layer) & (routing.rank_of_choice == rank + 1)
                )
                recorded = np.bincount(routing.expert[here], routing.count[here], 8)
                assert recorded.tolist() == np.bincount(ids[:, rank], minlength=8).tolist()


def test_a_recorded_distribution_is_recorded_again(call: Call, tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("record", "--model", tiny, *RUN, "--routing", "power_law:2", "-o", first).status == 0
    again = ("--routing", f"recorded:{first}", "--seed", "9")
    assert call("record", "--model", tiny, *RUN, *again, "-o", second).status == 0
    one, two = (Routing.load(out / "routing.parquet") for out in (first, second))
    assert (one.distinct(), one.load_skew()) == (two.distinct(), two.load_skew())
    assert not one.equals(two)  # who gets which expert is dealt anew
    assert facts_of(second)["routing_prescribed"] == "recorded:file"  # no path of this machine


def test_a_replayed_graph_is_recorded_with_its_capture_and_its_routing(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the CUDA graph that calls the step again, in which the routers' hooks do not act."""
    from moetrace.record import workload
    from moetrace.record.recorder import Recorder
    from tests.unit.test_loop import StandIn

    class Replayed(StandIn):
        def replay(self) -> None:
            with monkeypatch.context() as replaying:
                replaying.setattr(Recorder, "_recorded", lambda _: None)
                self._run()

    plain, graph = tmp_path / "plain", tmp_path / "graph"
    assert call("record", "--model", tiny, *RUN, "-o", plain).status == 0
    monkeypatch.setattr(workload, "CudaGraph", Replayed)
    monkeypatch.setattr(workload, "_has_graphs", lambda _: True)
    assert call("record", "--model", tiny, *RUN, "--graph", "-o", graph).status == 0
    assert sorted(p.name for p in graph.iterdir())[0] == "capture.json.gz"
    events = json.loads(gzip.decompress((graph / "capture.json.gz").read_bytes()))["traceEvents"]
    assert "capture_3_FULL" in {e["name"] for e in events}
    one, two = (Routing.load(out / "routing.parquet") for out in (plain, graph))
    assert one.equals(two)
    facts = facts_of(graph)
    assert (facts["graph"], facts["graph_mode"], facts["tokens_equal"]) == (True, "cuda graph", True)
    assert len(facts["steps"]) == 3


def test_given_weights_are_the_ones_that_run(call: Call, tiny: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(11)
    config = {k: v for k, v in CONFIG.items() if k != "auto_map"}
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "config.json").unlink()  # the architecture is what --model says
    common = ("--model", tiny, *RUN, "--dtype", "fp32")
    for name, seed in (("a", "0"), ("b", "1")):
        given = ("--weights", tmp_path / "weights", "--seed", seed)
        assert call("record", *common, *given, "-o", tmp_path / name).status == 0
    assert facts_of(tmp_path / "a")["weights"] == "given"
    prompt = torch.randint(0, 97, (3, 6), generator=torch.Generator().manual_seed(1))
    hooked: list[Any] = []
    made.model.layers[0].mlp.gate.register_forward_hook(lambda _m, _a, out: hooked.append(out[2]))
    made.eval()(prompt)
    routing = Routing.load(tmp_path / "b" / "routing.parquet")
    here = (routing.step == 0) & (routing.layer == 0)
    counted = np.bincount(routing.expert[here], routing.count[here], 8)
    assert counted.tolist() == np.bincount(hooked[0].ravel().numpy(), minlength=8).tolist()
    wider, deeper = tmp_path / "wider.json", tmp_path / "deeper.json"
    wider.write_text(json.dumps({**CONFIG, "intermediate_size": 24}))
    deeper.write_text(json.dumps({**CONFIG, "num_hidden_layers": 4}))
    for options, said in (
        (("--n-a", "9"), "8 experts"),
        (("--n-e", "9"), "own --n-e"),
        (("--model", wider), "not the weights of this model"),
        (("--model", deeper, "--layers", "4"), "not the weights of this model"),
        (("--weights", tmp_path), "no *.safetensors"),
    ):
        answer = call("record", *common, "--weights", tmp_path / "weights", *options, "-o", tmp_path / "no")
        assert (answer.status, len(answer.error_lines)) == (2, 1)
        assert said in answer.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--layers", "4"), "1 to 3"),
        (("--n-e", "3"), "1 to the 3 experts"),
        (("--routing", "skewed"), "power_law:ALPHA"),
        (("--graph", "--device", "cpu"), "CUDA"),
        (("--graph", "--experts", "unfused"), "--experts fused"),
        (("--n-a", "9"), "8 experts"),
        (("--model", "olmoe-1b-7c"), "olmoe-1b-7b"),
        (("--device", "cuda"), "no CUDA device"),
        (("--batch", "0"), "--batch"),
        (("--dtype", "fp8"), "fp8"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(
    call: Call,
    tiny: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = call("record", "--model", tiny, *RUN, *options, "-o", tmp_path / "out")
    assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert said in answer.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_without_force(call: Call, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for force in ((), ("--force",)):
        answer = call("record", "--model", tiny, *RUN, *force, "-o", tmp_path / "out")
        assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_architecture_that_transformers_lacks_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mixtral_of_tomorrow"}))
    answer = call("record", "--model", tmp_path / "config.json", *RUN, "-o", tmp_path / "out")
    assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert "mixtral_of_tomorrow" in answer.err


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_record_extra_the_message_says_what_to_install(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    answer = call("record", "--model", tiny, *RUN, "-o", tmp_path / "out")
    assert (answer.status, len(answer.error_lines)) == (2, 1)
    assert "pip install 'moetrace[record]'" in answer.err


def test_the_shipped_recordings_hold_together(shipped: Path) -> None:
    """Every recording in traces/ is complete, says the right steps, and counts the experts that the trace ran."""
    recordings = sorted(p.parent for p in shipped.parent.glob("*/recording.json"))
    assert shipped in recordings
    for recording in recordings:
        facts = facts_of(recording)
        assert (facts["ended"], facts["tokens_equal"], facts["weights"]) == ("complete", True, "random")
        events = json.loads(gzip.decompress((recording / "trace.json.gz").read_bytes()))["traceEvents"]
        named = [e["name"] for e in events if e["name"].startswith("moetrace.step#")]
        assert len(named) == len(facts["steps"])
        routing = Routing.load(recording / "routing.parquet")
        ran = _experts_run(events)
        for (step, _layer), distinct in sorted(routing.distinct().items()):
            assert ran[step].pop(0) == distinct
        assert not any(ran.values())


def _experts_run(events: list[dict[str, Any]]) -> dict[int, list[int]]:
    """For each step, how many experts with rows the GEMMs of each gate-and-up grouped GEMM had, in order."""
    spans = {
        kind: [e for e in events if e["name"].startswith(kind)]
        for kind in ("moetrace.step#", "aten::_grouped_mm")
    }
    gemms = [e for e in events if e["name"] == "aten::mm" and e["args"]["Input Dims"][0][0] > 0]
    found: dict[int, list[int]] = {}
    for step in spans["moetrace.step#"]:
        inside = sorted((e for e in spans["aten::_grouped_mm"] if _within(e, step)), key=lambda e: e["ts"])
        number = int(step["name"].split()[0].partition("#")[2])
        found[number] = [sum(_within(g, e) for g in gemms) for e in inside[::2]]
    return found


def _within(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    begin, end = outer["ts"], outer["ts"] + outer["dur"]
    return bool(begin <= inner["ts"] and inner["ts"] + inner["dur"] <= end)
