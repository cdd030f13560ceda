"""The recorder on tiny models of every supported family, built by transformers from configs of a few dims."""

from __future__ import annotations

import getpass
import gzip
import io
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import moetrace
from moetrace.errors import MoetraceError, OutputError
from moetrace.record import capture, files
from moetrace.record.recorder import Recorder
from moetrace.routing import Routing

torch = pytest.importorskip("torch", reason="needs the record extra")
transformers = pytest.importorskip("transformers", reason="needs the record extra")

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MLA = {
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
DEEPSEEK = {
    **MLA,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "intermediate_size": 24,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 16},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "intermediate_size": 16,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 8},
    "deepseek_v2": {**DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
    "deepseek_v3": {**DEEPSEEK, "q_lora_rank": 8, "n_group": 2, "topk_group": 2},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "intermediate_size": 16,
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16},
    "llama4_text": {
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "intermediate_size": 16,
        "head_dim": 8,
        "intermediate_size_mlp": 24,
        "interleave_moe_layer_step": 1,
    },
}
# Families whose router may be replaced by "the top-k of its logits": no groups, no correction bias.
PLAIN_TOPK = ("olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "gpt_oss")
STEPS = 3  # one prefill, two decode
BATCH, CONTEXT = 3, 5


def build(family: str) -> Any:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the default 0.02 gives nearly equal logits
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def olmoe() -> Any:
    return build("olmoe")


def prompt() -> Any:
    return torch.randint(1, 97, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(2))


def generate(model: Any, rec: Recorder | None = None) -> list[list[int]]:
    """Prefill and two greedy decode steps; with a recorder the same, as a user would write it."""
    cache = transformers.DynamicCache(config=model.config)
    chosen, inputs, kv_tokens = [], prompt(), BATCH * CONTEXT
    with torch.no_grad():
        for i in range(STEPS):
            phase = "decode" if i else "prefill"
            if rec is not None:
                rec.step(phase, batch=BATCH, tokens=inputs.numel(), kv_tokens=kv_tokens)
            logits = model(input_ids=inputs, past_key_values=cache).logits
            inputs = logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(inputs.flatten().tolist())
            kv_tokens += BATCH
    return chosen


def trace_of(out: Path) -> dict[str, Any]:
    with gzip.open(out / "trace.json.gz") as file:
        trace: dict[str, Any] = json.load(file)
    return trace


def annotations(out: Path) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """(names of the enclosing annotations and its own, event) of each annotation, in order."""
    events = [e for e in trace_of(out)["traceEvents"] if e.get("cat") == "user_annotation"]
    found: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    open_: list[dict[str, Any]] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        while open_ and open_[-1]["ts"] + open_[-1]["dur"] <= event["ts"]:
            open_.pop()
        open_.append(event)
        found.append((tuple(e["name"] for e in open_), event))
    return found


def hooks_on(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def facts_of(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "recording.json").read_text())
    return facts


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_changes_no_token_and_leaves_no_hook(family: str, tmp_path: Path) -> None:
    model = build(family)
    before = hooks_on(model)
    expected = generate(model)
    with moetrace.record(tmp_path / "out", model=model) as rec:
        assert generate(model, rec) == expected
    assert hooks_on(model) == before
    assert generate(model) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_annotations_nest_as_step_layer_part(family: str, tmp_path: Path) -> None:
    model = build(family)
    with moetrace.record(tmp_path / "out", model=model) as rec:
        generate(model, rec)
    paths = [names for names, _ in annotations(tmp_path / "out")]
    step = "moetrace.step#1 decode batch=3 tokens=3 kv=18"
    inside = ["/".join(names[1:]).replace("moetrace.", "") for names in paths if names[0] == step]
    dense = FAMILIES[family].get("first_k_dense_replace", 0)
    expected = ["", "part:embedding"]
    for layer in range(2):
        base = f"layer#{layer}"
        expected += [base, f"{base}/part:input_norm", f"{base}/part:attention", f"{base}/part:post_norm"]
        if layer < dense:
            expected.append(f"{base}/part:dense_mlp")
            continue
        expected += [f"{base}/part:moe", f"{base}/part:moe/part:router", f"{base}/part:moe/part:experts"]
        shared = {"qwen2_moe": 2, "deepseek_v2": 1, "deepseek_v3": 1, "llama4_text": 1}.get(family, 0)
        expected += [f"{base}/part:moe/part:shared_expert"] * shared
    expected += ["part:final_norm", "part:lm_head"]
    assert Counter(inside) == Counter(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_routing_is_what_the_experts_got(family: str, tmp_path: Path) -> None:
    model = build(family)
    got = _watch_experts(model)
    with moetrace.record(tmp_path / "out", model=model) as rec:
        generate(model, rec)
    routing = Routing.load(tmp_path / "out" / "routing.parquet")
    table = routing.table().to_pandas()
    k = FAMILIES[family]["num_experts_per_tok"]
    for (step, layer), ids in got.items():
        rows = table[(table.step == step) & (table.layer == layer)]
        assert routing.tokens(step, layer) == (BATCH * CONTEXT if step == 0 else BATCH)
        counted = rows.groupby("expert")["count"].sum().to_dict()
        assert counted == dict(Counter(ids.ravel().tolist()))
        assert sorted(rows.rank_of_choice.unique()) == list(range(1, k + 1))
        assert routing.distinct()[step, layer] == len(set(ids.ravel().tolist()))
    assert {(s, layer) for s in routing.steps for layer in routing.layers} == set(got)


def _watch_experts(model: Any) -> dict[tuple[int, int], np.ndarray]:
    """Fills with the ids [tokens, k] that each experts module is called with, by (forward, layer)."""
    got: dict[tuple[int, int], np.ndarray] = {}
    calls: Counter[int] = Counter()

    def watch(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            step, calls[layer] = calls[layer], calls[layer] + 1
            ids = [a for a in args if torch.is_tensor(a) and a.dtype == torch.int64]
            if ids:
                got[step, layer] = ids[0].numpy().copy()
            else:  # Llama-4 multiplies the tokens of each expert by its score: those of the unchosen are all zero
                rows = args[0].reshape(module.num_experts, -1, args[0].shape[-1]).abs().sum(-1)
                got[step, layer] = rows.argmax(0).numpy()[:, None]

        return hook

    for i, layer in enumerate(model.model.layers):
        block = getattr(layer, "mlp", None) or layer.feed_forward
        if hasattr(block, "experts"):
            block.experts.register_forward_pre_hook(watch(i))
    return got


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_of_choice_descend_in_the_routers_score(family: str) -> None:
    """The first column of chosen_experts has the highest score of each token's experts, and so on."""
    from moetrace.record.choice import chosen_experts
    from moetrace.record.modules import find_places
    from moetrace.record.routing_hooks import _Call, _read_router, _tensors

    model = build(family)
    router = next(p.module for p in find_places(model) if p.part == "router")
    if hasattr(router, "e_score_correction_bias"):
        torch.nn.init.normal_(router.e_score_correction_bias)
    hidden = torch.randn(40, 32)
    with torch.no_grad():
        call = _read_router(_Call(0, 0, router), _tensors(router(hidden)))
        logits = call.logits
    k = FAMILIES[family]["num_experts_per_tok"]
    ids = chosen_experts(call.logits, call.weights, call.ids, router, k)
    assert ids is not None
    assert ids.shape == (40, k)
    ids = ids.numpy()
    score = logits.sigmoid() + router.e_score_correction_bias if family == "deepseek_v3" else logits
    by_choice = np.take_along_axis(score.numpy(), ids, axis=1)
    if family != "phimoe":  # its second choice is made among logits masked by the first
        assert (np.diff(by_choice, axis=1) <= 0).all()
    if family in PLAIN_TOPK:
        recomputed = chosen_experts(logits, None, None, router, k)
        assert (recomputed.numpy() == ids).all()


def test_a_router_that_returns_logits_alone_is_recomputed(tmp_path: Path) -> None:
    model = _OldStyle()
    with moetrace.record(tmp_path / "out", model=model) as rec, torch.no_grad():
        rec.step("decode", batch=6, kv_tokens=6)
        model(torch.randn(6, 8))
    routing = Routing.load(tmp_path / "out" / "routing.parquet")
    counted = routing.table().to_pandas().groupby("expert")["count"].sum().to_dict()
    assert counted == dict(Counter(model.layers[0].mlp.used))
    assert facts_of(tmp_path / "out")["routing"]["source"] == "recomputed from router logits"
    names = [names[-1] for names, _ in annotations(tmp_path / "out")]
    assert names.count("moetrace.part:experts") == len(counted)  # each expert is a module of its own here


class _OldBlock(torch.nn.Module):
    """A MoE block as transformers had them before version 5: a linear gate and a list of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(8, 4, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.used: list[int] = []

    def forward(self, x: Any) -> Any:
        weights, ids = self.gate(x).softmax(-1).topk(2)
        self.used = ids.flatten().tolist()
        out = torch.zeros_like(x)
        for expert in set(self.used):
            token, slot = torch.where(ids == expert)
            out[token] += self.experts[expert](x[token]) * weights[token, slot, None]
        return out


class _OldStyle(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.Module()
        layer.self_attn = torch.nn.Linear(8, 8)
        layer.mlp = _OldBlock()
        layer.forward = lambda x: layer.mlp(layer.self_attn(x))
        self.layers = torch.nn.ModuleList([layer])
        self.config = SimpleNamespace(num_experts_per_tok=2, num_experts=4)

    def forward(self, x: Any) -> Any:
        return self.layers[0](x)


def test_the_model_is_found_when_it_is_not_given(olmoe: Any, tmp_path: Path) -> None:
    with moetrace.record(tmp_path / "out") as rec:
        generate(olmoe, rec)
    assert hooks_on(olmoe) == 0
    assert not torch.nn.modules.module._global_forward_pre_hooks
    facts = facts_of(tmp_path / "out")
    assert facts["model"] == "olmoe"
    assert facts["model_config"]["num_experts"] == 8
    assert Routing.load(tmp_path / "out" / "routing.parquet").steps == (0, 1, 2)


def test_metadata_says_what_ran(olmoe: Any, tmp_path: Path) -> None:
    with moetrace.record(tmp_path / "out", model=olmoe, model_name="mine", metadata={"seed": 7}) as rec:
        generate(olmoe, rec)
    facts = facts_of(tmp_path / "out")
    assert facts["schema"] == 1
    assert (facts["model"], facts["dtype"], facts["seed"], facts["ended"]) == ("mine", "fp32", 7, "complete")
    assert facts["native_layers"] == 2
    assert facts["torch"] == torch.__version__
    assert facts["device"]["type"] == "cpu"
    assert facts["device"]["threads"] == torch.get_num_threads()
    assert [(s["index"], s["phase"], s["batch"], s["tokens"], s["kv_tokens"]) for s in facts["steps"]] == [
        (0, "prefill", 3, 15, 15),
        (1, "decode", 3, 3, 18),
        (2, "decode", 3, 3, 21),
    ]
    assert facts["routing"]["source"] == "router output"
    inside = trace_of(tmp_path / "out")["moetrace"]
    assert inside == {
        k: v for k, v in facts.items() if k not in ("trace", "ended", "routing", "models_not_recorded")
    }


def test_no_host_user_path_or_environment_is_kept(
    olmoe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("SECRET_TOKEN", "hf_donotkeepme")
    olmoe.config._name_or_path = str(tmp_path / "weights")
    olmoe.config.auto_map = {"AutoModel": "evil.py"}
    with moetrace.record(tmp_path / "out", model=olmoe) as rec:
        generate(olmoe, rec)
    kept = (tmp_path / "out" / "recording.json").read_bytes() + (
        tmp_path / "out" / "routing.parquet"
    ).read_bytes()
    packed = (tmp_path / "out" / "trace.json.gz").read_bytes()
    kept += gzip.decompress(packed) + packed[:64]  # the gzip header may name a file
    host, user = socket.gethostname().encode(), getpass.getuser().encode()
    for secret in (
        b"donotkeepme",
        str(tmp_path).encode(),
        b"evil.py",
        b'"' + user + b'"',
        b'"' + host + b'"',
    ):
        assert secret not in kept


def test_recordings_do_not_nest(olmoe: Any, tmp_path: Path) -> None:
    with moetrace.record(tmp_path / "out", model=olmoe):
        with (
            pytest.raises(MoetraceError, match="do not nest"),
            moetrace.record(tmp_path / "inner", model=olmoe),
        ):
            raise AssertionError("not reached")
        olmoe(torch.ones((1, 4), dtype=torch.long))
    assert (tmp_path / "out" / "recording.json").is_file() and not (tmp_path / "inner").exists()
    with moetrace.record(tmp_path / "after", model=olmoe):
        olmoe(torch.ones((1, 4), dtype=torch.long))


def test_a_second_interrupt_waits_until_the_recording_is_written(
    olmoe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = capture.export_trace

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return exported(*given)

    monkeypatch.setattr(capture, "export_trace", interrupted)
    with pytest.raises(KeyboardInterrupt), moetrace.record(tmp_path / "out", model=olmoe):
        olmoe(torch.ones((1, 4), dtype=torch.long))
    assert json.loads((tmp_path / "out" / "recording.json").read_text())["steps"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_crash_leaves_a_valid_recording_and_no_hook(olmoe: Any, tmp_path: Path) -> None:
    def fail(_module: Any, _args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), moetrace.record(tmp_path / "out", model=olmoe) as rec:
        generate(olmoe, rec)
        handle = olmoe.model.layers[1].mlp.experts.register_forward_pre_hook(fail)
        generate(olmoe, rec)
    handle.remove()
    assert hooks_on(olmoe) == 0
    facts = facts_of(tmp_path / "out")
    assert facts["ended"] == "KeyboardInterrupt"
    assert [s["complete"] for s in facts["steps"]] == [True, True, True, False]
    names = [path[0] for path, _ in annotations(tmp_path / "out") if len(path) == 1]
    assert len(names) == 4
    assert 3 in Routing.load(tmp_path / "out" / "routing.parquet").steps
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_caught_inside_a_step_closes_its_ranges(olmoe: Any, tmp_path: Path) -> None:
    def fail(_module: Any, _args: Any) -> None:
        raise ValueError

    with moetrace.record(tmp_path / "out", model=olmoe) as rec, torch.no_grad():
        handle = olmoe.model.layers[0].mlp.experts.register_forward_pre_hook(fail)
        with rec.step("prefill", batch=BATCH, tokens=15, kv_tokens=15):
            with pytest.raises(ValueError):
                olmoe(prompt())
            handle.remove()
            olmoe(prompt())
    depths = Counter(len(path) for path, event in annotations(tmp_path / "out") if "layer#0" in event["name"])
    assert depths == {2: 2}


def test_steps_as_context_managers_and_parts_by_hand(olmoe: Any, tmp_path: Path) -> None:
    with moetrace.record(tmp_path / "out", model=olmoe) as rec, torch.no_grad():
        with rec.part("sampling"):
            pass  # outside of a step: not marked
        with rec.step("prefill", batch=BATCH, tokens=15, kv_tokens=15), rec.part("sampling"):
            torch.ones(2).argmax()
        olmoe(prompt())  # between steps: neither annotated nor routed
        with rec.step("mixed", batch=BATCH, tokens=20, kv_tokens=40):
            pass
    names = [path for path, _ in annotations(tmp_path / "out")]
    assert names == [
        ("moetrace.step#0 prefill batch=3 tokens=15 kv=15",),
        ("moetrace.step#0 prefill batch=3 tokens=15 kv=15", "moetrace.part:sampling"),
        ("moetrace.step#1 mixed batch=3 tokens=20 kv=40",),
    ]
    assert not (tmp_path / "out" / "routing.parquet").exists()
    assert facts_of(tmp_path / "out")["routing"]["source"] == "none"


def test_warm_up_steps_are_not_recorded(olmoe: Any, tmp_path: Path) -> None:
    with moetrace.record(tmp_path / "out", model=olmoe, warmup=2) as rec:
        generate(olmoe, rec)
    assert [s["kv_tokens"] for s in facts_of(tmp_path / "out")["steps"]] == [21]
    roots = {path[0] for path, _ in annotations(tmp_path / "out")}
    assert roots == {"moetrace.step#0 decode batch=3 tokens=3 kv=21"}
    assert Routing.load(tmp_path / "out" / "routing.parquet").steps == (0,)


def test_nothing_recorded_is_an_error_and_leaves_nothing(olmoe: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="1 steps ran, none of them after the 2 to leave out"),
        moetrace.record(tmp_path / "out", model=olmoe, skip=1, warmup=1),
    ):
        olmoe(prompt())
    with (
        pytest.raises(OutputError, match="no model with decoder layers ran"),
        moetrace.record(tmp_path / "out"),
    ):
        torch.nn.Linear(2, 2)(torch.ones(2))
    assert list(tmp_path.iterdir()) == []


def test_an_error_before_the_first_step_is_not_hidden(olmoe: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), moetrace.record(tmp_path / "out", model=olmoe):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_before_the_run_and_replaced_with_force(
    olmoe: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with moetrace.record(out, model=olmoe) as rec:
        generate(olmoe, rec)
    old = (out / "recording.json").read_bytes()
    with pytest.raises(OutputError, match="--force"), moetrace.record(out, model=olmoe):
        pytest.fail("the window opened")
    with pytest.raises(ZeroDivisionError), moetrace.record(out, model=olmoe, force=True):
        _ = 1 / 0
    assert (out / "recording.json").read_bytes() == old
    with moetrace.record(out, model=olmoe, force=True, model_name="again") as rec:
        generate(olmoe, rec)
    assert facts_of(out)["model"] == "again"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("entry", ["notes.txt", ".hidden", "ops.parquet"])
def test_force_replaces_nothing_but_a_recording(tmp_path: Path, entry: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "recording.json").write_text("{}")
    (out / entry).write_text("mine")
    with pytest.raises(OutputError, match="not a recording's"):
        files.check_output(out, force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="not a directory"):
        files.check_output(tmp_path / "file", force=True)


def test_a_path_that_cannot_be_written_is_refused_before_the_run(olmoe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot write"),
        moetrace.record(tmp_path / "file" / "out", model=olmoe),
    ):
        pytest.fail("the window opened")
    assert hooks_on(olmoe) == 0


def test_a_full_disk_is_one_line_and_keeps_the_old_recording(
    olmoe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with moetrace.record(out, model=olmoe) as rec:
        generate(olmoe, rec)
    old = (out / "recording.json").read_bytes()
    monkeypatch.setattr(capture, "export_trace", full)
    with (
        pytest.raises(OutputError, match="No space left"),
        moetrace.record(out, model=olmoe, force=True) as rec,
    ):
        generate(olmoe, rec)
    assert (out / "recording.json").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert hooks_on(olmoe) == 0


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "über-Kernel µ", "line\nbreak"])
def test_any_name_survives_the_trace(name: str, tmp_path: Path) -> None:
    with moetrace.record(tmp_path / "out") as rec:
        rec.step("decode", batch=1, kv_tokens=1)
        with torch.profiler.record_function(name):
            torch.ones(2) + 1
    assert facts_of(tmp_path / "out")["trace"]["valid"]
    assert name in [event["name"] for _, event in annotations(tmp_path / "out")]


def test_broken_lines_of_a_trace_are_dropped_and_counted() -> None:
    lines = [b'"traceEvents": [\n', b'{"ph":"X","name":"a"},\n', b'{"ph":"X","name":"b"c"},\n']
    lines += [
        b'{"ph":"i","name":"end"}\n',
        b"],\n",
        b'"host_name": "node17",\n',
        b'"traceName": "/home/someone/x.json"\n',
        b"}\n",
    ]
    written = io.BytesIO()
    with gzip.GzipFile(fileobj=written, mode="wb") as target:
        told = capture._copy_lines(io.BytesIO(b"{\n" + b"".join(lines)), target)
    trace = json.loads(gzip.decompress(written.getvalue()))
    assert told == {"events": 2, "dropped": 1, "kernels": 0, "valid": True}
    assert [e["name"] for e in trace["traceEvents"]] == ["a", "end"]
    assert trace["traceName"] == "trace.json.gz"
    assert trace["host_name"] == ""


def test_a_config_keeps_no_path_in_any_form() -> None:
    config = {
        "model_type": "x", "hidden_size": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "from": "~/r"},
        "layer_types": ["sliding_attention", "full_attention"], "_name_or_path": "/home/u/m", "tokenizer": "~/secret/m",
        "checkpoint": "C:\\Users\\john\\m", "lists": ["/home/john/x", "a", 5], "nested": {"at": "home/john/w"},
        "url": "file:///home/john", "hidden_act": "../john/silu", "torch_dtype": "torch.bfloat16", "/home/john": 1,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "/home/j"]},
    }  # fmt: skip
    assert capture.config_facts(config) == {
        "model_type": "x", "hidden_size": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "layer_types": ["sliding_attention", "full_attention"], "lists": [5], "nested": {}, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    }  # fmt: skip


def test_a_broken_trace_of_the_c_exporter_keeps_no_names(tmp_path: Path) -> None:
    class Old:
        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_bytes(
                b'{"host_name": "node17", "username":"jo\\"hn", "traceEvents": [{"name": "a"b"}], "traceName": "/home/john/t"}'
            )

    assert capture.export_trace(Old(), tmp_path)["valid"] is False  # type: ignore[arg-type]
    written = gzip.decompress((tmp_path / "trace.json.gz").read_bytes())
    assert not re.search(rb"node17|john|jo.*hn", written) and b'"traceEvents"' in written


@pytest.mark.parametrize("broken", [True, False])
def test_the_c_exporter_without_a_python_one(olmoe: Any, tmp_path: Path, broken: bool) -> None:
    """Older torch: whatever the C++ exporter wrote is kept, and recording.json says whether it parses."""
    body = b'{"traceEvents": [{"name": "a"b"}]}' if broken else b'{"host_name": "me", "traceEvents": []}'

    class Old:
        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_bytes(body)

    told = capture.export_trace(Old(), tmp_path)  # type: ignore[arg-type]
    written = gzip.decompress((tmp_path / "trace.json.gz").read_bytes())
    assert told["exporter"] == "c++"
    assert told["valid"] is not broken
    assert written == body if broken else b"host_name" not in written


def test_nvtx_ranges_have_the_same_names(olmoe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    open_: list[str] = []

    def push(message: str, domain: str) -> None:
        assert domain == "moetrace"
        open_.append(message)
        seen.append("/".join(open_))

    fake = SimpleNamespace(push_range=push, pop_range=lambda domain: open_.pop())
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    with moetrace.record(tmp_path / "out", model=olmoe) as rec:
        generate(olmoe, rec)
    assert open_ == []
    assert seen == ["/".join(path) for path, _ in annotations(tmp_path / "out")]
    assert facts_of(tmp_path / "out")["nvtx"]


def test_without_nvtx_it_records_all_the_same(
    olmoe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with moetrace.record(tmp_path / "out", model=olmoe) as rec:
        generate(olmoe, rec)
    assert facts_of(tmp_path / "out")["nvtx"] is False


def test_a_user_maps_modules_named_otherwise(olmoe: Any, tmp_path: Path) -> None:
    parts = {"dense_mlp": "model.layers.*.self_attn.o_proj", "lm_head": "lm_head"}
    with moetrace.record(tmp_path / "out", model=olmoe, parts=parts) as rec:
        generate(olmoe, rec)
    paths = [path[1:] for path, _ in annotations(tmp_path / "out") if path[0].startswith("moetrace.step#2")]
    assert ("moetrace.layer#1", "moetrace.part:attention", "moetrace.part:dense_mlp") in paths
    assert paths.count(("moetrace.part:lm_head",)) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": {"rooter": "*"}}, "did you mean 'router'"),
        ({"parts": {"router": "nowhere.*"}}, "no module is named 'nowhere"),
        ({"parts": {"router": "*"}, "model": None}, "needs model="),
        ({"model": torch.nn.Linear(2, 2)}, "no decoder layers"),
    ],
)
def test_bad_arguments_are_one_line(olmoe: Any, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with (
        pytest.raises(MoetraceError, match=said),
        moetrace.record(tmp_path / "out", **{"model": olmoe, **options}),
    ):
        pytest.fail("the window opened")
    assert list(tmp_path.iterdir()) == []
    assert hooks_on(olmoe) == 0


@pytest.mark.parametrize(
    ("phase", "options", "said"),
    [("decoding", {}, "did you mean 'decode'"), ("prefill", {}, "tokens= is needed")],
)
def test_bad_steps_are_one_line(tmp_path: Path, phase: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MoetraceError, match=said), moetrace.record(tmp_path / "out") as rec:
        rec.step(phase, batch=1, kv_tokens=1, **options)


def test_without_torch_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with (
        pytest.raises(MoetraceError, match=r"pip install 'moetrace\[record\]'"),
        moetrace.record(tmp_path / "out"),
    ):
        pytest.fail("the window opened")


@pytest.fixture(autouse=True)
def _no_global_hook_is_left() -> Iterator[None]:
    yield
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_hooks_are_there_only_while_the_window_records(olmoe: Any, tmp_path: Path) -> None:
    pair = 2  # on the model itself: what tells a step from its forward
    with moetrace.record(tmp_path / "out", model=olmoe, skip=1, warmup=1, active=1), torch.no_grad():
        assert hooks_on(olmoe) == pair
        olmoe(prompt())
        assert hooks_on(olmoe) == pair
        olmoe(prompt())
        assert hooks_on(olmoe) > pair
        olmoe(prompt())
        olmoe(prompt())
        assert hooks_on(olmoe) == pair
    facts = facts_of(tmp_path / "out")
    assert [len(facts[key]) for key in ("steps", "unprofiled")] == [1, 2]
    assert hooks_on(olmoe) == 0


def test_metadata_that_is_no_json_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(MoetraceError, match="cannot be written as JSON"):
        moetrace.record(tmp_path / "out", metadata={1: 2})
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_the_place_of_a_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    said = r"a str is not a model: expected the torch\.nn\.Module that runs"
    named: Any = "olmoe-1b-7b"
    with pytest.raises(MoetraceError, match=said), moetrace.record(tmp_path / "out", model=named):
        pytest.fail("the window opened")
    assert list(tmp_path.iterdir()) == []
