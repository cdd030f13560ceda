"""Ranks of one run as blocks: a row per rank, then skew, the straggler, imbalance and what to know of the comparison."""

from __future__ import annotations

from moetrace.report import tables
from moetrace.report.tables import Block, Facts, Table, clean


def ranks_report(facts: Facts) -> list[Block]:
    """Blocks for the summary of `parse.ranks.parse_ranks`."""
    header = (
        "rank", "steps", "median step", "busy", "communication", "exposed", "waiting", "transfer", "last to arrive",
        "delays others", "experts", "clock",
    )  # fmt: skip
    rows = tuple(
        (
            str(r["rank"]),
            str(r["steps"]),
            *(tables.seconds(r[f"{name}_s"]) for name in ("span", "busy", "comm", "exposed_comm", "wait", "transfer")),
            tables.share(r["last_share"]),
            tables.seconds(r["delayed_s"]),
            tables.seconds(r["experts_s"]),
            _signed(r["clock_offset_s"]),
        )
        for r in facts["ranks"]
    )  # fmt: skip
    blocks: list[Block] = [
        f"{len(facts['ranks'])} of {facts['world']} ranks",
        Table("Ranks, sums over their steps", header, rows),
    ]
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
    if spread := facts["experts_imbalance"]:
        blocks.append(
            f"experts: the slowest rank takes {tables.times(spread['median'])} the mean rank's time in a step (median; "
            f"most {tables.times(spread['max'])})"
        )
    return [*blocks, *(f"note: {clean(note)}" for note in facts["notes"])]


def _signed(value: float | None) -> str:
    return (
        tables.DASH
        if value is None
        else "0"
        if not value
        else ("+" if value > 0 else "-") + tables.seconds(abs(value))
    )
