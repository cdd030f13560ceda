"""A prediction as a notebook shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetrace import markup, units


def in_words(summary: Mapping[str, Any]) -> str:
    """A prediction's scenario and machine, and a step of each phase with its interval."""
    steps = [
        f"{phase} step {units.seconds(p['step_s'])} ({units.seconds(p['low_s'])} to {units.seconds(p['high_s'])})"
        for phase, p in summary["phases"].items()
    ]
    return f"{summary['label']} on {summary['hardware']}: {', '.join(steps)}"


def as_html(summary: Mapping[str, Any]) -> str:
    """A prediction's summary as two small tables for a notebook, everything in them escaped."""
    phases = [
        (
            phase,
            *(units.seconds(p[end]) for end in ("step_s", "low_s", "high_s")),
            f"{p['tokens_per_s']:,.0f}" if p["tokens_per_s"] else "-",
        )
        for phase, p in summary["phases"].items()
    ]
    families = [
        (f["family"], units.seconds(f["step_s"]), units.percent(f["share"]), f["bound"] or "-")
        for f in summary["families"]
    ]
    title = f"{summary['label']} on {summary['hardware']}: {summary['anchored']}"
    steps = markup.table(title, ("phase", "step", "80 % low", "80 % high", "tokens/s"), phases)
    return steps + markup.table("Where that step goes", ("family", "time", "share", "bound"), families)
