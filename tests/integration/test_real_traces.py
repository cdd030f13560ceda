"""Real traces of real engines, where they are at hand (they are third-party data and do not ship); else skipped, and said.

The folder is given by MOETRACE_TRACES, or found as ``shared/traces`` beside the checkout.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from moetrace.attribute import attribute
from moetrace.errors import TraceError
from moetrace.hardware import load_hardware
from moetrace.op import Op
from moetrace.ops import work
from moetrace.parse import parse, summary

FOLDER = Path(os.environ.get("MOETRACE_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no real traces at {FOLDER} (set MOETRACE_TRACES)"
)


def kineto(name: str) -> Path:
    return FOLDER / f"kineto-{name}.json.gz"


@pytest.fixture(scope="module")
def gptoss():
    return parse(
        kineto("mi300x-vllm-gptoss20b-decode-b32-graph"),
        capture_trace=kineto("mi300x-vllm-gptoss20b-decode-b32-capture"),
    )


def test_vllm_graph_decode_with_its_capture(gptoss):
    facts = summary(gptoss)
    (step,) = facts["steps"]
    assert (step["phase"], step["batch"], step["kv_tokens"]) == ("decode", 32, 55086)
    assert step["span_s"] * 1e6 == pytest.approx(10743.2, abs=0.05)
    assert step["busy_s"] * 1e6 == pytest.approx(10717.7, abs=0.05)
    assert step["idle_share"] == pytest.approx(0.0024, abs=5e-5)
    experts = next(f for f in facts["families"] if f["family"] == "experts")
    assert experts["busy_s"] * 1e6 == pytest.approx(7034.6, abs=0.05)
    assert experts["share"] == pytest.approx(0.656, abs=5e-4)
    assert facts["layers"] == 24
    assert facts["coverage"]["named_share"] >= 0.95
    assert facts["coverage"]["bytes_share"] >= 0.90


def test_graph_decode_alternates_sliding_and_full_attention(gptoss):
    frame = gptoss.to_pandas(["kind", "layer", "op"])
    attention = frame[frame.kind == "attention"].sort_values("layer")
    ops = [Op.parse(str(text)) for text in attention.op]
    assert [op.get("window", 0) for op in ops] == [128, 0] * 12
    assert {op["kv"] for op in ops if op.get("window")} == {32 * 128}
    assert {op["kv"] for op in ops if not op.get("window")} == {55086}


def test_graph_decode_expert_weights(gptoss):
    down = next(Op.parse(text) for text in gptoss.codes("op")[1] if text.startswith("moe_down"))
    assert (down["hidden"], down["inter"]) == (3072, 3072)
    assert work(down).experts == pytest.approx(31.55, abs=0.005)
    assert work(down).weight_bytes / 1e6 == pytest.approx(158.2, abs=0.05)


@pytest.mark.parametrize(
    ("hidden", "rows", "time"),
    [
        ("nothing is hidden", 0.94, 0.97),  # layers by the order of kernels
        ("unified_attention", 0.94, 0.97),  # by repetition, from here on
        ("unified_attention|_matmul_ogs|reduce_segments", 0.91, 0.96),
        ("unified_attention|Cijk|wvSplit", 0.88, 0.95),
    ],
)
def test_the_model_tells_what_the_capture_tells(gptoss, tmp_path, hidden, rows, time):
    """Ops with the same kind and sizes, where the capture is not given and kernels have names that nobody knows."""
    trace = json.loads(gzip.decompress(kineto("mi300x-vllm-gptoss20b-decode-b32-graph").read_bytes()))
    names: dict[str, str] = {}
    for one in trace["traceEvents"]:
        if one.get("cat") == "kernel" and re.search(hidden, one["name"]):
            one["name"] = names.setdefault(one["name"], f"kernel_{len(names)}")
    (tmp_path / "t.json").write_text(json.dumps(trace))
    columns = ["op", "layer", "dur_ns", "graph", "kernel"]
    told = parse(tmp_path / "t.json", model="gpt-oss-20b").to_pandas(columns)
    wanted = gptoss.to_pandas(columns)
    inside = (wanted.graph >= 0).to_numpy()
    same = (told.op.astype(str) == wanted.op.astype(str)).to_numpy() & inside
    assert told.layer.fillna(-1).tolist() == wanted.layer.fillna(-1).tolist()
    assert same.sum() >= rows * inside.sum()
    assert wanted.dur_ns[same].sum() >= time * wanted.dur_ns[inside].sum()


def test_without_its_capture_the_graph_still_has_names_and_layers():
    facts = summary(parse(kineto("mi300x-vllm-gptoss20b-decode-b32-graph"), model="gpt-oss-20b"))
    assert facts["layers"] == 24
    assert facts["coverage"]["named_share"] >= 0.95
    assert facts["coverage"]["bytes_share"] >= 0.85


def test_vllm_eager_prefill_on_eight_gpus():
    run = parse(kineto("b200-tp8-vllm-gptoss120b-prefill"))
    facts = summary(run)
    (step,) = facts["steps"]
    assert step["phase"] == "prefill"
    assert step["span_s"] * 1e6 == pytest.approx(84487.2, abs=0.05)
    assert step["busy_s"] * 1e6 == pytest.approx(11596.5, abs=0.05)
    (measured,) = attribute(run, load_hardware("b200")).summary["steps"]
    assert measured["communication_s"] * 1e6 == pytest.approx(2141.5, abs=0.05)
    assert measured["exposed_communication_s"] == pytest.approx(measured["communication_s"], rel=1e-9)
    assert (run.meta.tp, facts["layers"]) == (8, 36)


def test_sglang_decode_leaves_the_stray_kernel_out():
    run = parse(kineto("mi300x-sglang-qwen3-8b-decode-b32-graph"), model="qwen3-8b")
    (step,) = summary(run)["steps"]
    assert step["span_s"] * 1e6 == pytest.approx(10450.3, abs=0.05)
    assert step["idle_share"] == pytest.approx(0.065, abs=5e-4)
    assert any("stray" in note and "463" in note for note in run.meta.notes)


REFUSED = {"cpu-only": "no kernels and no operators"}
# The least share of device time with a name. Those far below 1 hold what moetrace is not for: convolutions, training.
NAMED = {
    "2021-resnet50-v100": 0.3, "2022-sampled-rank0": 0.95, "2024-04-ns-resolution": 0.4, "nccl-args": 0.6,
    **dict.fromkeys(
        ("a100-megatron-tp8-rank0", "a100-megatron-tp8-rank1", "b200-tp8-vllm-gptoss120b-prefill",
         "h100-hf-qwen1.5-0.5b-dense", "mi250-rocm6.2", "mi300x-sglang-qwen3-8b-decode-b32-graph",
         "mi300x-vllm-gptoss20b-decode-b32-capture", "mi300x-vllm-gptoss20b-decode-b32-graph", "torch2.13-damaged-quote"),
        0.999,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("kineto-*")) if FOLDER.is_dir() else [], ids=lambda p: p.name
)
def test_every_file_parses_or_says_why_not(path):
    name = path.name.removeprefix("kineto-").removesuffix(".json.gz")
    if name in REFUSED:
        with pytest.raises(TraceError, match=REFUSED[name]) as caught:
            parse(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return
    run = parse(path)
    facts = summary(run)
    frame = run.to_pandas(["step", "kind", "weight_bytes", "layer", "dur_ns", "kernel"])
    frame = frame[frame.step.notna()]
    time = frame.dur_ns.sum()
    for share, known in (
        ("named_share", frame.kind != "other"),
        ("bytes_share", frame.weight_bytes.notna()),
        ("layer_share", frame.layer.notna()),
    ):
        assert facts["coverage"][share] == pytest.approx(frame.dur_ns[known].sum() / time)
    assert facts["coverage"]["named_share"] >= NAMED[name]
    unnamed = frame[frame.kind == "other"].groupby("kernel", observed=True).dur_ns.sum().nlargest(5)
    assert [u["share"] for u in facts["coverage"]["unnamed"]] == pytest.approx(list(unnamed / time))
    assert sum(f["share"] for f in facts["families"]) == pytest.approx(1)


def test_a_quote_that_torch_did_not_escape_costs_one_event():
    run = parse(kineto("torch2.13-damaged-quote"))
    assert (run.meta.facts["events"], run.meta.facts["damaged"]) == (2858, 1)
    assert any("1 of 2,858 events are damaged and left out" in note for note in run.meta.notes)


def test_ranks_without_a_collective_are_not_said_to_tell_who_waits(tmp_path):
    from moetrace.parse.doctor import diagnose
    from moetrace.parse.ranks import parse_ranks, ranks_of
    from moetrace.ranks import Ranks

    with ranks_of(FOLDER / "nsys-2026.2-h100-2gpu-1s.sqlite.gz") as (_, ranks):
        parse_ranks(ranks, tmp_path / "two", jobs=1)
    asked = [a["question"] for a in diagnose(Ranks.load(tmp_path / "two"))["answers"]]
    assert len(asked) > 5 and "Do ranks wait for each other?" not in asked


def test_the_steps_of_2021_are_found_though_they_were_written_as_operators():
    run = parse(kineto("2021-resnet50-v100"))
    assert len(run.meta.steps) == 6 and not any("no step annotation" in note for note in run.meta.notes)
