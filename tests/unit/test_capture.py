"""Capture-time traces: which captured graph was replayed, what its launches say of the kernels, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats import events as reading
from moetrace.parse import capture, fitting, parse
from moetrace.parse.captured import captured_in
from moetrace.parse.doctor import diagnose
from moetrace.parse.graphs import COPIED, FOREIGN, UNNAMED, captured_graphs
from moetrace.parse.rows import op_rows
from tests.made import event, write
from tests.unit.test_gather import few_names, long_way

BF = "c10::BFloat16"
KERNELS = (
    "nvjet_qkv",
    "FlashAttn",
    "nvjet_o",
    "vllm::rms_norm_kernel",
    "fused_moe_kernel",
    "fused_moe_kernel",
)


def launches(batch):
    """(operator, its input shapes, kernel) of each launch of one layer, as an engine captures it for a batch."""
    moe = ("vllm::moe_forward", [[batch, 2880], [batch, 32]], "fused_moe_kernel")
    return [
        ("aten::mm", [[batch, 2880], [2880, 5120]], "nvjet_qkv"),
        ("vllm::unified_attention", [[batch, 64, 64], [batch, 8, 64], [batch, 8, 64]], "FlashAttn"),
        ("aten::mm", [[batch, 4096], [4096, 2880]], "nvjet_o"),
        ("vllm::rms_norm", [[batch, 2880]], "vllm::rms_norm_kernel"),
        moe,
        moe,
    ]


class Captures:
    """Events of captures, one after the other."""

    def __init__(self, named=True):
        self.events, self.now, self.ids, self.named = [], 10.0, 0, named

    def host(self, name, cat, dur=1.0, **args):
        self.events.append(event(name, cat, self.now, dur, tid=1, **args))
        self.now += 0.25

    def graph(self, made, label=None):
        if label:
            self.host(label, "user_annotation", 11.0 * len(made) + 2)
        self.host("cudaStreamBeginCapture_v10000", "cuda_runtime", 0.1)
        for operator, shapes, kernel in made:
            self.ids += 1
            facts = {"External id": self.ids}
            types = {"Input Dims": shapes, "Input type": [BF] * len(shapes)}
            self.host(operator, "cpu_op", 8.0, **facts, **types)
            name = {"kernel": kernel} if self.named and kernel != "copy" else {}
            call = "cudaMemcpyAsync" if kernel == "copy" else "cudaLaunchKernel"
            self.host(call, "cuda_runtime", 0.5, correlation=self.ids, **facts, **name)
            self.now += 10
        self.host("cudaStreamEndCapture_v10000", "cuda_runtime", 0.1)
        self.now += 10
        return self


def replay(kernels=KERNELS, batch=32, steps=1, streams=(7,), annotated=True):
    events = []
    for step in range(steps):
        at, graph = 1000.0 * step, step + 1
        if annotated:
            name = f"execute_context_0(0)_generation_{batch}({batch})"
            events.append(event(name, "user_annotation", at, 500, tid=1))
        events.append(event("cudaGraphLaunch", "cuda_runtime", at + 10, 5, tid=1, correlation=graph))
        for i, kernel in enumerate(kernels):
            cat = "gpu_memcpy" if kernel.startswith("Memcpy") else "kernel"
            facts = {"stream": streams[i % len(streams)], "device": 0, "correlation": graph}
            events.append(event(kernel, cat, at + 20 + 10 * i, 9, tid=facts["stream"], pid=0, **facts))
    return events


def parsed(folder, trace, captures, **top):
    given = write(folder / "capture.json", captures.events)
    run = parse(write(folder / "trace.json", trace), capture_trace=given, model="gpt-oss-20b", **top)
    return run.to_pandas(["kernel", "kind", "op", "op_source"]), run.meta.notes


def refused(folder, trace, captures):
    with pytest.raises(TraceError) as caught:
        parsed(folder, trace, captures)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("named", [True, False], ids=["names", "no names"])
@pytest.mark.parametrize("label", ["capture_{}_FULL", "capture_{}_DECODE", None])
def test_of_several_batch_sizes_that_of_the_step_is_taken(tmp_path, named, label):
    captures = Captures(named)
    for batch in (512, 64, 32, 16):
        captures.graph(launches(batch), label and label.format(batch))
    frame, notes = parsed(tmp_path, replay(batch=32), captures)
    assert frame.op[0] == "qkv_proj bf16 m=32 n=5120 k=2880"
    assert frame.op[2] == "o_proj bf16 m=32 n=2880 k=4096"
    assert all("tokens=32" in op for op in frame.op[4:])
    assert set(frame.op_source[[0, 2, 4, 5]]) == {"capture"}
    assert "capture trace: 6 of 6 graph-replayed ops matched to their capture" in notes
    assert not any("replay(s)" in note for note in notes)


@pytest.mark.parametrize("named", [True, False], ids=["names", "no names"])
def test_a_capture_serves_a_trace_with_more_names_than_are_remembered(tmp_path, monkeypatch, named):
    captures = Captures(named)
    captures.graph(launches(32), "capture_32_FULL")
    early = [event(f"range_{i}", "user_annotation", 20 * i, 5, tid=9) for i in range(20)]
    trace = early + replay(steps=40)
    short, _ = parsed(tmp_path, trace, captures)
    long_way(monkeypatch, 20)
    few_names(monkeypatch)
    long, notes = parsed(tmp_path, trace, captures)
    assert "capture trace: 240 of 240 graph-replayed ops matched to their capture" in notes
    assert long.equals(short)


def test_a_recording_brings_its_own_capture(tmp_path):
    captures = Captures()
    captures.graph(launches(32), "capture_32_FULL")
    for name, made in (("trace", replay()), ("capture", captures.events)):
        write(tmp_path / f"{name}.json", made)
        packed = gzip.compress((tmp_path / f"{name}.json").read_bytes())
        (tmp_path / f"{name}.json.gz").write_bytes(packed)
        (tmp_path / f"{name}.json").unlink()
    (tmp_path / "recording.json").write_text('{"schema": 1}')
    named = parse(tmp_path, model="gpt-oss-20b", kv_len=100).to_pandas()
    assert set(named.op_source) == {"capture"}


def test_a_capture_that_memory_should_not_hold_is_refused(tmp_path, monkeypatch):
    captures = Captures()
    captures.graph(launches(32), "capture_32_FULL")
    made = {
        name: write(tmp_path / f"{name}.json", e) for name, e in (("t", replay()), ("c", captures.events))
    }
    plain = parse(made["t"], capture_trace=made["c"]).to_pandas()
    monkeypatch.setattr(reading, "IN_MEMORY", 0)
    monkeypatch.setattr(reading, "ROWS", 5)
    assert parse(made["t"], capture_trace=made["c"]).to_pandas(["op"]).equals(plain[["op"]])
    monkeypatch.setattr(formats, "_MOST_WHOLE", 5)
    with pytest.raises(TraceError, match=r"c\.json holds 1\d launches.*at most 5 of a capture"):
        parse(made["t"], capture_trace=made["c"])


def test_a_folder_of_captures_one_per_batch_size(tmp_path):
    """Each step finds the capture of its own size, whichever file holds it."""
    folder = tmp_path / "captures"
    folder.mkdir()
    for batch in (16, 32, 64):
        one = Captures().graph(launches(batch), f"capture_{batch}_FULL")
        write(folder / f"capture_{batch}.json", one.events)
    (folder / "notes.txt").write_text("no trace")
    for batch, rows in ((16, 16), (32, 32), (33, 64)):
        trace = write(tmp_path / f"{batch}.json", replay(batch=batch))
        frame = parse(trace, capture_trace=folder, model="gpt-oss-20b").to_pandas(["op"])
        assert frame.op[0] == f"qkv_proj bf16 m={rows} n=5120 k=2880"
    pattern = parse(trace, capture_trace=folder / "capture_*.json", model="gpt-oss-20b")
    assert pattern.column("op").to_pylist() == frame.op.tolist()


def test_of_several_ranks_captures_those_of_its_own(tmp_path):
    folder = tmp_path / "captures"
    folder.mkdir()
    for rank, width in enumerate((5120, 2560)):
        made = [("aten::mm", [[32, 2880], [2880, width]], "nvjet_qkv"), *launches(32)[1:]]
        one = Captures().graph(made, "capture_32_FULL")
        write(folder / f"rank{rank}.json", one.events, distributedInfo={"rank": rank, "world_size": 2})
    for rank, width in enumerate((5120, 2560)):
        said = {"rank": rank, "world_size": 2}
        trace = write(tmp_path / "t.json", replay(), distributedInfo=said)
        run = parse(trace, capture_trace=folder, model="gpt-oss-20b")
        assert run.column("op").to_pylist()[0] == f"qkv_proj bf16 m=32 n={width} k=2880"


def test_a_folder_without_a_trace_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    trace = write(tmp_path / "t.json", replay())
    with pytest.raises(TraceError, match="holds no trace file"):
        parse(trace, capture_trace=tmp_path / "empty")


def test_the_next_larger_graph_is_taken_for_a_step_in_between_and_said(tmp_path):
    captures = Captures()
    for batch in (64, 40, 16):
        captures.graph(launches(batch), f"capture_{batch}_FULL")
    frame, notes = parsed(tmp_path, replay(batch=33), captures)
    assert frame.op[0] == "qkv_proj bf16 m=40 n=5120 k=2880"
    assert any("33 tokens" in note and "captured for 40" in note for note in notes)
    run = parse(tmp_path / "trace.json", capture_trace=tmp_path / "capture.json", model="gpt-oss-20b")
    assert (run.meta.steps[0].tokens, run.meta.steps[0].padded_tokens) == (33, 40)
    assert any("7 of 40 rows are padding" in note for note in notes)
    (asked,) = (a for a in diagnose(run)["answers"] if "only what requests asked" in a["question"])
    assert (asked["answer"], asked["why"]) == (
        "partly",
        "1 of 1 steps ran a graph for more tokens: 18 % of its rows are padding",
    )


def test_a_step_larger_than_every_graph_gets_nothing(tmp_path):
    said = refused(tmp_path, replay(batch=65), Captures().graph(launches(64), "capture_64_FULL"))
    assert "no graph was captured for the step's 65 tokens" in said


def test_without_the_step_s_tokens_only_what_all_sizes_agree_on_is_taken(tmp_path):
    captures = Captures().graph(launches(64)).graph(launches(32))
    frame, notes = parsed(tmp_path, replay(annotated=False), captures)
    assert "capture" not in set(frame.op_source)
    assert any("2 captured graphs fit and nothing tells which" in note for note in notes)
    frame, notes = parsed(tmp_path, replay(annotated=False), Captures().graph(launches(64)))
    assert frame.op[0] == "qkv_proj bf16 m=64 n=5120 k=2880"


def test_the_same_graph_captured_twice_is_one(tmp_path):
    captures = Captures().graph(launches(32)).graph(launches(32))
    frame, notes = parsed(tmp_path, replay(), captures)
    assert frame.op[0].endswith("m=32 n=5120 k=2880")
    assert not any("nothing tells" in note for note in notes)


@pytest.mark.parametrize(
    "order",
    [("nvjet_o", "nvjet_qkv", "FlashAttn"), ("FlashAttn", "nvjet_qkv", "nvjet_o")],
)
def test_without_names_another_order_is_refused(tmp_path, order):
    captures = Captures(named=False).graph(launches(32))
    said = refused(tmp_path, replay((*order, *KERNELS[3:])), captures)
    assert "name no kernel" in said and "another order" in said
    trace = [*replay((*order, *KERNELS[3:])), *({**e, "ts": e["ts"] + 9000} for e in replay(steps=2)[8:])]
    frame, notes = parsed(tmp_path, trace, captures)  # beside a replay that fits
    assert "capture" not in set(frame.op_source[:6]) and frame.op[6].endswith("m=32 n=5120 k=2880")
    assert any(note.startswith("capture trace, 1 replay(s)") and "another order" in note for note in notes)


def test_without_names_a_replay_on_several_streams_is_refused(tmp_path):
    captures = Captures(named=False).graph(launches(32))
    assert "several streams" in refused(tmp_path, replay(streams=(7, 8)), captures)
    named, _ = parsed(tmp_path, replay(streams=(7, 8)), Captures().graph(launches(32)))
    assert (named.op_source == "capture").sum() >= 4


def test_without_names_a_few_kernels_of_another_kind_get_nothing_and_the_rest_stays(tmp_path):
    made = launches(32) * 20
    kernels = [*KERNELS * 20]
    kernels[1] = "nvjet_unlike"
    frame, notes = parsed(tmp_path, replay(kernels), Captures(named=False).graph(made))
    assert frame.op_source[1] != "capture"
    assert frame.op[6].endswith("m=32 n=5120 k=2880") or "m=32" in frame.op[6]
    assert any("119 of 120" in note for note in notes)


def test_without_names_another_number_of_launches_is_refused(tmp_path):
    captures = Captures(named=False).graph(launches(32)[1:])
    assert "no graph captured for its tokens has these kernels" in refused(tmp_path, replay(), captures)


@pytest.mark.parametrize("lost", [0, 2, 5])
def test_with_names_a_replay_that_lacks_a_kernel_keeps_the_others(tmp_path, lost):
    kernels = [k for i, k in enumerate(KERNELS) if i != lost]
    shapes = [s for i, (_, s, _) in enumerate(launches(32)) if i != lost]
    frame, notes = parsed(tmp_path, replay(kernels), Captures().graph(launches(32)))
    assert any("5 of 5" in note for note in notes)
    for op, (first, second, *_) in zip(frame.op, [(*s, None) for s in shapes], strict=True):
        if "proj" in op:
            assert op.endswith(f"m=32 n={second[1]} k={first[1]}")


def test_with_names_an_unlike_graph_is_refused(tmp_path):
    other = replay(("ArgMaxOps", "nvjet_lm_head", "FlashAttn"))
    assert "none of the 3 graph-replayed" in refused(tmp_path, other, Captures().graph(launches(32)))
    few = replay(KERNELS[:2])  # of a larger graph: a piece of it is another graph
    assert "none of the 2" in refused(tmp_path, few, Captures().graph(launches(32)))
    assert "holds no launch" in refused(tmp_path, replay(), Captures())


@pytest.mark.parametrize("named", [True, False], ids=["names", "no names"])
def test_copies_within_a_graph_are_launches_too(tmp_path, named):
    copied = ("aten::copy_", [[32], [32]], "copy")
    captures = Captures(named).graph([copied, *launches(32)])
    frame, notes = parsed(tmp_path, replay(("Memcpy DtoD (Device -> Device)", *KERNELS)), captures)
    assert any("7 of 7" in note for note in notes)
    assert frame.op[1] == "qkv_proj bf16 m=32 n=5120 k=2880"


def test_graphs_are_read_with_their_size_and_codes(tmp_path):
    made = [("aten::copy_", [[8], [8]], "copy"), *launches(8)]
    captures = Captures().graph(made, "capture_16_FULL").graph(launches(8))
    captures.events.append(event("cudaLaunchKernel", "cuda_runtime", captures.now, 1, tid=1, kernel="stray"))
    events = formats.read(write(tmp_path / "c.json", captures.events))
    first, second = captured_graphs(events, ["FlashAttn", "nvjet_o"])
    assert (first.tokens, second.tokens) == (16, 8)  # the annotation says it, else the launches' rows
    assert first.kernel.tolist() == [COPIED, FOREIGN, 0, 1, FOREIGN, FOREIGN, FOREIGN]
    assert [events.texts[c] for c in first.operator[:3]] == [
        "aten::copy_",
        "aten::mm",
        "vllm::unified_attention",
    ]
    nameless = formats.read(write(tmp_path / "n.json", Captures(named=False).graph(made).events))
    (graph,) = captured_graphs(nameless, [])
    assert not graph.named and graph.kernel.tolist() == [COPIED] + [UNNAMED] * 6


def test_a_graph_s_kernels_take_nothing_from_what_ran_around_its_launch(tmp_path):
    shapes = {"Input Dims": [[32, 2880], [2880, 5120], [201088, 2880]], "Input type": [BF] * 3}
    for around in ({"External id": 9}, {}):
        trace = replay()
        trace.append(event("Torch-Compiled Region: 0/0", "cpu_op", 5, 50, tid=1, **around, **shapes))
        launch = next(e for e in trace if e["name"] == "cudaGraphLaunch")
        launch["args"] |= around
        for e in trace:  # CUPTI's external id of a graph's kernel is that of the graph's launch
            if e["cat"] == "kernel":
                e["args"] |= around
        rows = op_rows(formats.read(write(tmp_path / "t.json", trace)))
        assert rows.operator.tolist() == [-1] * 6 and rows.tensors.tolist() == [-1] * 6
        run = parse(write(tmp_path / "t.json", trace), model="gpt-oss-20b")
        assert "shapes" not in set(run.to_pandas(["op_source"]).op_source)


def test_a_graph_s_kernel_keeps_the_operator_that_its_own_id_names(tmp_path):
    trace = replay()
    shapes = {"Input Dims": [[32, 2880], [2880, 5120]], "Input type": [BF] * 2}
    trace.append(event("aten::mm", "cpu_op", 600, 5, tid=1, **{"External id": 5}, **shapes))
    trace[2]["args"]["External id"] = 5
    events = formats.read(write(tmp_path / "t.json", trace))
    rows = op_rows(events)
    assert events.texts[rows.operator[0]] == "aten::mm" and rows.operator[1:].tolist() == [-1] * 5


def test_a_replayed_graph_without_its_capture_is_told_what_to_give(tmp_path):
    run = parse(write(tmp_path / "t.json", replay()), model="gpt-oss-20b")
    (note,) = (n for n in run.meta.notes if "--capture-trace" in n)
    known = ~np.isnan(run.numpy("weight_bytes", np.nan))
    assert note.startswith("6 kernels are replays of a graph")
    assert f"{known.mean():.0%} of their time has bytes" in note
    _, notes = parsed(tmp_path, replay(), Captures().graph(launches(32)))
    assert not any("--capture-trace" in n for n in notes)


def test_names_that_occur_in_order_are_found_whatever_lies_between():
    a, b = np.array([1, 2, 3, 9, 4, 5]), np.array([1, 2, 7, 3, 4, 5])
    assert fitting._in_order(a, b).tolist() == [0, 1, 3, -1, 4, 5]
    assert fitting._in_order(a, a).tolist() == list(range(6))
    assert fitting._in_order(a[1:], a).tolist() == [1, 2, 3, 4, 5]
    assert fitting._in_order(a, a[:0]).tolist() == [-1] * 6
    assert fitting._in_order(np.array([1, 1]), np.array([1, 1, 1])).tolist() == [0, 1]


@given(st.lists(st.integers(0, 4), max_size=40), st.randoms())
def test_a_sequence_that_lost_some_is_found_whole(names, random):
    kept = [i for i in range(len(names)) if random.random() < 0.8]
    whole, part = np.array(names, dtype=np.int64), np.array([names[i] for i in kept], dtype=np.int64)
    found = fitting._in_order(part, whole)
    assert (np.diff(found) > 0).all() and (found >= 0).all() and (whole[found] == part).all()


def test_many_graphs_and_many_replays_are_matched_once_each(tmp_path, monkeypatch):
    """Not once per replay, nor with every graph: a step of decode replays the same graph thousands of times."""
    calls: list[str] = []
    for module, name in ((capture, "solve"), (fitting, "_in_order"), (fitting, "_common")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, of=name, real=real: (calls.append(of), real(*a))[1])

    layers = 100
    captures = Captures()
    for batch in (64, 48, 40, 33, 32, 24):
        captures.graph(launches(batch) * layers, f"capture_{batch}_FULL")
    kernels = list(KERNELS * layers)
    given = write(tmp_path / "c.json", captures.events)
    events = formats.read(write(tmp_path / "t.json", replay(kernels, steps=40)))
    short = formats.read(write(tmp_path / "s.json", replay(kernels[:300] + kernels[302:], steps=1)))
    for trace, steps, expected in ((events, 40, ["solve"]), (short, 1, ["solve", "_in_order", "_common"])):
        calls.clear()
        rows = op_rows(trace)
        step = np.searchsorted(np.arange(steps) * 1000 * 1000, rows.launch - rows.launch.min(), "right") - 1
        rows.step = step.clip(0)
        captures = capture.Captures(trace, captured_in([given], trace), [32] * steps)
        captures.serve(rows)
        (note,) = captures.remarks()
        assert f"{len(rows)} of {len(rows)}" in note
        assert calls == expected
