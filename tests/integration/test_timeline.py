"""The timeline as a strict reader takes it: Chrome trace JSON to the letter, and no slice that Perfetto would drop.

Perfetto reads ts and dur as microseconds and rounds them to whole ns. On one track slices may nest or follow each
other; one that only partly overlaps an earlier one is dropped (its stat slice_drop_overlapping_complete_event). Perfetto's own
reader is asked in tests/debian/test_perfetto_itself.py.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moetrace
from moetrace.run import Run
from tests.conftest import Answer

Track = tuple[int, int]
PHASES = {
    "X": {"ph", "pid", "tid", "ts", "dur", "name", "args", "cat"},
    "M": {"ph", "pid", "tid", "name", "args"},
    "C": {"ph", "pid", "tid", "ts", "name", "args"},
}


@dataclass(frozen=True)
class Slice:
    start_ns: int
    dur_ns: int
    name: str
    args: dict[str, Any]

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.dur_ns


@dataclass(frozen=True)
class Timeline:
    processes: dict[int, str]
    threads: dict[Track, str]
    slices: dict[Track, list[Slice]]
    counters: dict[tuple[int, str], list[tuple[int, float]]]  # process, name -> times in ns, values

    def of(self, thread: str) -> list[Slice]:
        return [s for track, name in self.threads.items() if name == thread for s in self.slices[track]]

    @property
    def ops(self) -> list[Slice]:
        return [
            s
            for track, name in self.threads.items()
            if name.startswith("stream ")
            for s in self.slices[track]
        ]


def read(path: Path) -> Timeline:
    """The timeline in a file. Fails at anything that the format does not allow or that a viewer may take in two ways."""
    data = path.read_bytes()
    document = json.loads(
        (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8"),
        parse_float=Decimal,
        parse_constant=_refuse,
        object_pairs_hook=_unique,
    )
    assert document.keys() <= {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    found = Timeline({}, {}, {}, {})
    for event in document["traceEvents"]:
        assert {"ph", "pid", "tid", "name", "args"} <= event.keys() <= PHASES[event["ph"]], event
        assert all(type(event[key]) is int and 0 <= event[key] < 2**32 for key in ("pid", "tid")), event
        assert type(event["name"]) is str and event["name"] and type(event["args"]) is dict, event
        {"M": _label, "X": _slice, "C": _count}[event["ph"]](found, event)
    return found


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), f"a key twice: {pairs}"
    return dict(pairs)


def _label(found: Timeline, event: dict[str, Any]) -> None:
    names: dict[Any, str] = found.processes if event["name"] == "process_name" else found.threads
    key = event["pid"] if event["name"] == "process_name" else (event["pid"], event["tid"])
    assert event["name"] in ("process_name", "thread_name") and key not in names, event
    names[key] = event["args"]["name"]
    found.slices.setdefault((event["pid"], event["tid"]), [])


def _slice(found: Timeline, event: dict[str, Any]) -> None:
    track = event["pid"], event["tid"]
    assert event["pid"] in found.processes and track in found.threads, f"a track without a name: {event}"
    start, dur = _ns(event["ts"]), _ns(event["dur"])
    found.slices[track].append(Slice(start, dur, event["name"], event["args"]))


def _count(found: Timeline, event: dict[str, Any]) -> None:
    assert event["pid"] in found.processes and event["args"].keys() == {"value"}, event
    values = found.counters.setdefault((event["pid"], event["name"]), [])
    at, value = _ns(event["ts"]), float(event["args"]["value"])
    assert value >= 0 and (not values or values[-1][0] <= at), event
    values.append((at, value))


def _ns(us: Decimal | int) -> int:
    ns = us * 1000
    assert ns >= 0 and ns == int(ns), f"{us} us is not a whole number of ns"
    assert round(float(us) * 1000) == ns, f"{us} us as a double is another number of ns"
    return int(ns)


def dropped(slices: list[Slice]) -> list[Slice]:
    """The slices of a track that start within an earlier one and end after it."""
    out: list[Slice] = []
    open_: list[Slice] = []
    for one in sorted(slices, key=lambda s: s.start_ns):
        while open_ and open_[-1].end_ns <= one.start_ns:
            open_.pop()
        if open_ and one.end_ns > open_[-1].end_ns:
            out.append(one)
        else:
            open_.append(one)
    return out


def test_the_reader_sees_what_partly_overlaps() -> None:
    first, inside, next_, across = (Slice(a, d, "k", {}) for a, d in ((0, 10), (2, 3), (10, 5), (12, 5)))
    assert dropped([first, inside, next_]) == []
    assert dropped([first, inside, next_, across]) == [across]


SCENARIOS = [
    pytest.param((), id="measured"),
    pytest.param(("--hw", "h100-sxm"), id="h100"),
    pytest.param(("--hw", "h100-sxm-x8", "--set", "tp=8", "--set", "layers=native"), id="h100-x8 tp=8"),
    pytest.param(("--hw", "cs3", "--set", "n_a=2", "--set", "placement=own"), id="cs3"),
]


@pytest.mark.parametrize("replayed", SCENARIOS)
def test_the_exported_timeline_is_strict_and_whole(
    run_dir: Path, tmp_path: Path, call: Callable[..., Answer], replayed: tuple[str, ...]
) -> None:
    source = run_dir
    if replayed:
        assert call("replay", run_dir, *replayed, "-o", tmp_path / "predicted").status == 0
        (source,) = (tmp_path / "predicted").iterdir()
    for name in ("t.json", "t.json.gz"):
        assert call("export", source, "--perfetto", "-o", tmp_path / name).status == 0
    timeline = read(tmp_path / "t.json")
    assert timeline == read(tmp_path / "t.json.gz")
    assert {track: dropped(s) for track, s in timeline.slices.items() if dropped(s)} == {}

    run = Run.load(source)
    origin = min(int(run.numpy("start_ns").min()), *(s.start_ns for s in run.meta.steps))
    start, dur = run.numpy("start_ns") - origin, run.numpy("dur_ns")
    assert sorted((s.start_ns, s.dur_ns, s.args["op"]) for s in timeline.ops) == sorted(
        zip(start.tolist(), dur.tolist(), run.column("op").to_pylist(), strict=True)
    )
    assert [(s.start_ns, s.end_ns) for s in timeline.of("steps")] == [
        (s.start_ns - origin, s.end_ns - origin) for s in run.meta.steps
    ]
    layers = np.unique(run.numpy("layer"))
    assert {s.args["layer"] for s in timeline.of("layers")} == set(layers[layers >= 0].tolist())


def test_measured_and_predicted_stand_side_by_side_with_their_counters(
    run_dir: Path, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    done = call("export", run_dir, "--perfetto", "--predict", "h100-sxm", "-o", tmp_path / "t.json")
    assert done.status == 0
    timeline = read(tmp_path / "t.json")
    assert [name.split("(")[1] for name in timeline.processes.values()] == ["measured)", "predicted)"]
    assert min(s.start_ns for s in timeline.of("steps")) == 0
    measured, predicted = Run.load(run_dir), moetrace.replay(Run.load(run_dir), "h100-sxm").run
    for pid, run in enumerate((measured, predicted)):
        assert sum(s.dur_ns for s in timeline.of("steps") if s in timeline.slices[pid, 1]) == sum(
            s.end_ns - s.start_ns for s in run.meta.steps
        )
        moved = sum(np.nan_to_num(run.numpy(n, 0.0)).sum() for n in ("weight_bytes", "kv_bytes", "act_bytes"))
        assert _integral(timeline.counters[pid, "memory GB/s"]) == pytest.approx(moved, rel=1e-3)
        flops = np.nan_to_num(run.numpy("flops", 0.0)).sum()
        assert _integral(timeline.counters[pid, "TFLOP/s"]) * 1e3 == pytest.approx(flops, rel=1e-3)
        assert max(v for _, v in timeline.counters[pid, "distinct experts"]) <= 64
    assert timeline.counters[0, "memory GB/s"][-1][1] == 0

    assert call("replay", run_dir, "--hw", "h100-sxm", "-o", tmp_path / "predicted").status == 0
    (saved,) = (tmp_path / "predicted").iterdir()
    again = call("export", run_dir, "--perfetto", "--predict", saved, "-o", tmp_path / "again.json")
    assert again.status == 0 and read(tmp_path / "again.json").counters == timeline.counters


def _integral(values: list[tuple[int, float]]) -> float:
    return sum(value * (until - at) for (at, value), (until, _) in pairwise(values) if value)
