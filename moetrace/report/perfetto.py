"""A run's timeline as Chrome trace JSON, the form that ui.perfetto.dev opens.

One process per rank; in it a track of steps, a track of layers, and one track per stream with an event per
op; above them counters (perfetto_counters). Times are microseconds with ns kept as decimals, counted from the first event of
each run, so that runs side by side begin together; a run beside the first has processes of its own, numbered after those of
the ranks before. The ops are put together column by column, so a trace with millions of them takes seconds. Not written: flows
from launches to kernels.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.files import write_whole
from moetrace.parse.nesting import outermost, sort_ranges
from moetrace.report.perfetto_counters import counters
from moetrace.run import Run, codes_of

if TYPE_CHECKING:
    from moetrace.attribute import Attribution

STEP_TRACK, LAYER_TRACK, FIRST_STREAM = 1, 2, 3
_BATCH = 1 << 17
Ints = npt.NDArray[np.int64]


def write_timeline(
    run: Run,
    path: str | os.PathLike[str],
    attribution: Attribution | None = None,
    beside: Sequence[Run] = (),
) -> int:
    """Writes the timeline, gzipped if the name ends in .gz, and returns the number of events.

    With an attribution of this run each op also says what bounds it. Runs `beside` it, such as a prediction, are written into
    the same timeline, from the same moment on. The file is whole or absent: raises
    OutputError if it cannot be written.
    """
    target, count = Path(path), 0

    def write(part: Path) -> None:
        nonlocal count
        with part.open("wb") as raw:
            if target.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
                    count = _write(run, attribution, beside, packed)
            else:
                count = _write(run, attribution, beside, raw)

    write_whole(target, write)
    return count


def _write(
    run: Run, attribution: Attribution | None, beside: Sequence[Run], out: IO[bytes] | gzip.GzipFile
) -> int:
    other = {"moetrace": run.meta.kind, "source": run.meta.source, "hardware": run.meta.hardware}
    out.write(b'{"displayTimeUnit":"ns","otherData":' + orjson.dumps(other) + b',"traceEvents":[\n')
    count, first_pid = 0, 0
    for one, held in ((run, attribution), *((other, None) for other in beside)):
        for event in _events(one, held, first_pid):
            out.write((b",\n" if count else b"") + event)
            count += 1
        first_pid += int(one.numpy("rank", 0).max(initial=0)) + 1
    out.write(b"\n]}\n")
    return count


def _events(run: Run, attribution: Attribution | None, first_pid: int) -> Iterator[bytes]:
    rank, stream = first_pid + run.numpy("rank", 0).astype(np.int64), run.numpy("stream", 0).astype(np.int64)
    start, dur = run.numpy("start_ns", 0).astype(np.int64), run.numpy("dur_ns", 0).astype(np.int64)
    origin = min(
        [int(start.min(initial=np.iinfo(np.int64).max)), *(s.start_ns for s in run.meta.steps)], default=0
    )
    tracks, track = np.unique(
        np.column_stack([rank, stream, _lane(rank, stream, start, start + dur)]), axis=0, return_inverse=True
    )
    tid = FIRST_STREAM + track.reshape(-1)
    yield from _names(run, tracks, first_pid)
    for number in np.unique(rank).tolist():
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
                step.start_ns - origin,
                step.end_ns - step.start_ns,
                args,
            )
    yield from _layers(run, rank, start - origin, dur)
    yield from counters(run, rank, start - origin, dur)
    yield from _ops(run, attribution, rank, tid, start - origin, dur)


def _names(run: Run, tracks: npt.NDArray[np.int64], first_pid: int) -> Iterator[bytes]:
    where = run.meta.hardware or run.meta.device or "unknown device"
    model = run.meta.model.name if run.meta.model else "unknown model"
    for rank in np.unique(tracks[:, 0]).tolist():
        yield _label(
            rank, 0, "process_name", f"rank {rank - first_pid}: {model} on {where} ({run.meta.kind})"
        )
        yield _label(rank, STEP_TRACK, "thread_name", "steps")
        yield _label(rank, LAYER_TRACK, "thread_name", "layers")
    for place, (rank, stream, lane) in enumerate(tracks.tolist()):
        more = f" (overlapping {lane})" if lane else ""
        yield _label(rank, FIRST_STREAM + place, "thread_name", f"stream {stream}{more}")


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


def _layers(run: Run, rank: Ints, start: Ints, dur: Ints) -> Iterator[bytes]:
    """Spans of consecutive ops of one layer, cut where the next begins, so that none overlap on the track."""
    layer, step = run.numpy("layer").astype(np.int64), run.numpy("step").astype(np.int64)
    rows = np.flatnonzero(layer >= 0)
    rows = rows[np.lexsort((start[rows], rank[rows]))]
    if not rows.size:
        return
    keys = np.column_stack([rank[rows], step[rows], layer[rows]])
    first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
    begin, end = start[rows][first], np.maximum.reduceat((start + dur)[rows], first)
    same = np.r_[keys[first][1:, 0] == keys[first][:-1, 0], False]
    end = np.where(same, np.minimum(end, np.r_[begin[1:], end[-1]]), end)
    for (pid, _, number), at, until in zip(keys[first].tolist(), begin.tolist(), end.tolist(), strict=True):
        yield _span(pid, LAYER_TRACK, f"layer {number}", at, until - at, {"layer": number})


def _ops(
    run: Run, attribution: Attribution | None, rank: Ints, tid: Ints, start: Ints, dur: Ints
) -> Iterator[bytes]:
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
    if attribution is not None:
        pieces.append((',"bound":', *codes_of(attribution.table.column("bound"))))
    coded = [
        (head, np.where(index < 0, len(texts), index), _json_texts(texts)) for head, index, texts in pieces
    ]
    numbers = [
        (f',"{n}":', run.numpy(n, np.nan))
        for n in ("flops", "weight_bytes", "kv_bytes", "act_bytes", "net_bytes")
    ]
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
