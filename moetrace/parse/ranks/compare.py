"""Ranks of one run beside each other: clocks aligned on collectives, who waits for whom, skew, stragglers, imbalance.

A collective ends on all its ranks at about the same time and begins on each when that rank arrives. So ends align the clocks,
and up to the latest (aligned) begin an op on any rank waits; what is left of it is transfer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moetrace.parse.nesting import IntArray
from moetrace.parse.ranks.arrivals import SUMS, Arrivals, Compared
from moetrace.parse.ranks.experts import Loads
from moetrace.parse.ranks.gathered import Gathered

# name, type, meaning. One row per rank and step.
RANKS_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("rank", pa.int32(), "rank of the process that recorded the step"),
    ("step", pa.int32(), "index into that rank's steps"),
    ("start_ns", pa.int64(), "start of the step by the rank's own clock, ns"),
    ("clock_offset_ns", pa.int64(), "its clock less that of the first rank it is linked with, ns; null: nothing to align by"),
    ("span_ns", pa.int64(), "from the begin of the first op to the end of the last, ns"),
    ("busy_ns", pa.int64(), "time in which at least one op ran, ns, over its devices"),
    ("comm_ns", pa.int64(), "sum of the durations of communication ops, ns"),
    ("exposed_comm_ns", pa.int64(), "time in which only communication ran, ns; the rest of comm_ns was hidden"),
    ("experts_ns", pa.int64(), "sum of the durations of the experts' ops, ns"),
    ("routed", pa.int64(), "tokens' choices that fell on its experts; null: routing not recorded, or experts not shared out"),
    ("collectives", pa.int32(), "collectives that were compared with those of other ranks"),
    ("wait_ns", pa.int64(), "part of these in which the last rank had not arrived, ns; null: not compared"),
    ("transfer_ns", pa.int64(), "the rest of these, ns; null: not compared"),
    ("last", pa.int32(), "collectives of these in which this rank was the last to arrive; null: not compared"),
    ("delayed_ns", pa.int64(), "what the other ranks waited for this one in those, ns, mean of the others; null: not compared"),
)  # fmt: skip
_SCHEMA = pa.schema([pa.field(n, t, metadata={"doc": d}) for n, t, d in RANKS_COLUMNS])
_TOLD = 10  # ranks of which a note says what they lost
_SECONDS = ("busy", "comm", "exposed_comm", "experts")


def compare(ranks: Iterable[Gathered], one_clock: bool = False) -> tuple[pa.Table, dict[str, Any]]:
    """(the table of RANKS_COLUMNS, the summary) of the ranks; one is held at a time, their collectives in files.

    With `one_clock` their moments are by one clock already.
    """
    with tempfile.TemporaryDirectory(prefix="moetrace-") as folder:
        steps: dict[int, dict[str, IntArray]] = {}
        loads, world, arrivals = Loads(), 1, Arrivals(Path(folder))
        reach = np.zeros(3, dtype=np.int64)
        lost: dict[int, tuple[str, ...]] = {}
        for one in ranks:
            world = max(world, one.rank + 1, one.world)
            steps[one.rank] = one.steps
            arrivals.add(one)
            loads.add(one)
            reach += one.reach
            if one.lost:
                lost[one.rank] = one.lost
        found = arrivals.compared(world, one_clock)
    table = pa.concat_tables(
        [
            _rows(rank, steps[rank], found, loads.of_rank(rank, len(steps[rank]["step"])))
            for rank in sorted(steps)
        ]
    )
    facts = _summary(table, found, loads, world, sorted(steps))
    facts["notes"] += [*_reached(*reach.tolist()), *_lost(lost)]
    return table, facts


def _reached(covered: int, kernels: int, launched: int) -> list[str]:
    """How far the NVTX ranges of all ranks together reach, where their traces have such."""
    if not kernels:
        return []
    return [
        f"{covered:,} of {kernels:,} kernels lie in an NVTX range, by their launch; the launch of {launched:,} was recorded"
    ]


def _lost(lost: Mapping[int, Sequence[str]]) -> list[str]:
    """What of the ranks' traces was lost or left out, of the first of them in words."""
    said = [f"rank {rank}: {'; '.join(lost[rank])}" for rank in sorted(lost)]
    if len(said) > _TOLD:
        said[_TOLD:] = [
            f"{len(said) - _TOLD:,} more ranks lost some of their traces: the RUN of each says what"
        ]
    return said


def _rows(rank: int, steps: Mapping[str, IntArray], found: Compared, routed: IntArray | None) -> pa.Table:
    """The rows of one rank."""
    mine, clock = found.sums.get(rank), found.clocks.get(rank)
    nothing = np.zeros(len(steps["step"]), dtype=np.int64)
    columns = {"rank": nothing + rank, **steps, **(mine or dict.fromkeys(SUMS, nothing))}
    columns["clock_offset_ns"] = clock.ahead(steps["start_ns"]) if clock is not None else nothing
    columns["routed"] = nothing if routed is None else routed
    null = set(SUMS) - {"collectives"} if mine is None else set()
    null |= {"clock_offset_ns"} if clock is None else set()
    null |= {"routed"} if routed is None else set()
    masked = [pa.array(columns[n], t, mask=np.full(len(nothing), n in null)) for n, t, _ in RANKS_COLUMNS]
    return pa.Table.from_arrays(masked, schema=_SCHEMA)


def _summary(
    table: pa.Table, found: Compared, loads: Loads, world: int, ranks: Sequence[int]
) -> dict[str, Any]:
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    edges = np.searchsorted(columns["rank"], [*ranks, world])
    rows = [
        _rank({name: values[low:high] for name, values in columns.items()}, rank, found, loads)
        for rank, low, high in zip(ranks, edges, edges[1:], strict=False)
    ]
    return {
        "schema": "moetrace.ranks/1", "world": world, "missing": sorted(set(range(world)) - set(ranks)), "ranks": rows,
        "skew": found.skew(), "collectives": _collectives(found), "experts_imbalance": _imbalance(columns),
        "experts_load": loads.summary(), "layers": loads.layers(), "notes": [*found.notes(world, ranks), *loads.notes],
    }  # fmt: skip


def _rank(mine: Mapping[str, Any], rank: int, found: Compared, loads: Loads) -> dict[str, Any]:
    """The summary's row of a rank, from its rows of the table."""

    def total(name: str) -> float:
        return float(np.nansum(mine[name].astype(float)))

    clock, compared = found.clocks.get(rank), int(mine["collectives"].sum())
    seconds = {f"{name}_s": total(f"{name}_ns") / 1e9 for name in _SECONDS}
    wait, transfer = total("wait_ns") / 1e9, total("transfer_ns") / 1e9
    known = clock is not None and compared > 0
    return {
        "rank": rank, "steps": len(mine["step"]), "span_s": float(np.median(mine["span_ns"])) / 1e9, **seconds,
        "hidden_comm_s": max(0.0, seconds["comm_s"] - seconds["exposed_comm_s"]),
        "clock_offset_s": float(mine["clock_offset_ns"][0]) / 1e9 if clock is not None and len(mine["step"]) else None,
        "clock_drift_ppm": clock.drift * 1e6 if clock is not None else None,
        "clock_error_s": clock.error_ns / 1e9 if clock is not None else None,
        "clock": {
            "of_rank": found.roots[rank], "at_ns": clock.at_ns, "offset_ns": clock.offset_ns, "drift": clock.drift
        } if clock is not None else None,
        "collectives": compared, "matched_comm_s": wait + transfer, "wait_s": wait if known else None,
        "delayed_s": total("delayed_ns") / 1e9 if known else None, "transfer_s": transfer if known else None,
        "last_share": total("last") / compared if compared else None, "experts_load": loads.share(rank),
    }  # fmt: skip


def _collectives(found: Compared) -> list[dict[str, Any]]:
    """Each collective's own sums, those that take most time first; means are per execution and rank."""
    rows = []
    for name, talk in found.talks.items():
        each = max(1, talk.on_ranks) * 1e9
        rows.append(
            {
                "collective": name, "ranks": talk.ranks, "stride": talk.stride, "count": talk.count,
                "wait_s": talk.wait_ns / each, "transfer_s": talk.transfer_ns / each,
                "skew_s": talk.spread_ns / max(1, talk.count) / 1e9,
                "wait_share": talk.wait_ns / max(1, talk.wait_ns + talk.transfer_ns),
                "total_s": (talk.wait_ns + talk.transfer_ns) / 1e9,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["total_s"])


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
