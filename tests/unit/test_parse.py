"""Parsing made-up but complete traces: steps, layers, roles, links; and what must not change the answer."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import TraceError
from moetrace.parse import parse, summary
from tests.made import KINDS, decode_trace, event, write


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
