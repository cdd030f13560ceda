"""Nodes of graphs: kernels of a replay get what stood around their node's making, however often it was cloned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats import nsys_graphs
from moetrace.formats.events import NODE
from moetrace.formats.nsys_file import ABSENT
from moetrace.formats.nsys_graphs import GraphNodes
from moetrace.parse import parse
from tests.made import decode_trace, event, write
from tests.made_nsys import API, KERNEL_TABLE, NVTX, call, kernel, save, span, tid
from tests.unit.test_gather import assert_same, long_way

NODES = "CUDA_GRAPH_NODE_EVENTS"
STEP = "execute_context_0(0)_generation_4(4)"


def node(start, number, origin=None, thread=1, process=1):
    return {"start": start, "end": start + 1, "eventClass": 77, "globalTid": tid(process, thread),
            "nameId": "Graph Node Creation", "graphNodeId": number, "originalGraphNodeId": origin}  # fmt: skip


def captured(layers=3, replays=4, table=NODES, **more):
    """A graph of two kernels a layer, captured from 0 on under ranges of layers, parts and operators; then its replays."""
    ranges, nodes, kernels, calls = [], [], [], []
    for layer in range(layers):
        at = 100 * layer
        ranges += [
            span(at, at + 90, f"moetrace.layer#{layer}"),
            span(at + 1, at + 40, "moetrace.part:attention"),
            span(at + 2, at + 20, "aten::mm, op_id = 3, sizes = [[4, 64], [64, 32]]"),
            span(at + 41, at + 80, "moetrace.part:router"),
            span(at + 42, at + 70, f"aten::mm, op_id = 4, sizes = [[4, 64], [64, {128 + layer}]]"),
        ]
        nodes += [node(at + 10, 10 + 2 * layer), node(at + 50, 11 + 2 * layer)]
    nodes += [node(1_000 + i, 100 + i, 10 + i) for i in range(2 * layers)]  # cudaGraphInstantiate
    nodes += [node(1_100 + i, 200 + i, 100 + i) for i in range(2 * layers)]  # and once more
    for replay in range(replays):
        begin = 10_000 + 1_000 * replay
        ranges.append(span(begin, begin + 50, STEP))
        calls.append(call(begin + 10, 7 + replay, name="cudaGraphLaunch_v10000"))
        kernels += [
            kernel(begin + 100 + 20 * i, 7 + replay, name="nvjet_tst", graphNodeId=200 + i)
            for i in range(2 * layers)
        ]
    return {KERNEL_TABLE: kernels, API: calls, NVTX: ranges, table: nodes, **more}


@pytest.mark.parametrize("table", nsys_graphs.TABLES)
def test_kernels_of_a_replay_have_layer_op_and_source_of_their_capture(table, tmp_path):
    run = parse(save(tmp_path / "t.sqlite", **captured(table=table)))
    frame = run.to_pandas()
    assert frame.step.tolist() == np.repeat(range(4), 6).tolist()
    assert frame.layer.tolist() == [0, 0, 1, 1, 2, 2] * 4
    first = ["qkv_proj bf16 m=4 n=32 k=64", "router bf16 m=4 n=128 k=64"]
    assert [str(op) for op in frame.op[:2]] == first
    assert set(frame.op_source) == set(frame.layer_source) == {"annotation"}
    assert frame.graph.notna().all()
    assert any("24 of 24 replayed ops" in note for note in run.meta.notes)


def test_a_graph_is_resolved_once_however_often_it_runs(tmp_path):
    events = formats.read(save(tmp_path / "t.sqlite", **captured(replays=40)))
    assert len(events.where(NODE)) == 6


def test_the_long_way_says_the_same(tmp_path, monkeypatch):
    path = save(tmp_path / "t.sqlite", **captured(layers=12, replays=9))
    short = parse(path)
    assert short.to_pandas().layer.tolist() == np.repeat(range(12), 2).tolist() * 9
    long_way(monkeypatch, 30)
    assert_same(parse(path), short)


def test_nodes_of_another_process_and_lost_nodes_say_nothing(tmp_path):
    tables = captured(layers=1, replays=1)
    tables[NODES] = [node(10, 200, process=2), node(50, 201, origin=999)]
    tables[API].append(call(5, 1, process=2))
    frame = parse(save(tmp_path / "t.sqlite", **tables)).to_pandas()
    assert frame.layer.isna().all() and set(frame.op_source) <= {"name", "none"}


def test_what_torch_marked_nodes_with_gives_layers(tmp_path):
    events = decode_trace()
    kernels = [e for e in events if e["cat"] == "kernel"]
    for i, e in enumerate(kernels):
        e["args"] |= {"graph node id": 5 + i, "str": f"moetrace.layer#{i // 3} moetrace.part:experts"}
    frame = parse(write(tmp_path / "t.json", [*events, event("x", "cpu_op", 0, 1, tid=9)])).to_pandas()
    assert frame.layer.tolist() == [i // 3 for i in range(len(kernels))]
    assert set(frame.layer_source) == {"annotation"}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-1, 9)), max_size=12), st.integers(0, 10))
def test_a_clone_is_followed_to_the_node_that_was_made(rows, asked):
    """Against a walk, node by node, circles and all."""
    columns = (
        np.array([(i, 0, n, o if o > 0 and o != n else ABSENT) for i, (n, o) in enumerate(rows)])
        .reshape(-1, 4)
        .T
    )
    start, thread, ids, origin = columns.astype(np.int64)
    nodes = GraphNodes(start, thread, ids, origin)
    first: dict[int, tuple[int, int]] = {}
    for at, number, of in zip(start.tolist(), ids.tolist(), origin.tolist(), strict=True):
        first.setdefault(number, (at, of))
    here, seen = asked, set()
    while here in first and first[here][1] != ABSENT and here not in seen:
        seen.add(here)
        here = first[here][1]
    made = here in first and first[here][1] == ABSENT
    (found,) = nodes.of(np.array([asked])).tolist()
    assert (found >= 0) == made
    if made:
        assert nodes.start[found] == first[here][0]


def test_more_nodes_than_any_graph_has(tmp_path, monkeypatch):
    monkeypatch.setattr(nsys_graphs, "_MOST", 5)
    with pytest.raises(TraceError, match="more than 5 graph nodes"):
        parse(save(tmp_path / "t.sqlite", **captured()))
