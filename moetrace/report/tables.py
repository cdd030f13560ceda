"""Summaries to blocks of text and plain rows; nothing here knows the terminal.

The summaries are the JSON-able dicts of `parse.summary` and `Attribution.summary`; a value that is None
prints as a dash. Text from outside (kernel and file names) passes `clean` before it is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moetrace import units

Facts = Mapping[str, Any]
DASH = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of texts; the first `left` columns are words, the others set to the right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


Block = Table | str


def without_empty(table: Table, *names: str) -> Table:
    """The table without those of the named columns in which every cell says none."""
    return without(table, {"0", "0 %", "0.0 %", DASH}, *names)


def without(table: Table, telling_nothing: Collection[str], *names: str) -> Table:
    """The table without those of the named columns in which every cell is one of the texts that tell nothing."""
    kept = [
        i
        for i, name in enumerate(table.header)
        if name not in names or any(row[i] not in telling_nothing for row in table.rows)
    ]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, header=tuple(table.header[i] for i in kept), rows=rows)


def clean(text: str) -> str:
    """The text on one line: control, bidirectional and other unprintable characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(text: str, width: int = 60) -> str:
    """A long name with its middle left out; both ends of a kernel name tell."""
    if len(text) > 2 * width:  # what lies between is left out whatever it is, and may be long
        text = text[:width] + text[-width:]
    text = clean(text)
    if len(text) <= width:
        return text
    head = (width - 3) * 2 // 3
    return f"{text[:head]}...{text[head + 3 - width :]}"


def _or_dash(show: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: DASH if value is None or not math.isfinite(value) else show(value)


seconds = _or_dash(units.seconds)
percent = _or_dash(units.percent)
share = _or_dash(lambda value: units.percent(value, 0))
rate = _or_dash(lambda value: units.count(value, "B/s"))
size = _or_dash(lambda value: units.count(value, "B"))
flops = _or_dash(lambda value: units.count(value, "FLOP"))
number = _or_dash(lambda value: f"{value:,.0f}")
decimal = _or_dash(lambda value: f"{value:,.1f}")
times = _or_dash(lambda value: f"{value:#.3g}".rstrip(".") + " x" if value < 999.5 else f"{value:,.0f} x")


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def of(part: float | None, whole: float | None) -> float | None:
    """part / whole, or None where either is not known."""
    return None if part is None or not whole else part / whole


def coverage_line(coverage: Facts, device: str = "GPU") -> str:
    """The statement that heads every summary: how much of the device's time is understood."""
    line = (
        f"coverage: {percent(coverage['named_share'])} of {device} time named, "
        f"{percent(coverage['bytes_share'])} with bytes, {percent(coverage['layer_share'])} with a layer"
    )
    unnamed = [f"{shorten(u['kernel'])} ({percent(u['share'])})" for u in coverage.get("unnamed", ())][:3]
    return f"{line}; unnamed: {', '.join(unnamed)}" if unnamed else line


def parse_report(facts: Facts) -> list[Block]:
    """Blocks for a `parse.summary`: coverage, what ran, the steps, the op families, notes."""
    run = facts["run"]
    where = device_word(run)
    blocks: list[Block] = [coverage_line(facts["coverage"], where), identity(run)]
    blocks += _phase_lines(facts["steps"])
    blocks.append(_family_table(facts["families"], where))
    return blocks + notes(facts)


def _family_table(families: Sequence[Facts], device: str) -> Table:
    """Families with their work; the column `with bytes`, the share of time behind it, where that is not all."""
    rows = tuple(
        (
            clean(f["family"]),
            number(f["count"]),
            seconds(f["busy_s"]),
            percent(f["share"]),
            percent(f.get("bytes_share")),
            flops(f.get("flops")),
            size(f.get("bytes")),
            decimal(of(f.get("flops"), f.get("bytes"))),
            rate(f.get("bytes_per_s")),
        )
        for f in families
    )
    header = ("family", "ops", "time", "share", "with bytes", "FLOPs", "bytes", "FLOP/byte", "achieved")
    table = Table(f"Where the {device} time of all steps went, by op family", header, rows)
    return without(table, {"100.0 %"}, "with bytes")


def device_word(run: Facts) -> str:
    return {"gpu": "GPU", "cpu": "CPU"}.get(run.get("device_class", "gpu"), "device")


def identity(run: Facts) -> str:
    model = run.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    where = run.get("hardware") or run.get("device") or "an unknown device"
    layers = f", {run['layers']} layers" if run.get("layers") else ""
    what = f"{run['kind']} run of {clean(name or 'an unknown model')}{layers}"
    return f"{what} on {clean(where)}, from {clean(run['source'])}"


def _median(values: Iterable[float | None]) -> float | None:
    known = sorted(v for v in values if v is not None)
    middle = len(known) // 2
    return None if not known else known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2


def _phase_lines(steps: Sequence[Facts]) -> list[str]:
    """One line per phase: number of steps and their median times."""
    if not steps:
        return ["steps: none found"]
    phases: dict[str, list[Facts]] = {}
    for step in steps:
        phases.setdefault(step.get("phase") or "phase not known", []).append(step)
    return [
        f"{clean(phase)}: {plural(len(group), 'step')}, "
        f"median span {seconds(_median(s.get('span_s') for s in group))}, "
        f"busy {seconds(_median(s.get('busy_s') for s in group))}, "
        f"idle {percent(_median(s.get('idle_share') for s in group))}{_distinct(group)}"
        for phase, group in phases.items()
    ]


def _distinct(steps: Sequence[Facts]) -> str:
    """How many distinct experts a layer's tokens chose in a step, where that was counted; the JSON has each."""
    counted = [count for step in steps for count in step.get("distinct_experts", {}).values()]
    if not counted:
        return ""
    low, high = min(counted), max(counted)
    span = f"{low}" if low == high else f"{low} to {high} (mean {decimal(sum(counted) / len(counted))})"
    return f", {span} distinct experts counted per layer"


def notes(facts: Facts) -> list[Block]:
    return [f"note: {clean(note)}" for note in facts.get("notes", ())]


INTERVAL_HEADER = ("tokens", "rows", "within", "half-width", "80 % of errors", "median error")


def interval_row(name: str, one: Facts) -> tuple[str, ...]:
    """A row of how an interval does in one decade of tokens (`calibrate.interval.Coverage`)."""
    decade = one["decade"]
    tokens = "all" if decade is None else f"{10**decade:,} to {10 ** (decade + 1) - 1:,}"
    told = (f"{one['width']:.1f}", f"{one['spread']:.1f}", percent(one["median"]))
    return clean(name), tokens, number(one["rows"]), percent(one["covered"]), *told
