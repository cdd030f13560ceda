"""Ranks of one run as blocks: a row per rank, then skew, the straggler, imbalance and what to know of the comparison."""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.report import tables
from moetrace.report.attributed import MOST_DEVICES
from moetrace.report.tables import Block, Facts, Table, clean

_TOP = 6


def ranks_report(facts: Facts) -> list[Block]:
    """Blocks for the summary of `parse.ranks.parse_ranks`."""
    header = (
        "rank", "steps", "median step", "busy", "communication", "exposed", "waiting", "transfer", "last to arrive",
        "delays others", "experts", "expert load", "clock",
    )  # fmt: skip
    rows = tuple(
        (
            str(r["rank"]),
            str(r["steps"]),
            *(tables.seconds(r[f"{name}_s"]) for name in ("span", "busy", "comm", "exposed_comm", "wait", "transfer")),
            tables.share(r["last_share"]),
            tables.seconds(r["delayed_s"]),
            tables.seconds(r["experts_s"]),
            tables.DASH if r["experts_load"] is None else tables.times(r["experts_load"]),
            _clock(r),
        )
        for r in facts["ranks"][:MOST_DEVICES]
    )  # fmt: skip
    blocks: list[Block] = [
        f"{len(facts['ranks'])} of {facts['world']} ranks",
        Table("Ranks, sums over their steps", header, rows),
    ]
    if (more := len(facts["ranks"]) - MOST_DEVICES) > 0:
        blocks.append(f"{more} more ranks: --json has all")
    if skew := facts["skew"]:
        blocks.append(
            f"skew: the last rank arrives at a collective {tables.seconds(skew['median_s'])} behind the first (median; "
            f"95th percentile {tables.seconds(skew['p95_s'])}, most {tables.seconds(skew['max_s'])})"
        )
        slow = max(facts["ranks"], key=lambda r: r["delayed_s"] or 0)
        blocks.append(
            f"straggler: the others wait {tables.seconds(slow['delayed_s'])} for rank {slow['rank']}, which is the last "
            f"to arrive in {tables.share(slow['last_share'])} of its collectives"
        )
    blocks += _by_collective(facts["collectives"])
    if load := facts["experts_load"]:
        blocks.append(
            f"expert load: rank {load['busiest_rank']} of {load['ep']} is chosen most; in a layer of a step the busiest rank "
            f"has {tables.times(load['median'])} the mean rank's choices (median; most {tables.times(load['max'])}), "
            f"from {load['source']}"
        )
    blocks += _by_layer(facts["layers"])
    if spread := facts["experts_imbalance"]:
        blocks.append(
            f"experts: the slowest rank takes {tables.times(spread['median'])} the mean rank's time in a step (median; "
            f"most {tables.times(spread['max'])})"
        )
    return [*blocks, *(f"note: {clean(note)}" for note in facts["notes"])]


def _by_collective(rows: Sequence[Facts]) -> list[Block]:
    """What each collective takes, waiting and transfer apart; the first ones."""
    if not rows:
        return []
    header = ("collective", "group", "count", "waiting", "transfer", "waiting share", "skew")
    table = tuple(
        (
            clean(r["collective"].partition(" ranks")[0]),
            f"{r['ranks']} ranks" + (f", every {r['stride']}" if r["stride"] > 1 else ""),
            f"{r['count']:,}",
            *(tables.seconds(r[f"{name}_s"]) for name in ("wait", "transfer")),
            tables.share(r["wait_share"]),
            tables.seconds(r["skew_s"]),
        )
        for r in rows[:_TOP]
    )
    return [Table("Collectives, means per execution and rank", header, table, left=2)]


def _by_layer(rows: Sequence[Facts]) -> list[Block]:
    """The layers in which the busiest rank is furthest above the mean one."""
    worst = sorted(rows, key=lambda r: -(r["choices"] or r["time"] or 0))[:_TOP]
    if not worst:
        return []

    def of(value: float | None, rank: int | None) -> tuple[str, str]:
        return (
            tables.DASH if value is None else tables.times(value),
            tables.DASH if rank is None else str(rank),
        )

    header = ("layer", "choices", "busiest rank", "experts' time", "slowest rank")
    table = tuple(
        (str(r["layer"]), *of(r["choices"], r["busiest_rank"]), *of(r["time"], r["slowest_rank"]))
        for r in worst
    )
    return [Table("Layers with the most uneven experts: the busiest rank over the mean rank", header, table)]


def _clock(row: Facts) -> str:
    """Offset of a rank's clock, and its drift where there is one."""
    drift = row["clock_drift_ppm"]
    return _signed(row["clock_offset_s"]) + (f" {drift:+.2f} ppm" if drift else "")


def _signed(value: float | None) -> str:
    return (
        tables.DASH
        if value is None
        else "0"
        if not value
        else ("+" if value > 0 else "-") + tables.seconds(abs(value))
    )
