"""The two ways in which events become columns say the same: by type, chunk by chunk, and event by event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moetrace.formats import kineto_json, kineto_rows
from moetrace.formats.events import COLUMNS, Events
from moetrace.formats.kineto_rows import Rows
from moetrace.formats.kineto_values import ns
from tests.made import event

IDS = st.integers(-3, 9) | st.integers(-(2**65), 2**65)
TIMES = st.integers(0, 2**43 * 1000 - 1).map(lambda n: n / 1000) | st.integers(-5, 2**51)
ARGS: dict[str, st.SearchStrategy[Any]] = {
    "External id": IDS, "external id": IDS, "correlation": IDS, "device": IDS, "stream": IDS, "bytes": IDS | st.just("77"),
    "kernel": st.sampled_from(["k", "nn.Module: x"]), "Collective name": st.sampled_from(["allreduce", "b"]),
    "dtype": st.sampled_from(["Half", "odd"]), "In msg nelems": IDS, "Out msg nelems": IDS, "Group size": IDS,
    "Input Dims": st.lists(st.lists(st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2), max_size=2), max_size=2),
    "Input dims": st.none() | st.just([[7]]), "Input type": st.lists(st.sampled_from(["float", "bool", ""]), max_size=2),
    "grid": st.just([1, 1, 1]),
}  # fmt: skip
EVENT = st.fixed_dictionaries(
    {
        "cat": st.sampled_from(
            ["kernel", "Kernel", "gpu_memcpy", "cuda_runtime", "cpu_op", "user_annotation", "gpu_user_annotation",
             "python_function", "ac2g", "Operator"]
        ),
        "name": st.sampled_from(["a", "b", "nn.Module: Block_1", "ProfilerStep#3", "é\"\\"]),
        "ts": TIMES,
    },
    optional={
        "ph": st.sampled_from(["X", "X", "X", "i"]), "dur": TIMES, "pid": st.sampled_from([1, "1", "x", None]),
        "tid": st.sampled_from([1, "1", "stream 7"]), "args": st.none() | st.fixed_dictionaries({}, optional=ARGS),
    },
)  # fmt: skip
ODD = st.sampled_from(
    [5, None, [], {}, {"ph": "X", "cat": "kernel"}, {"ph": "X", "cat": "kernel", "name": "k", "ts": "1.5", "dur": True},
     {"ph": "X", "cat": "cpu_op", "name": "k", "ts": 1e300, "args": [1]}, {"ph": "X", "cat": 7, "name": None}]
)  # fmt: skip


def said(rows: Rows) -> tuple[Any, ...]:
    events = rows.builder.build()
    columns = {name: getattr(events, name).tolist() for name in COLUMNS}
    return columns, events.texts, events.tensor_sets, rows.count, rows.damaged, rows.skipped


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENT.map(lambda e: {"ph": "X", **e}) | EVENT | ODD, max_size=6), st.integers(0, 6))
@example(
    [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "args": {"External id": -1, "external id": 5}}], 0
)
@example(
    [{"ph": "X", "cat": "cpu_op", "name": "k", "ts": 1, "args": {"Input Dims": None, "Input dims": [[2]]}}], 0
)
def test_all_ways_say_the_same(events: list[Any], cut: int) -> None:
    by_type, skipping, one_by_one = Rows(), Rows(), Rows()
    for part in (events[:cut], events[cut:]):
        by_type.add(json.dumps(part).encode()[1:-1])
        skipping.add(json.dumps(part).encode()[1:-1], b"}, {")
        one_by_one.add_each(json.loads(json.dumps(part)))
    assert said(by_type) == said(one_by_one) == said(skipping)


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_calls_of_python_are_counted_and_not_decoded(
    monkeypatch: pytest.MonkeyPatch, indent: int | None
) -> None:
    """Between kernels whose names look like such an event, and calls of modules, which are kept."""
    call = {"ph": "X", "cat": "python_function", "name": "f", "ts": 1, "args": {"Python id": 1}}
    trap = json.dumps(call) + "}, {" + json.dumps(call)
    kept = [{"ph": "X", "cat": "kernel", "name": trap, "ts": 1}, {**call, "name": "nn.Module: Block_1"}]
    events = [*kept, call, *kept, call, call, *kept]
    chunk = json.dumps(events, indent=indent).encode()[1:-1]
    decoded: list[bytes] = []
    plain = kineto_rows.EVENTS

    class Told:
        def decode(self, text: bytes) -> Any:
            decoded.append(text)
            return plain.decode(text)

    monkeypatch.setattr(kineto_rows, "EVENTS", Told())
    rows, step = Rows(), "\n" + " " * (indent or 0)
    rows.add(chunk, f"{step}}},{step}{{".encode() if indent else b"}, {")
    assert len(rows.builder.build().cls) == 6 and (rows.count, rows.damaged) == (9, 0)
    assert rows.skipped["python_function"] == 6 and len(json.loads(decoded[0])) == 6


def test_usual_events_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all would work, at a quarter of the speed."""
    usual: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "python"}},
        {"ph": "s", "id": 5, "pid": 1, "tid": 2, "ts": 1.5, "cat": "ac2g", "name": "ac2g"},
        {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 3.5},
        {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 1.25, "dur": 2.5,
         "args": {"External id": 3, "device": 0, "stream": 7, "correlation": 4, "grid": [1, 2, 3], "occupancy": 0.5}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "c", "pid": 0, "tid": 7, "ts": 1, "dur": 2, "args": {"bytes": "9216"}},
        {"ph": "X", "cat": "Operator", "name": "aten::mm", "pid": 5, "tid": "5", "ts": 1623142623460111, "dur": 25,
         "args": {"external id": 2, "Input Dims": [[], [[1, 2]]], "Input type": ["", "TensorList"]}},
        {"ph": "X", "cat": "python_function", "name": "f", "pid": 5, "tid": 5, "ts": 1, "dur": 2,
         "args": {"Python parent id": None, "Python id": 1}},
        {"ph": "X", "cat": "overhead", "name": "o", "pid": -1, "tid": 0, "ts": 1.5, "dur": 0.5},
    ]  # fmt: skip
    rows = Rows()
    monkeypatch.setattr(rows, "add_each", lambda events: pytest.fail("read one by one"))
    rows.add(json.dumps(usual).encode()[1:-1])
    assert (rows.count, rows.damaged) == (8, 0) and len(rows.builder.build().cls) == 3


def test_a_chunk_that_is_no_json_leaves_nothing_behind() -> None:
    rows = Rows()
    good = b'{"ph": "X", "cat": "kernel", "name": "k", "ts": 1}'
    for bad in (good + b", {", good + b",", b"{,}", good + good, b"[" * 5000):
        with pytest.raises((ValueError, RecursionError)):
            rows.add(bad)
    assert rows.count == 0
    rows.add(good)
    assert said(rows)[0]["start"] == [1000]


@given(st.integers(-(2**51) * 1000 + 1, 2**51 * 1000 - 1))
def test_digits_are_exact_to_half_a_century(value: int) -> None:
    sign, size = ("-" if value < 0 else ""), abs(value)
    assert kineto_json.digits_ns(f"{sign}{size // 1000}.{size % 1000:03d}".encode()) == value


@given(st.floats(-(2.0**43), 2.0**43))
def test_times_in_columns_and_alone_are_the_same(us: float) -> None:
    assert kineto_json.times_ns([us]).tolist() == [ns(us)]


@pytest.mark.parametrize(
    "value", [True, None, "x", [], {}, float("inf"), float("nan"), "1e999999", "nan", "-Infinity"]
)
def test_what_is_no_time(value: Any) -> None:
    assert ns(value) is None


def test_a_whole_number_of_any_size_is_a_time() -> None:
    assert ns(10**400) == 10**403


def test_shapes_are_decoded_once_per_text(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    real = kineto_rows._shapes
    monkeypatch.setattr(kineto_rows, "_shapes", lambda d, t: (calls.append(d), real(d, t))[1])
    monkeypatch.setattr(kineto_rows, "_MAX_KNOWN", 2)
    rows = Rows()
    for size in (1, 1, 2, 3, 4, 1):
        rows.add(b'{"ph":"X","cat":"cpu_op","name":"k","ts":1,"args":{"Input Dims":[[%d]]}}' % size)
    assert [bytes(c) for c in calls] == [b"[[1]]", b"[[2]]", b"[[3]]", b"[[4]]", b"[[1]]"]
    events: Events = rows.builder.build()
    assert [events.tensor_sets[i].shapes for i in events.tensors] == [((n,),) for n in (1, 1, 2, 3, 4, 1)]


def test_what_torch_marked_a_graphs_nodes_with_is_read_both_ways() -> None:
    kernels = [
        event("k", "kernel", 1, 1, tid=7, **{"graph node id": 1 << 40, "str": "moetrace.layer#3"}),
        event("k", "kernel", 2, 1, tid=7, **{"graph node id": 5, "annotation": "model.layers.4.mlp"}),
        event("k", "kernel", 3, 1, tid=7, **{"graph node id": 0, "str": "not of a graph"}),
        event("k", "kernel", 4, 1, tid=7, **{"graph node id": 6}),
    ]
    for odd in ([], [event("odd", "kernel", "5", 1, tid=7)]):
        rows = Rows()
        rows.add(json.dumps([*kernels, *odd])[1:-1].encode())
        made = rows.builder.build()
        said = [made.texts[c] if c >= 0 else None for c in made.launched[:4].tolist()]
        assert said == ["moetrace.layer#3", "model.layers.4.mlp", None, None]
