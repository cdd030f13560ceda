"""What a calibration found: one row per fitted key, with its error on shapes that the fit did not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetrace.report.tables import Block, Table


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
    return [Table(title, header, rows, left=3), *refused]
