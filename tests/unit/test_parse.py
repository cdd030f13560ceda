"""Parsing made-up but complete traces: steps, layers, roles, links; and what must not change the answer."""

from __future__ import annotations

import gzip
import json
import random
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.attribute import attribute
from moetrace.errors import ModelError, TraceError
from moetrace.parse import parse, summary
from tests.conftest import REPO
from tests.made import KINDS, decode_trace, event, write

RECORDING = REPO / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu" / "trace.json.gz"


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_names_layers_and_roles_come_from_the_order_of_kernels(tmp_path, graph):
    run = parse(write(tmp_path / "t.json", decode_trace(graph=graph)), model="qwen3-30b-a3b", kv_len=100)
    frame = run.to_pandas()
    assert [s.phase for s in run.meta.steps] == ["decode", "decode"]
    for step in (0, 1):
        for layer in range(3):
            here = frame[(frame.step == step) & (frame.layer == layer)]
            assert list(here.kind) == KINDS
        tail = frame[(frame.step == step) & frame.layer.isna()]
        assert list(tail.kind) == ["norm", "lm_head", "sampling"]
    assert (frame.graph.notna() == graph).all()
    assert summary(run)["coverage"]["bytes_share"] == 1.0


def test_facts_of_the_step_reach_the_ops(tmp_path):
    run = parse(write(tmp_path / "t.json", decode_trace(batch=4)), model="qwen3-30b-a3b", kv_len=100)
    ops = dict.fromkeys(run.codes("op")[1])
    assert "attention bf16 batch=4 heads=32 kv_heads=4 head_dim=128 kv=400" in ops
    assert "moe_gate_up bf16 tokens=4 hidden=2048 inter=768 experts=128 topk=8" in ops


def test_without_a_model_names_and_layers_are_found_and_bytes_are_not(tmp_path):
    run = parse(write(tmp_path / "t.json", decode_trace()))
    facts = summary(run)
    assert facts["coverage"]["named_share"] == 1.0
    assert facts["layers"] == 3
    assert facts["coverage"]["bytes_share"] < 0.1
    assert any("--model" in note for note in facts["notes"])


def test_busy_is_a_union_not_a_sum(tmp_path):
    events = [
        event("k1", "kernel", 10, 10, tid=1, pid=0, stream=1, device=0),
        event("k2", "kernel", 15, 10, tid=2, pid=0, stream=2, device=0),
    ]
    (step,) = summary(parse(write(tmp_path / "t.json", events)))["steps"]
    assert step["busy_s"] == pytest.approx(15e-6)
    assert step["span_s"] == pytest.approx(15e-6)


def test_a_rate_is_of_the_time_whose_bytes_are_known(tmp_path):
    run = parse(write(tmp_path / "t.json", decode_trace()), model="qwen3-30b-a3b")  # attention: no KV length
    families = {f["family"]: f for f in summary(run)["families"]}
    explained = {f["family"]: f for f in attribute(run, "h100-sxm").summary["families"]}
    frame = run.to_pandas(["family", "dur_ns", "weight_bytes", "kv_bytes", "act_bytes"])
    attention = frame[frame.family == "attention"]
    known = attention[attention.weight_bytes.notna()]
    assert 0 < len(known) < len(attention)
    moved = known[["weight_bytes", "kv_bytes", "act_bytes"]].to_numpy().sum()
    told = families["attention"]
    assert told["bytes_per_s"] == pytest.approx(moved / (known.dur_ns.sum() / 1e9))
    assert told["bytes_share"] == pytest.approx(known.dur_ns.sum() / attention.dur_ns.sum())
    for name, family in families.items():
        assert family["bytes_per_s"] == pytest.approx(explained[name]["bytes_per_s"])
    blind = next(f for f in summary(parse(tmp_path / "t.json"))["families"] if f["family"] == "experts")
    assert (blind["bytes"], blind["flops"], blind["bytes_per_s"], blind["bytes_share"]) == (
        None,
        None,
        None,
        0,
    )


def test_what_the_user_says_against_the_trace_is_said(tmp_path):
    name = "moetrace.step#0 decode batch=4 tokens=4 kv=80"
    events = [dict(e, name=name) if e["name"].startswith("execute_") else e for e in decode_trace(steps=1)]
    device = {"id": 0, "name": "NVIDIA H100 80GB HBM3"}
    trace = write(tmp_path / "t.json", events, deviceProperties=[device])
    plain = parse(trace, model="qwen3-30b-a3b")
    assert plain.meta.hardware == "h100-sxm" and plain.meta.steps[0].kv_tokens == 80
    against = parse(trace, model="qwen3-30b-a3b", kv_len=100, hardware="b200")
    new = set(against.meta.notes) - set(plain.meta.notes)
    assert sorted(new) == [
        "the given KV length, 100 per sequence, is not used here: the trace itself says 80 KV tokens for 4 sequences",
        "the trace says that it ran on h100-sxm: b200 was given and is taken instead",
    ]
    agreeing = parse(trace, model="qwen3-30b-a3b", kv_len=20, hardware="h100-sxm")
    assert agreeing.meta.notes == plain.meta.notes
    lost = parse(write(tmp_path / "u.json", [e for e in events if e["name"] != name]), kv_len=20)
    assert any("no decode step with its number of sequences" in note for note in lost.meta.notes)


def columns(run, *, shift=0):
    frame = run.to_pandas(["step", "phase", "layer", "kind", "op", "kernel", "start_ns", "dur_ns"])
    frame["start_ns"] -= shift
    return frame.reset_index(drop=True)


@settings(max_examples=15, deadline=None)
@given(shift=st.integers(-900, 10**9), graph=st.booleans())
def test_a_time_shift_changes_nothing(tmp_path_factory, shift, graph):
    folder = tmp_path_factory.mktemp("shift")
    events = decode_trace(layers=2, graph=graph)
    plain = parse(write(folder / "a.json", events), model="qwen3-30b-a3b", kv_len=9)
    moved = [{**e, "ts": e["ts"] + shift} for e in events]
    shifted = parse(write(folder / "b.json", moved), model="qwen3-30b-a3b", kv_len=9)
    assert columns(plain).equals(columns(shifted, shift=shift * 1000))


@settings(max_examples=6, deadline=None)
@given(shift=st.integers(-(10**18), 10**17), base=st.booleans())
def test_a_shift_by_any_ns_changes_nothing_of_a_recording(tmp_path_factory, shift, base):
    """Nor of its attribution: of the base that all times count from, or of each time, written with three decimals."""
    folder = tmp_path_factory.mktemp("shift")
    document = json.loads(gzip.decompress(RECORDING.read_bytes()))
    if base:
        document["baseTimeNanoseconds"] = document.get("baseTimeNanoseconds", 0) + shift
    for e in document["traceEvents"] if not base else ():
        if "ts" in e:
            at = int(Decimal(repr(e["ts"])) * 1000) + shift  # as it is written
            e["ts"] = f"@{'-' * (at < 0)}{abs(at) // 1000}.{abs(at) % 1000:03d}@"
    moved_to = folder / "trace.json"
    moved_to.write_text(json.dumps(document).replace('"@', "").replace('@"', ""))
    alone = folder / RECORDING.name  # away from its routing
    alone.write_bytes(RECORDING.read_bytes())
    plain, moved = parse(alone), parse(moved_to)
    one, other = plain.to_pandas(), moved.to_pandas()
    other["start_ns"] -= shift
    assert one.equals(other) and plain.meta.notes == moved.meta.notes
    a, b = (attribute(run, "h100-sxm").summary for run in (plain, moved))
    assert all(
        a[part] == b[part] for part in ("steps", "families", "phases", "layers", "halving", "coverage")
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), graph=st.booleans())
def test_the_order_of_events_in_the_file_changes_nothing(tmp_path_factory, seed, graph):
    folder = tmp_path_factory.mktemp("order")
    events = decode_trace(layers=2, graph=graph)
    plain = parse(write(folder / "a.json", events), model="qwen3-30b-a3b", kv_len=9)
    mixed = events[:]
    random.Random(seed).shuffle(mixed)
    assert columns(plain).equals(
        columns(parse(write(folder / "b.json", mixed), model="qwen3-30b-a3b", kv_len=9))
    )


def test_a_stray_kernel_is_left_out_of_its_step_and_said(tmp_path):
    events = decode_trace(layers=1, steps=1)
    late = [{**e, "ts": e["ts"] + 50_000} if e["cat"] == "kernel" else e for e in events]
    first = next(i for i, e in enumerate(late) if e["cat"] == "kernel")
    late[first] = events[first]
    run = parse(write(tmp_path / "t.json", late))
    assert any("stray" in note for note in run.meta.notes)
    assert run.numpy("step").tolist().count(-1) == 1


def test_nothing_to_parse_is_one_line(tmp_path):
    with pytest.raises(TraceError, match="no kernels and no operators"):
        parse(write(tmp_path / "t.json", []))


def test_the_record_of_an_op_is_its_work_over_its_time(tmp_path):
    frame = parse(write(tmp_path / "t.json", decode_trace()), model="qwen3-30b-a3b", kv_len=100).to_pandas()
    moved = frame.weight_bytes + frame.kv_bytes + frame.act_bytes
    assert np.allclose(frame.bytes_per_s, moved / (frame.dur_ns / 1e9))
    assert np.allclose(frame.flop_per_s, frame.flops / (frame.dur_ns / 1e9))
    assert np.allclose(frame.intensity.dropna(), (frame.flops / moved)[frame.intensity.notna()])


def test_a_model_that_did_not_run_is_refused_or_noted(tmp_path):
    """Norm inputs show the hidden size; kernel names alone show that there are experts."""
    norm = [
        event("_C::rms_norm", "cpu_op", 1, 2, tid=9, **{"External id": 5, "Input Dims": [[4, 2048], [2048]]})
    ]
    kernel = [
        event("rms_norm_kernel", "kernel", 5, 2, tid=3, pid=0, stream=3, device=0, **{"External id": 5})
    ]
    file = write(tmp_path / "t.json", norm + kernel)
    assert parse(file, model="qwen3-30b-a3b").meta.model.hidden == 2048
    with pytest.raises(ModelError, match=r"llama-3.1-8b is not what ran: the trace shows hidden 2048"):
        parse(file, model="llama-3.1-8b")
    notes = parse(write(tmp_path / "moe.json", decode_trace()), model="llama-3.1-8b").meta.notes
    assert any("is dense, and the trace has expert kernels" in note for note in notes)


def test_a_recording_is_the_same_run_by_its_trace_and_by_its_folder(tmp_path):
    by_file, by_folder = parse(RECORDING), parse(RECORDING.parent)
    assert by_file.table().equals(by_folder.table()) and by_file.meta == by_folder.meta
    assert by_file.routing is not None
    alone = tmp_path / RECORDING.name
    alone.write_bytes(RECORDING.read_bytes())
    assert parse(alone).routing is None


def test_operators_that_the_system_kept_waiting_stay_in_their_step(tmp_path):
    """A process that is off the CPU for 30 ms in the middle of a step: on a GPU what comes so late is taken for a stray."""
    events = []
    for step, wait in enumerate((0, 0, 30_000, 0)):
        begin = 1_000_000 * step
        events.append(
            event(
                f"moetrace.step#{step} decode batch=4 tokens=4 kv=40",
                "user_annotation",
                begin,
                900 + wait,
                tid=7,
            )
        )
        for i in range(20):
            at = begin + 10 + 20 * i + (wait if i == 19 else 0)
            dims = {"Input Dims": [[4, 64], [64, 64]], "Input type": ["float", "float"]}
            events.append(
                event("aten::mm", "cpu_op", at, 12, tid=7, **{"External id": 100 * step + i + 1, **dims})
            )
    run = parse(write(tmp_path / "t.json", events))
    assert np.bincount(run.numpy("step").astype(int)).tolist() == [20] * 4
    assert not any("stray" in note for note in run.meta.notes)
    spans = [step.end_ns - step.start_ns for step in run.meta.steps]
    assert spans[2] > 30_000_000 > max(spans[0], spans[1], spans[3])
