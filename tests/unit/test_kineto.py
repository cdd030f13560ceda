"""Kineto traces: every dialect since 2021, the damage that real files have, and files that are no trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats import kineto, kineto_values
from moetrace.formats.events import (
    DEVICE_RANGE,
    KERNEL,
    LAUNCH,
    MEMCPY,
    MEMSET,
    MODULE,
    OPERATOR,
    RANGE,
    Events,
    Tensors,
)

BASE = 1_775_078_550_000_000_000
BIG = 2**53 + 1  # the first whole number that a float cannot hold


def event(cat: str = "kernel", name: str = "k", ts: Any = 10, dur: Any = 5, **fields: Any) -> dict[str, Any]:
    args = {k: v for k, v in fields.items() if k not in ("pid", "tid", "ph")}
    place = {"ph": "X", "pid": 0, "tid": 7, **{k: v for k, v in fields.items() if k in ("pid", "tid", "ph")}}
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": args, **place}


def read(folder: Path, content: Any, name: str = "trace.json") -> Events:
    file = folder / name
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return kineto.read(file)


def test_absolute_whole_microseconds(tmp_path: Path) -> None:
    events = read(tmp_path, {"traceEvents": [event(ts=1_650_000_000_000_001, dur=7)]})
    assert (events.start.tolist(), events.dur.tolist()) == ([1_650_000_000_000_001_000], [7000])


@pytest.mark.parametrize(
    ("text", "ns"), [("001.251", 1251), ("001.2", 1200), ("001.000", 1000), ("001.9999", 2000)]
)
def test_absolute_microseconds_with_decimals_are_read_digit_by_digit(
    tmp_path: Path, text: str, ns: int
) -> None:
    # A time beyond what a float holds.
    data = json.dumps([event(ts=-77, dur=0.5)]).replace("-77", f"1650000000000{text}")
    events = read(tmp_path, data.encode())
    assert (events.start.tolist(), events.dur.tolist()) == ([1_650_000_000_000_000_000 + ns], [500])


@pytest.mark.parametrize(
    ("odd", "damaged"),
    [
        (b'{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "args": {"bandwidth": Infinity}}', 0),
        (b'{"ph": "X", "cat": "kernel", "name": "k", "ts": "1", "args": {"bytes": 12345678901234.0}}', 0),
        (b'{"ph": "X", "cat": "kernel", "name": "a "quoted" name", "ts": 1}', 1),
        (b'{"ph": "X", "cat": "kernel", "name": "k", "ts": 1e300}', 1),
    ],
)
def test_long_times_stay_exact_beside_an_odd_event(tmp_path: Path, odd: bytes, damaged: int) -> None:
    """Events that are read one by one have their times digit by digit too, written as a number or as text."""
    one = b'{"ph": "X", "cat": "kernel", "name": "k", "ts": 1712345678901234.567, "dur": 1.5}'
    text = one.replace(b"1712345678901234.567", b'"1712345678901234.568"')
    events = read(tmp_path, b'{"traceEvents": [' + b", ".join([one, odd, text, one]) + b"]}")
    start = 1_712_345_678_901_234_567
    assert [t for t in events.start.tolist() if t > 1000] == [start, start + 1, start]
    assert events.counts["damaged"] == damaged


def test_relative_float_microseconds_and_a_base(tmp_path: Path) -> None:
    rows = [event(ts=3_512_345_678_901.123, dur=1.001), event(ts=-0.5, dur=0)]
    for unit in ("ms", "ns"):  # a hint to viewers: it scales nothing
        top = {"traceEvents": rows, "baseTimeNanoseconds": BASE, "displayTimeUnit": unit}
        events = read(tmp_path, top)
        assert events.start.tolist() == [BASE + 3_512_345_678_901_123, BASE - 500]
        assert events.dur.tolist() == [1001, 0]


@given(st.integers(0, 2**43 * 1000 - 1))
def test_microseconds_with_three_decimals_are_exact(ns: int) -> None:
    assert kineto_values.ns(float(f"{ns // 1000}.{ns % 1000:03d}")) == ns
    assert kineto_values.ns(f"{ns // 1000}.{ns % 1000:03d}") == ns  # as text, as one vendor writes it


def test_names_of_2021(tmp_path: Path) -> None:
    rows = [
        event("Operator", "aten::mm", tid="25738", **{"external id": 9, "Input dims": [[2, 3]]}),
        event("Runtime", "cudaLaunchKernel", tid="25738", correlation=4, **{"external id": 9}),
        event("Kernel", "volta_sgemm", tid="stream 7", correlation=4, stream=7, device=1),
        event("Memcpy", "Memcpy HtoD", stream=7, bytes=64),
        event("Memset", "Memset", stream=7, bytes=32),
        event("async", "launch", ph="s"),
        {"ph": "i", "name": "[memory]", "ts": 1},
        {"ph": "C", "name": "counter", "ts": 1},
    ]
    events = read(tmp_path, rows)  # a bare list of events, too
    assert events.cls.tolist() == [OPERATOR, LAUNCH, KERNEL, MEMCPY, MEMSET]
    assert events.external.tolist()[:2] == [9, 9] and events.correlation.tolist()[1:3] == [4, 4]
    assert events.lane[0] == events.lane[1] and events.lane[2] == 7 and events.device[2] == 1
    assert events.tensor_sets == [Tensors(((2, 3),), ("",))]
    assert events.counts == {"events": 8, "damaged": 0}


def test_the_steps_of_2021_are_ranges(tmp_path: Path) -> None:
    step, op = event("Operator", "ProfilerStep#5", tid="7"), event("Operator", "aten::mm", tid="7")
    assert read(tmp_path, [step, op]).cls.tolist() == [RANGE, OPERATOR]
    assert read(tmp_path, [{**step, "ts": "1.5"}, op]).cls.tolist() == [RANGE, OPERATOR]  # one by one


def test_names_of_today_and_what_is_not_read(tmp_path: Path) -> None:
    kept = {
        "kernel": KERNEL, "gpu_memcpy": MEMCPY, "gpu_memset": MEMSET, "cuda_runtime": LAUNCH, "cuda_driver": LAUNCH,
        "cpu_op": OPERATOR, "user_annotation": RANGE, "gpu_user_annotation": DEVICE_RANGE,
    }  # fmt: skip
    left = ("ac2g", "fwdbwd", "overhead", "Trace", "python_function", "cpu_instant_event", "cuda_sync", "")
    rows = [event(cat) for cat in (*kept, *left)] + [event("python_function", "nn.Module: Router_0")]
    events = read(tmp_path, {"traceEvents": rows})
    assert events.cls.tolist() == [*kept.values(), MODULE]
    assert events.counts == {
        "events": len(rows), "damaged": 0, "python_calls": 2, "profiler_overheads": 1,
    }  # fmt: skip


def test_threads_are_told_apart_whatever_their_ids_are(tmp_path: Path) -> None:
    ids: list[tuple[Any, Any]] = [
        (1, 2),
        (1, "2"),
        ("1", 2),
        (2, 1),
        ("", ""),
        (None, None),
        (12, ""),
        (1, "2"),
    ]
    events = read(tmp_path, {"traceEvents": [event("cpu_op", "aten::mm", pid=p, tid=t) for p, t in ids]})
    lanes = events.lane.tolist()
    assert lanes[0] == lanes[1] == lanes[2] == lanes[7]
    assert len(set(lanes)) == 5


def test_numbers_as_text_and_bigger_than_a_float_holds(tmp_path: Path) -> None:
    rows = [
        event(
            "gpu_memcpy",
            "Memcpy DtoD",
            ts="10.5",
            dur="2",
            bytes="9216",
            correlation=BIG,
            device="1",
            stream="3",
        ),
        event("cpu_op", "aten::mm", **{"External id": BIG}),
        event("cpu_op", "aten::mm", **{"External id": 2**63}),  # no id of 64 bits
        event("cpu_op", "aten::mm", **{"External id": "²"}),
    ]
    events = read(tmp_path, {"traceEvents": rows, "baseTimeNanoseconds": str(BASE)})
    assert events.start[0] == BASE + 10_500 and events.dur[0] == 2000
    assert (events.nbytes[0], events.correlation[0], events.device[0], events.lane[0]) == (9216, BIG, 1, 3)
    assert events.external.tolist()[1:] == [BIG, -1, -1]


def test_shapes_and_lists_of_tensors(tmp_path: Path) -> None:
    args = {
        "Input Dims": [[16, 2048], [], [[2, 3], [4]], None, [[], [5]], [7]],
        "Input type": ["c10::BFloat16", "Scalar", "TensorList", "", "float"],
    }
    events = read(tmp_path, {"traceEvents": [event("cpu_op", "aten::cat", **args)]})
    (tensors,) = events.tensor_sets
    assert tensors.shapes[:2] == ((16, 2048), ())
    assert [s for s in tensors.shapes if s] == [(16, 2048), (2, 3), (4,), (5,), (7,)]
    assert tensors.dtypes[0] == "bf16" and len(tensors.dtypes) == len(tensors.shapes)


def test_the_message_of_a_collective(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "Collective name": "allreduce", "In msg nelems": 2048, "Out msg nelems": 4096, "Group size": 8, "dtype": "BFloat16",
    }  # fmt: skip
    rows = [event(name="ncclDevKernel_AllReduce", **said), event(name="multimem_all_reduce_kernel")]
    events = read(tmp_path, {"traceEvents": rows})
    assert events.tensor_sets == [Tensors(nbytes=8192, group=8, collective="allreduce")]
    assert events.tensors.tolist() == [0, -1]


@pytest.mark.parametrize(
    ("name", "dtype", "given", "taken", "nbytes"),
    [
        ("_allgather_base", "BFloat16", 25136, 201088, 50272),  # what one rank gives, not what it gets
        ("_reduce_scatter_base", "c10::BFloat16", 800, 100, 1600),
        ("all_to_allv", "Half", 100, 900, 200),
        ("allreduce", "c10::BFloat16", 100, 100, 200),
        ("allreduce", "Float8_e5m2", 100, 100, 100),
        ("broadcast", "Float", 0, 100, 400),
        ("all_gather", "Float", 0, 100, 0),
        ("allreduce", "Quaternion", 100, 100, 0),
    ],
)
def test_a_message_s_bytes_are_those_that_one_rank_gives(
    tmp_path: Path, name: str, dtype: str, given: int, taken: int, nbytes: int
) -> None:
    said: dict[str, Any] = {
        "Collective name": name, "In msg nelems": given, "Out msg nelems": taken, "Group size": 8, "dtype": dtype,
    }  # fmt: skip
    (tensors,) = read(tmp_path, {"traceEvents": [event(name="ncclDevKernel", **said)]}).tensor_sets
    assert tensors == Tensors(nbytes=nbytes, group=8, collective=name)


def test_facts_of_the_file(tmp_path: Path) -> None:
    top = {
        "deviceProperties": [{"id": 0, "name": ""}, 5], "distributedInfo": {"rank": 3, "world_size": 8, "pg_count": 2},
        "host_name": "secret", "moetrace": json.dumps({"model": "olmoe-1b-7b"}), "traceEvents": [],
    }  # fmt: skip
    events = read(tmp_path, top)
    assert (events.rank, events.world_size, events.devices) == (3, 8, ({"id": 0, "name": ""},))
    assert events.metadata == {"model": "olmoe-1b-7b"}
    odd: dict[str, Any] = {
        "deviceProperties": {},
        "distributedInfo": [],
        "moetrace": "{",
        "traceEvents": [],
        "baseTimeNanoseconds": None,
    }
    events = read(tmp_path, odd)
    assert (events.rank, events.world_size, events.devices, events.metadata) == (0, 1, (), {})


def test_gzip_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    plain = read(tmp_path, {"traceEvents": [event()]})
    packed = read(tmp_path, {"traceEvents": [event()]}, "trace.json.gz")
    renamed = (tmp_path / "trace.json.gz").rename(tmp_path / "unknown")
    for other in (packed, formats.read(renamed)):
        assert other.start.tolist() == plain.start.tolist() and other.texts == plain.texts


@pytest.mark.parametrize(
    "literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b'"x"', b"true", b"[1]"]
)
def test_a_duration_that_is_no_number_is_damage(tmp_path: Path, literal: bytes) -> None:
    good, bad = json.dumps(event()).encode(), json.dumps(event(dur=-77)).encode().replace(b"-77", literal)
    events = read(tmp_path, b'{"traceEvents": [' + good + b"," + bad + b"]}")
    assert events.counts == {"events": 2, "damaged": 1} and events.dur.tolist() == [5000]


@pytest.mark.parametrize("literal", [b"Infinity", b"NaN"])
def test_an_infinite_bandwidth_harms_nothing(tmp_path: Path, literal: bytes) -> None:
    bad = json.dumps(event("gpu_memcpy", "Memcpy", bytes=64, bandwidth=-77)).encode().replace(b"-77", literal)
    events = read(tmp_path, b'{"traceEvents": [' + bad + b"]}")
    assert events.nbytes.tolist() == [64] and events.counts["damaged"] == 0


@pytest.mark.parametrize("ts", [1e300, -1e300, 10**17, 2**63])
def test_times_beyond_any_clock_are_damage(tmp_path: Path, ts: Any) -> None:
    events = read(
        tmp_path, {"traceEvents": [event(ts=ts), event(dur=1e300), event()], "baseTimeNanoseconds": BASE}
    )
    assert events.counts["damaged"] == 2 and events.start.tolist() == [BASE + 10_000]


def test_negative_durations_are_none_at_all(tmp_path: Path) -> None:
    assert read(tmp_path, {"traceEvents": [event(dur=-3)]}).dur.tolist() == [0]


def test_odd_args_and_events_that_are_none(tmp_path: Path) -> None:
    bare = {"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 1}
    rows = [
        bare,
        {**bare, "args": None},
        {**bare, "args": [1]},
        {**bare, "name": None},
        {**bare, "ts": None},
        5,
        None,
    ]
    events = read(tmp_path, {"traceEvents": rows})
    assert events.counts == {"events": 7, "damaged": 4} and events.correlation.tolist() == [-1, -1, -1]
    dims = event("cpu_op", "aten::mm", **{"Input Dims": [["x"], [None, 2.0], 7], "Input type": [{}, []]})
    assert read(tmp_path, {"traceEvents": [dims]}).tensor_sets[0].shapes == ((0,), (0, 2), ())


@pytest.mark.parametrize(
    "raw",
    [b"a\tb", b"a\x01b", b"a\nb", b"\xff\xfe", b"caf\xc3", b"a\\ud800b"],
    ids=["tab", "control", "line", "bytes", "cut", "half"],
)
def test_names_that_are_not_clean_text_still_are_names(tmp_path: Path, raw: bytes) -> None:
    data = (
        json.dumps({"traceEvents": [event(name="NAME"), event(name="other")]}).encode().replace(b"NAME", raw)
    )
    events = read(tmp_path, data)
    assert events.counts == {"events": 2, "damaged": 0} and events.texts[1] == "other"
    assert len(events.texts[0].encode()) >= 2


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert len(read(tmp_path, b"\xef\xbb\xbf \n" + json.dumps([event()]).encode()).cls) == 1


WHOLE = json.dumps({"schemaVersion": 1, "traceEvents": [event(ts=i) for i in range(50)]}, indent=1).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "not a PyTorch profiler trace"),
        (b" \n", "not a PyTorch profiler trace"),
        (b"not json at all", "expected JSON"),
        (b"PK\x03\x04" + bytes(60), "expected JSON"),
        (json.dumps({"traceEvents": []}).encode("utf-16"), "expected JSON"),
        (gzip.compress(WHOLE, mtime=0)[:40], "damaged or truncated gzip"),
        (gzip.compress(WHOLE, mtime=0)[:60] + bytes(60), "damaged or truncated gzip"),
        (b"\x1f\x8b", "damaged or truncated gzip"),
        (b"{}", "has no 'traceEvents' list"),
        (b'{"traceEvents": {}}', "has no 'traceEvents' list"),
        (b'{"distributedInfo": {"rank": 0}}', "has no 'traceEvents' list"),
        (b"[" * 100_000, "holds no whole event"),
        (b'{"traceEvents":' * 50_000 + b"[]" + b"}" * 50_000, "nested too deeply"),
        (b'{"traceEvents": [NaN, ' + b"1" * 5000 + b"]}", "holds no whole event"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(TraceError, match=words) as caught:
        read(tmp_path, content)
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path / "trace.json") in said and len(said) < 500


PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("content", "kept", "lost", "words"),
    [
        (WHOLE[: len(WHOLE) // 2], 24, 1, "the file is cut off"),
        (WHOLE[:-3], 50, 0, "the file is cut off"),
        (WHOLE[:-20], 49, 1, "the file is cut off"),
        (WHOLE.replace(b'"name": "k"', b'"name": "k"k"', 1), 49, 1, "1 of 50 events are damaged and left out (2 %)"),
        (WHOLE.replace(b'"name": "k"', b'"name": "k', 1), 49, 1, "the JSON is damaged"),
        (WHOLE.replace(b'"schemaVersion": 1', b'"schemaVersion": "1"1', 1), 50, 0, "the JSON is damaged"),
        (WHOLE.replace(b'"traceEvents"', b'"traceEvent"'), 50, 0, "the JSON is damaged"),
        (WHOLE.replace(b"  },\n", b"  }]\n", 1), 50, 1, "the JSON is damaged"),
        (WHOLE.replace(b"  },\n", b"  }\n", 1), 50, 0, ""),
        (WHOLE + b"}", 50, 0, "the JSON is damaged"),
        (PACKED[:-20], None, None, "the compressed file is damaged or cut off"),
        (PACKED[:-8] + bytes(8), 50, 0, "the compressed file is damaged or cut off"),
        (PACKED[:-8], 50, 0, "bytes could be read, and their end is missing or not sound"),
        (PACKED + b"garbage", 50, 0, "the compressed file is damaged or cut off"),
    ],
)  # fmt: skip
def test_damage_costs_what_is_damaged_and_is_counted(
    tmp_path: Path, content: bytes, kept: int | None, lost: int | None, words: str
) -> None:
    if words == "the JSON is damaged" and b'"traceEvent"' in content:
        # A whole document without it is not a trace.
        content = content.replace(b'"schemaVersion"', b'"schemaVersion')
    events = read(tmp_path, content)
    if kept is not None:
        assert (len(events.cls), events.counts["damaged"]) == (kept, lost)
    assert set((events.start // 1000).tolist()) <= set(range(50)) and (events.dur == 5000).all()
    assert words in " ".join(formats.remarks(events.counts))


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        formats.read(tmp_path / "absent.json")
    with pytest.raises(TraceError, match="is not a file"):
        formats.read(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "ph": st.just("X") | VALUES,
    "cat": st.sampled_from(["kernel", "cpu_op", "gpu_memcpy", "cuda_runtime", "user_annotation"]) | VALUES,
    "name": st.text(max_size=4) | VALUES,
    "ts": st.floats(0, 1e6) | VALUES,
    "dur": st.floats(0, 1e6) | VALUES,
    "tid": VALUES,
    "args": st.dictionaries(
        st.sampled_from(["External id", "correlation", "Input Dims", "Input type", "stream", "device", "bytes", "kernel",
                         "Collective name", "In msg nelems", "Group size", "dtype"]),
        VALUES,
    ) | VALUES,
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=FIELDS) | VALUES, max_size=4), st.fixed_dictionaries({}, optional={
    "baseTimeNanoseconds": VALUES, "distributedInfo": VALUES, "deviceProperties": VALUES, "moetrace": VALUES,
}))  # fmt: skip
def test_whatever_the_events_hold_is_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], top: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        events = read(folder, {**top, "traceEvents": rows})
    except TraceError as error:
        assert "\n" not in str(error)
        return
    assert events.counts["events"] == len(rows) and len(events.cls) + events.counts["damaged"] <= len(rows)
    assert all(text.encode() is not None for text in events.texts)
    assert (events.dur >= 0).all()
