"""Ranks of one run beside each other: clocks aligned on collectives, who waits for whom, skew, stragglers, imbalance.

A collective ends on all its ranks at about the same time and begins on each when that rank arrives. So ends align the clocks,
and up to the latest (aligned) begin an op on any rank waits; what is left of it is transfer.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moetrace.op import Op
from moetrace.ops.communication import COLLECTIVES
from moetrace.parse.nesting import IntArray, exposed_by
from moetrace.parse.ranks.arrivals import SUMS, Arrivals, Compared
from moetrace.run import Run

# name, type, meaning. One row per rank and step.
RANKS_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("rank", pa.int32(), "rank of the process that recorded the step"),
    ("step", pa.int32(), "index into that rank's steps"),
    ("start_ns", pa.int64(), "start of the step by the rank's own clock, ns"),
    ("clock_offset_ns", pa.int64(), "the rank's clock less that of its group's first rank, ns; null: nothing to align by"),
    ("span_ns", pa.int64(), "from the begin of the first op to the end of the last, ns"),
    ("busy_ns", pa.int64(), "time in which at least one op ran, ns, over its devices"),
    ("comm_ns", pa.int64(), "sum of the durations of communication ops, ns"),
    ("exposed_comm_ns", pa.int64(), "time in which only communication ran, ns; the rest of comm_ns was hidden"),
    ("experts_ns", pa.int64(), "sum of the durations of the experts' ops, ns"),
    ("collectives", pa.int32(), "collectives that were compared with those of other ranks"),
    ("wait_ns", pa.int64(), "part of these in which the last rank had not arrived, ns; null: not compared"),
    ("transfer_ns", pa.int64(), "the rest of these, ns; null: not compared"),
    ("last", pa.int32(), "collectives of these in which this rank was the last to arrive; null: not compared"),
    ("delayed_ns", pa.int64(), "what the other ranks waited for this one in those, ns, mean of the others; null: not compared"),
)  # fmt: skip
_SCHEMA = pa.schema([pa.field(n, t, metadata={"doc": d}) for n, t, d in RANKS_COLUMNS])
_COLUMNS = ("step", "device", "stream", "family", "kind", "op", "start_ns", "dur_ns")
_ONE_SIDED = ("send_recv", "broadcast")  # these do not end on all ranks at one time
_COMPARED = frozenset(COLLECTIVES) - frozenset(_ONE_SIDED)


def compare(runs: Mapping[int, Run]) -> tuple[pa.Table, dict[str, Any]]:
    """(the table of RANKS_COLUMNS, the summary) of runs by rank."""
    with tempfile.TemporaryDirectory(prefix="moetrace-") as folder:
        world = max(max(runs) + 1, *(run.meta.gpus for run in runs.values()))
        arrivals, steps = Arrivals(Path(folder), world), {}
        for rank, run in sorted(runs.items()):
            steps[rank], talk, order = _gathered(run, world)
            arrivals.add(rank, talk, order, len(run.meta.steps))
        found = arrivals.compared()
    tables = []
    for rank, sums in steps.items():
        mine = found.sums.get(rank)
        rows = {"rank": np.full(len(sums["step"]), rank), **sums}
        nothing = np.zeros(len(sums["step"]), dtype=np.int64)
        for name in SUMS:
            rows[name] = mine[name] if mine is not None else nothing
        rows["clock_offset_ns"] = nothing + found.offset.get(rank, 0)
        null = set(SUMS) - {"collectives"} if mine is None else set()
        null |= set() if rank in found.offset else {"clock_offset_ns"}
        arrays = [pa.array(rows[n], t, mask=np.full(len(nothing), n in null)) for n, t, _ in RANKS_COLUMNS]
        tables.append(pa.Table.from_arrays(arrays, schema=_SCHEMA))
    table = pa.concat_tables(tables)
    return table, _summary(table, found, world, sorted(runs))


def _gathered(run: Run, world: int) -> tuple[dict[str, IntArray], IntArray, list[bytes]]:
    """(sums per step, the collectives as rows of step, start, end and group, a digest of each step's collectives)."""
    count = len(run.meta.steps)
    at = np.array([s.index for s in run.meta.steps], dtype=np.int64)
    place = np.full(int(at.max(initial=-1)) + 2, -1, dtype=np.int64)
    place[at] = np.arange(count)
    sums = {
        name: np.zeros(count, np.int64) for name in ("busy_ns", "comm_ns", "exposed_comm_ns", "experts_ns")
    }
    talk: list[IntArray] = []
    order = [b""] * count
    for part in run.parts(_COLUMNS):
        step = place[np.minimum(part.numpy("step").astype(np.int64), len(place) - 1)]
        for said, rows, group in _steps_of(part, step, sums, world):
            order[said] = hashlib.blake2b(rows[4].tobytes(), digest_size=16).digest()
            talk.append(np.stack([np.full(rows.shape[1], said), rows[0], rows[1], group]))
    start = np.array([s.start_ns for s in run.meta.steps], dtype=np.int64)
    end = np.array([s.end_ns for s in run.meta.steps], dtype=np.int64)
    steps = {"step": at, "start_ns": start, "span_ns": end - start, **sums}
    return steps, np.concatenate(talk, axis=1) if talk else np.zeros((4, 0), np.int64), order


def _steps_of(
    part: Run, step: IntArray, sums: dict[str, IntArray], world: int
) -> Iterator[tuple[int, IntArray, IntArray]]:
    """(step, its collectives in the order of streams and starts, the size of each one's group); adds to the sums."""
    start, dur = part.numpy("start_ns").astype(np.int64), part.numpy("dur_ns").astype(np.int64)
    end, device, stream = (
        start + dur,
        part.numpy("device").astype(np.int64),
        part.numpy("stream").astype(np.int64),
    )
    inside, count = step >= 0, len(sums["busy_ns"])
    family, families = part.codes("family")
    talks = family == _code(families, "communication")
    lane = step * (1 + int(device.max(initial=0) + 1)) + device + 1
    for which, sign in (
        (inside, 1),
        (inside & ~talks, -1),
    ):  # exposed: what the others' union leaves of all ops'
        alone, _ = exposed_by(lane[which], start[which], end[which])
        union = np.bincount(step[which], weights=alone, minlength=count).astype(np.int64)
        sums["busy_ns"] += union if sign > 0 else 0
        sums["exposed_comm_ns"] += sign * union
    for name, which in (("comm_ns", talks), ("experts_ns", family == _code(families, "experts"))):
        which = which & inside
        sums[name] += np.bincount(step[which], weights=dur[which], minlength=count).astype(np.int64)
    kind, kinds = part.codes("kind")
    compared = inside & np.isin(kind, [i for i, name in enumerate(kinds) if name in _COMPARED])
    op, texts = part.codes("op")
    marks, sizes = _marks(texts, world)
    rows = np.flatnonzero(compared)
    rows = rows[np.lexsort((start[rows], stream[rows], step[rows]))]
    for at in np.split(rows, np.flatnonzero(np.diff(step[rows])) + 1):
        if len(at):
            yield (
                int(step[at[0]]),
                np.stack([start[at], end[at], device[at], stream[at], marks[op[at]]]),
                sizes[op[at]],
            )


def _code(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -2


def _marks(texts: Sequence[str], world: int) -> tuple[IntArray, IntArray]:
    """(a number that stands for each op's text on every rank, the size of its group: all ranks where it says none)."""
    marks = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=7).digest(), "little") for t in texts]
    sizes = [dict(Op.parse(t).dims).get("ranks", world) or world for t in texts]
    return np.array(marks, dtype=np.int64), np.array(sizes, dtype=np.int64)


def _summary(table: pa.Table, found: Compared, world: int, ranks: Sequence[int]) -> dict[str, Any]:
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    rows = []
    for rank in ranks:
        mine = {name: values[columns["rank"] == rank] for name, values in columns.items()}
        known = rank in found.offset
        seconds = {
            f"{name}_s": float(np.nansum(mine[f"{name}_ns"].astype(float))) / 1e9
            for name in ("busy", "comm", "exposed_comm", "experts")
        }
        compared = int(mine["collectives"].sum())
        wait, transfer = (float(np.nansum(mine[n].astype(float))) / 1e9 for n in ("wait_ns", "transfer_ns"))
        rows.append(
            {
                "rank": rank, "steps": len(mine["step"]), "span_s": float(np.median(mine["span_ns"])) / 1e9, **seconds,
                "hidden_comm_s": max(0.0, seconds["comm_s"] - seconds["exposed_comm_s"]),
                "clock_offset_s": found.offset[rank] / 1e9 if known else None,
                "clock_error_s": found.error[rank] / 1e9 if known else None, "collectives": compared,
                "matched_comm_s": wait + transfer, "wait_s": wait if known and compared else None,
                "delayed_s": float(np.nansum(mine["delayed_ns"].astype(float))) / 1e9 if known and compared else None,
                "transfer_s": transfer if known and compared else None,
                "last_share": float(np.nansum(mine["last"].astype(float))) / compared if compared else None,
            }
        )  # fmt: skip
    return {
        "schema": "moetrace.ranks/1", "world": world, "missing": [r for r in range(world) if r not in set(ranks)],
        "ranks": rows, "skew": found.skew(), "experts_imbalance": _imbalance(columns), "notes": found.notes(world, ranks),
    }  # fmt: skip


def _imbalance(columns: Mapping[str, Any]) -> dict[str, float] | None:
    """How much longer the slowest rank's experts take than the mean rank's, over steps that all ranks have; None if none."""
    ranks, steps = np.unique(columns["rank"]), np.unique(columns["step"])
    if len(ranks) < 2 or not columns["experts_ns"].any():
        return None
    time = np.full((len(steps), len(ranks)), np.nan)
    time[np.searchsorted(steps, columns["step"]), np.searchsorted(ranks, columns["rank"])] = columns[
        "experts_ns"
    ]
    mean = time.mean(axis=1)
    ratio = (time.max(axis=1) / np.where(mean > 0, mean, np.nan))[mean > 0]
    if not len(ratio):
        return None
    return {"median": float(np.median(ratio)), "max": float(ratio.max())}
