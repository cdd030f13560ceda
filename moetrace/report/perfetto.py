"""A run's timeline as Chrome trace JSON, the form that ui.perfetto.dev opens.

One process per rank; in it a track of steps, a track of layers, and one track per stream with an event per
op; above them counters (perfetto_counters). Times are microseconds with ns kept as decimals, counted from the first event of
each run, so that runs side by side begin together; a run beside the first has processes of its own, numbered after those of
the ranks before. The ops are put together column by column, so a trace with millions of them takes seconds, and part by
part, so that memory does not grow with the run: rates do not add up ops of one part and those of the next that still run
beside them. Not written: flows from launches to kernels.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.attribute import Attribution, check_attribution
from moetrace.files import check_output, write_whole
from moetrace.parse.nesting import outermost, sort_ranges
from moetrace.report.perfetto_counters import counters
from moetrace.run import Run, check_runs, codes_of, runs_of

STEP_TRACK, LAYER_TRACK, FIRST_STREAM = 1, 2, 3
_BATCH = 1 << 14  # ops that are put together at once
_PLACES = ("rank", "stream", "start_ns", "dur_ns")
_BYTES = ("flops", "weight_bytes", "kv_bytes", "act_bytes", "net_bytes")
_COLUMNS = (*_PLACES, "step", "layer", "kind", "family", "op", "kernel", "provenance", *_BYTES)
Ints = npt.NDArray[np.int64]


def write_timeline(
    run: Run,
    path: str | os.PathLike[str],
    attribution: Attribution | None = None,
    beside: Run | Sequence[Run] = (),
    force: bool = False,
) -> int:
    """Writes the timeline, gzipped if the name ends in .gz, and returns the number of events.

    With an attribution of this run each op also says what bounds it. Runs `beside` it, such as a prediction, are written into
    the same timeline, from the same moment on. The file is whole or absent, and one that exists is replaced only with `force`:
    raises OutputError if it cannot be written.
    """
    check_runs(run)
    others = runs_of(beside)
    if attribution is not None:
        check_attribution(attribution, run)
    target, count = Path(path), 0
    check_output(target, force, ours=())

    def write(part: Path) -> None:
        nonlocal count
        with part.open("wb") as raw:
            if target.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
                    count = _write(run, attribution, others, packed)
            else:
                count = _write(run, attribution, others, raw)

    write_whole(target, write)
    return count


def _write(
    run: Run, attribution: Attribution | None, beside: Sequence[Run], out: IO[bytes] | gzip.GzipFile
) -> int:
    other = {"moetrace": run.meta.kind, "source": run.meta.source, "hardware": run.meta.hardware}
    out.write(b'{"displayTimeUnit":"ns","otherData":' + orjson.dumps(other) + b',"traceEvents":[\n')
    count, first_pid = 0, 0
    for one, held in ((run, attribution), *((other, None) for other in beside)):
        tracks = _Tracks(one, first_pid)
        for event in _events(one, held, tracks):
            out.write((b",\n" if count else b"") + event)
            count += 1
        first_pid = tracks.next_pid
    out.write(b"\n]}\n")
    return count


def _events(run: Run, held: Attribution | None, tracks: _Tracks) -> Iterator[bytes]:
    """All events of a run, part by part: a long one is never in memory as a whole."""
    yield from _names(run, tracks)
    for number in tracks.ranks:
        for step in run.meta.steps:
            args = {
                "phase": step.phase,
                "batch": step.batch,
                "tokens": step.tokens,
                "kv_tokens": step.kv_tokens,
            }
            yield _span(
                number,
                STEP_TRACK,
                f"step {step.index}: {step.name}",
                step.start_ns - tracks.origin,
                step.end_ns - step.start_ns,
                args,
            )
    layers, lanes = _Layers(), _Lanes()
    bounds = held.parts(["bound"]) if held is not None else repeat(None)
    for part, bound in zip(run.parts(_COLUMNS), bounds, strict=False):
        rank, stream, start, dur = tracks.columns(part)
        tid = tracks.tid(rank, stream, lanes.of(rank, stream, start, start + dur))
        start = start - tracks.origin
        yield from layers.spans(part, rank, start, dur)
        yield from counters(part, rank, start, dur)
        yield from _ops(part, bound, rank, tid, start, dur)
    yield from layers.rest()


class _Tracks:
    """The tracks of a run's streams, as a first look at its ops tells; `origin` is its first moment, `ranks` its processes."""

    def __init__(self, run: Run, first_pid: int) -> None:
        self.first_pid = first_pid
        self.origin = min((s.start_ns for s in run.meta.steps), default=np.iinfo(np.int64).max)
        found, lanes, ranks = set[tuple[int, int, int]](), _Lanes(), set[int]()
        for part in run.parts(_PLACES):
            rank, stream, start, dur = self.columns(part)
            self.origin = min(self.origin, int(start.min(initial=self.origin)))
            places = np.column_stack([rank, stream, lanes.of(rank, stream, start, start + dur)])
            found |= set(map(tuple, np.unique(places, axis=0).tolist()))
        ranks |= {rank for rank, _, _ in found}
        self.ranks, self.tracks = sorted(ranks), sorted(found)
        self._tid = {track: FIRST_STREAM + i for i, track in enumerate(self.tracks)}

    @property
    def next_pid(self) -> int:
        """The first process number that is free behind this run's."""
        return max(self.ranks, default=self.first_pid) + 1

    def columns(self, part: Run) -> tuple[Ints, Ints, Ints, Ints]:
        """Process, stream, start and duration of each op, in ns since the epoch."""
        rank, stream, start, dur = (part.numpy(name, 0).astype(np.int64) for name in _PLACES)
        return rank + self.first_pid, stream, start, dur

    def tid(self, rank: Ints, stream: Ints, lane: Ints) -> Ints:
        """The thread number of each op's track."""
        places, inverse = np.unique(np.column_stack([rank, stream, lane]), axis=0, return_inverse=True)
        numbers = np.array([self._tid[tuple(place)] for place in places.tolist()], dtype=np.int64)
        return numbers[inverse.reshape(-1)] if len(numbers) else np.zeros(0, dtype=np.int64)


def _names(run: Run, tracks: _Tracks) -> Iterator[bytes]:
    where = run.meta.hardware or run.meta.device or "unknown device"
    model = run.meta.model.name if run.meta.model else "unknown model"
    for rank in tracks.ranks:
        name = f"rank {rank - tracks.first_pid}: {model} on {where} ({run.meta.kind})"
        yield _label(rank, 0, "process_name", name)
        yield _label(rank, STEP_TRACK, "thread_name", "steps")
        yield _label(rank, LAYER_TRACK, "thread_name", "layers")
    for place, (rank, stream, lane) in enumerate(tracks.tracks):
        more = f" (overlapping {lane})" if lane else ""
        yield _label(rank, FIRST_STREAM + place, "thread_name", f"stream {stream}{more}")


class _Lanes:
    """The lanes of ops that come part by part: an op that still runs as the next part begins keeps its lane to itself."""

    def __init__(self) -> None:
        # Process and stream -> lane -> when its last op ends.
        self._ends: dict[tuple[int, int], dict[int, int]] = {}

    def of(self, rank: Ints, stream: Ints, start: Ints, end: Ints) -> Ints:
        """The lane of each op of the next part."""
        lane = _lane(rank, stream, start, end)
        places, inverse = np.unique(np.column_stack([rank, stream]), axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        for i, (pid, number) in enumerate(places.tolist()):
            here, ends = np.flatnonzero(inverse == i), self._ends.setdefault((pid, number), {})
            begin = int(start[here].min())
            lane[here] += max((one for one, until in ends.items() if until > begin), default=-1) + 1
            for one in np.unique(lane[here]).tolist():
                ends[one] = max(ends.get(one, begin), int(end[here][lane[here] == one].max()))
        return lane


def _lane(rank: Ints, stream: Ints, start: Ints, end: Ints) -> Ints:
    """0, or a higher number for ops that start before an earlier one of their stream and lane has ended.

    Programmatic dependent launch lets kernels of one stream overlap, and Perfetto drops a slice that overlaps another.
    """
    _, track = np.unique(np.column_stack([rank, stream]), axis=0, return_inverse=True)
    track, lane = track.reshape(-1), np.zeros(len(start), dtype=np.int64)
    left = sort_ranges(track, start, end)
    while left.size:
        free = outermost(track[left], start[left], end[left])
        left = left[~free]
        lane[left] += 1
    return lane


def _label(pid: int, tid: int, what: str, name: str) -> bytes:
    return orjson.dumps({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}})


def _span(pid: int, tid: int, name: str, start_ns: int, dur_ns: int, args: dict[str, Any]) -> bytes:
    known = {key: value for key, value in args.items() if value is not None}
    return orjson.dumps(
        {
            "ph": "X",
            "pid": pid,
            "tid": tid,
            "ts": start_ns / 1e3,
            "dur": dur_ns / 1e3,
            "name": name,
            "args": known,
        }
    )


class _Layers:
    """Spans of consecutive ops of one layer, cut where the next begins, so that none overlap on the track."""

    def __init__(self) -> None:
        # Process -> layer, begin, end of the span that is still open.
        self._last: dict[int, tuple[int, int, int]] = {}

    def spans(self, part: Run, rank: Ints, start: Ints, dur: Ints) -> Iterator[bytes]:
        """The spans that the ops of a part close."""
        layer, step = part.numpy("layer").astype(np.int64), part.numpy("step").astype(np.int64)
        rows = np.flatnonzero(layer >= 0)
        rows = rows[np.lexsort((start[rows], rank[rows]))]
        if not rows.size:
            return
        keys = np.column_stack([rank[rows], step[rows], layer[rows]])
        first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        begin, end = start[rows][first].tolist(), np.maximum.reduceat((start + dur)[rows], first).tolist()
        for (pid, _, number), at, until in zip(keys[first].tolist(), begin, end, strict=True):
            yield from self._close(pid, at)
            self._last[pid] = number, at, until

    def rest(self) -> Iterator[bytes]:
        """The last span of each process."""
        for pid in list(self._last):
            yield from self._close(pid, None)

    def _close(self, pid: int, next_begin: int | None) -> Iterator[bytes]:
        if pid in self._last:
            number, at, until = self._last.pop(pid)
            until = until if next_begin is None else max(at, min(until, next_begin))
            yield _span(pid, LAYER_TRACK, f"layer {number}", at, until - at, {"layer": number})


def _ops(run: Run, bounds: pa.Table | None, rank: Ints, tid: Ints, start: Ints, dur: Ints) -> Iterator[bytes]:
    kind, kinds = run.codes("kind")
    kernel, kernels = run.codes("kernel")
    name = np.where(
        np.isin(kind, [i for i, k in enumerate(kinds) if k != "other"]), kind, len(kinds) + kernel
    )
    pieces: list[tuple[str, Ints, Sequence[str | None]]] = [
        ('{"ph":"X","name":', name, [*kinds, *kernels, None]),
        (',"cat":', *run.codes("family")),
        (',"args":{"op":', *run.codes("op")),
        (',"kernel":', kernel, kernels),
        (',"provenance":', *run.codes("provenance")),
    ]
    if bounds is not None:
        pieces.append((',"bound":', *codes_of(bounds.column("bound"))))
    coded = [
        (head, np.where(index < 0, len(texts), index), _json_texts(texts)) for head, index, texts in pieces
    ]
    numbers = [(f',"{n}":', run.numpy(n, np.nan)) for n in _BYTES]
    for low in range(0, len(start), _BATCH):
        rows = slice(low, low + _BATCH)
        parts: list[Any] = []
        for head, index, texts in coded:
            parts += [head, texts.take(pa.array(index[rows]))]
        for head, values in numbers:
            parts += [head, _number_texts(values[rows])]
        parts += ['},"pid":', _int_texts(rank[rows]), ',"tid":', _int_texts(tid[rows])]
        parts += [',"ts":', _us_texts(start[rows]), ',"dur":', _us_texts(dur[rows]), "}"]
        for text in pc.binary_join_element_wise(*parts, "").to_pylist():
            yield text.encode()


def _json_texts(texts: Sequence[str | None]) -> pa.Array:
    """Each text as a JSON literal, with one more entry, null, for rows without a text."""
    return pa.array([*(orjson.dumps(t).decode() for t in texts), "null"], pa.string())


def _int_texts(values: Ints) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _number_texts(values: npt.NDArray[np.float64]) -> pa.Array:
    """Counts as whole numbers, nan as null."""
    known = np.isfinite(values)
    whole = pa.array(np.where(known, np.round(values), 0).astype(np.int64), mask=~known)
    return pc.fill_null(whole.cast(pa.string()), "null")


def _us_texts(values: Ints) -> pa.Array:
    """ns as microseconds with three decimals, exactly; values are not negative."""
    return pc.binary_join_element_wise(
        _int_texts(values // 1000), pc.utf8_lpad(_int_texts(values % 1000), 3, "0"), "."
    )
