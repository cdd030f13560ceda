"""The ledger of `moetrace validate` as tables: errors by source, model and hardware, and why rows are not simulated."""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.report.tables import (
    DASH,
    INTERVAL_HEADER,
    Block,
    Facts,
    Table,
    clean,
    interval_row,
    number,
    percent,
    plural,
    shorten,
    without_empty,
)

_HEADER = (
    "rows", "predicted", "mean", "median", "bias", "in 80 %",
    "reproduced", "partly", "contradicted", "carried", "not simulated",
)  # fmt: skip
_TITLES = {"source": "By source", "model": "By model", "hardware": "By hardware"}


def ledger_report(facts: Facts) -> list[Block]:
    """Blocks for the summary of a ledger: the whole, each grouping, the reasons."""
    marked = facts["all"]["marked"]
    aside = (
        f" ({plural(marked, 'row')} that the source marks as queue-bound, outlier or flagged are left out)"
        if marked
        else ""
    )
    title = f"Predictions against what was measured: |error|, and its sign in the bias{aside}"
    reasons = tuple((str(r["rows"]), shorten(clean(r["why"]), 120)) for r in facts["reasons"])
    return [
        _table(title, [facts["all"]]),
        *(_table(_TITLES[name], _telling(name, rows)) for name, rows in facts["groups"].items()),
        Table("Not simulated, and why", ("rows", "why"), reasons, left=2),
        *_measured(facts),
    ]


def _measured(facts: Facts) -> list[Block]:
    """Of measured ops: whether intervals hold, and what beats its lower bound; nothing where none were given."""
    blocks: list[Block] = []
    if facts["intervals"]:
        rows = tuple(interval_row(one["family"], one) for one in facts["intervals"])
        title = "80 % intervals of measured ops by family and tokens; widths over the median error"
        blocks.append(Table(title, ("family", *INTERVAL_HEADER), rows, left=2))
        beaten = tuple(
            (
                clean(b["source"]),
                clean(b["hardware"]),
                clean(b["family"]),
                number(b["rows"]),
                f"{b['least']:.2f}",
                clean(b["why"]),
            )
            for b in facts["beaten"]
        )
        if beaten:
            title = "Rows that beat a lower bound though their bytes exceed the cache"
            blocks.append(
                Table(title, ("source", "hardware", "family", "rows", "least", "why"), beaten, left=3)
            )
        else:
            blocks.append("No row whose bytes exceed the cache beats its lower bound")
    return blocks


def _table(title: str, groups: Sequence[Facts]) -> Table:
    table = Table(title, ("", *_HEADER), tuple(_row(group) for group in groups))
    return without_empty(table, *_HEADER[6:])


def _telling(name: str, groups: Sequence[Facts]) -> list[Facts]:
    """All sources, but only the models and machines that something was predicted for."""
    words = ("predicted", "reproduced", "partly", "contradicted")
    return [group for group in groups if name == "source" or any(group[word] for word in words)]


def _row(group: Facts) -> tuple[str, ...]:
    bias = group["bias"]
    return (
        shorten(group["name"], 44) or DASH,
        number(group["rows"]),
        number(group["predicted"]),
        percent(group["mean_error"]),
        percent(group["median_error"]),
        DASH if bias is None else f"{100 * bias:+.1f} %",
        percent(group["within"]),
        *(
            number(group[name])
            for name in ("reproduced", "partly", "contradicted", "carried", "not_simulated")
        ),
    )
