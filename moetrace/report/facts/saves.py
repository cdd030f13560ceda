"""What twice the memory bandwidth and half the launch cost would save on each machine, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moetrace.report.tables import of, percent

Facts = Mapping[str, Any]
Range = tuple[float, float, float]  # the answer, and the ends of its interval


def saves(facts: Facts, halving: Sequence[Facts]) -> list[tuple[str, str, Range, Range]]:
    """(machine, what it is, what twice the bandwidth saves, what half the launch cost saves), first of the run itself."""
    held, run = facts["attribution"]["hardware"], facts["attribution"]["run"]
    out = []
    if halving:
        out.append(
            (held, " (as recorded)" if run["kind"] == "measured" else "", *_memory_and_launches(halving))
        )
    for m in facts["what_if"]["machines"]:
        if "error" not in m and m["hardware"] != held:
            off = m["high_s"] / m["step_s"] if m["step_s"] else 1.0
            memory, launches = (
                (v, v / off, min(v * off, 0.5)) for v in (m["memory_saves"], m["launch_saves"])
            )
            out.append((m["hardware"], "", memory, launches))
    return out


def shares(row: Facts) -> Range:
    span = of(row["saves_s"], row["saves_share"]) or 0.0
    low, high = (of(row[k], span) or 0.0 for k in ("low_s", "high_s"))
    return float(row["saves_share"]), low, high


def _memory_and_launches(
    halving: Sequence[Facts],
) -> tuple[Range, Range]:
    rows = {h["what"]: shares(h) for h in halving}
    none = (0.0, 0.0, 0.0)
    fixed, waits = rows.get("fixed cost per op", none), rows.get("launch waits", none)
    return rows.get("memory bandwidth", none), (fixed[0] + waits[0], fixed[1] + waits[1], fixed[2] + waits[2])


def verdict(memory: Range, launches: Range) -> str:
    if memory[1] > launches[2]:
        return "bandwidth"
    if launches[1] > memory[2]:
        return "fewer launches"
    return "bandwidth, probably" if memory[0] > launches[0] else "fewer launches, probably"


def within(value: Range) -> str:
    middle, low, high = (percent(v) for v in value)
    return middle if low == middle == high else f"{middle} ({low} to {high})"
