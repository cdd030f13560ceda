"""What a calibration found: one row per fitted key, with its error on shapes that the fit did not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetrace.report.tables import INTERVAL_HEADER, Block, Table, interval_row


def report(facts: Mapping[str, Any]) -> list[Block]:
    """A table of the groups, and what could not be fitted, of a ``moetrace.calibrate/1`` summary."""
    rows = tuple(
        (
            g["key"],
            g["form"],
            ", ".join(g["kernels"]),
            str(g["rows"]),
            str(g["shapes"]),
            f"{100 * g['held_out_mean']:.1f} %",
            f"{100 * g['held_out_median']:.1f} %",
            f"{100 * g['error']:.0f} %",
            str(len(g["fitted"])),
            ", ".join(g["kept"]) or "none",
        )
        for g in facts["groups"]
    )
    header = (
        "key",
        "form",
        "kernels",
        "rows",
        "shapes",
        "mean",
        "median",
        "80 %",
        "fitted",
        "not determined",
    )
    title = f"Fitted on {facts['hardware']}; errors are those of whole shapes left out"
    refused = [f"not fitted: {key}: {why}" for key, why in facts["refused"].items()]
    return [Table(title, header, rows, left=3), _intervals(facts), *refused]


def _intervals(facts: Mapping[str, Any]) -> Table:
    """Whether the 80 % intervals hold, by key and decade of tokens."""
    rows = tuple(
        interval_row(g["key"], one)
        for g in facts["groups"]
        for one in g["coverage"]
        if one["decade"] is None or len(g["coverage"]) > 2
    )
    title = "80 % intervals drawn from half of the shapes, on the other half; widths over the median error"
    return Table(title, ("key", *INTERVAL_HEADER), rows, left=2)
