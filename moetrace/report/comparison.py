"""Predictions side by side: one row per machine and scenario, then what they assume."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from moetrace.report.tables import (
    DASH,
    Block,
    Facts,
    Table,
    clean,
    decimal,
    number,
    of,
    seconds,
    share,
    size,
    times,
)
from moetrace.run import main_phase

_TELLING = 0.5  # distinct experts: from there on, routing makes a difference
_SHARE = re.compile(r"(\d+(?:\.\d+)?) %")


def replay_report(predictions: Sequence[Facts], source: str) -> list[Block]:
    """Blocks for the `Prediction.summary` dicts of one run: a row each, then what they assume."""
    phases = [_main_phase(p) for p in predictions]
    anchored = [p["anchored"] != "unanchored" for p in predictions]
    measured = all(anchored) and all(phase.get("measured_s") for _, phase in phases)
    common = _common_settings(predictions)
    rows = []
    for index, (facts, (_, phase)) in enumerate(zip(predictions, phases, strict=True), 1):
        base = phase.get("measured_s") if measured else phases[0][1].get("step_s")
        behind = (share(facts["anchored_share"]),) if any(anchored) else ()
        rows.append((str(index), *_row(facts, phase, common), *behind, times(of(phase.get("step_s"), base))))
    header = (
        "row",
        "machine",
        "scenario",
        "most time",
        "bound",
        "idle",
        "step",
        "80 % interval",
        "tokens/s",
        "distinct",
        *(("anchored",) if any(anchored) else ()),
        "vs measured" if measured else "vs row 1",
    )
    what = " or ".join(sorted({name for name, _ in phases}))
    edits = f" with {clean(' '.join(common))}" if common else ""
    title = f"{clean(source)} replayed{edits}: one {what} step{_anchoring(predictions)}"
    return [
        Table(title, header, tuple(rows), left=5),
        *_waiting_lines(predictions),
        *_capacity_lines(predictions),
        *routing_blocks(predictions, "step"),
        *accuracy_lines(predictions),
        *assumption_lines(predictions),
    ]


def _waiting_lines(predictions: Sequence[Facts]) -> list[Block]:
    """What ranks wait for each other, where several were recorded: of a mean step, the mean rank and the extremes."""
    out: list[Block] = []
    for index, facts in enumerate(predictions, 1):
        if rows := facts["ranks"]:
            waits, was = ([r[name] for r in rows] for name in ("wait_s", "recorded_wait_s"))
            most, least = (choose(rows, key=lambda r: r["work_s"]) for choose in (max, min))
            out.append(
                f"row {index}: {len(rows)} ranks; a rank waits {seconds(sum(waits) / len(rows))} of a mean step for later "
                f"ones (as recorded {seconds(sum(was) / len(rows))}); rank {most['rank']} works longest "
                f"({seconds(most['work_s'])}), rank {least['rank']} shortest ({seconds(least['work_s'])})"
            )
    return out


def _common_settings(predictions: Sequence[Facts]) -> list[str]:
    """Settings that all rows share, if they differ in others: those are said once, above the table."""
    settings = [p["label"].split() for p in predictions]
    shared = [s for s in settings[0] if all(s in other for other in settings)] if settings else []
    return shared if len(predictions) > 1 else []


def _main_phase(facts: Facts) -> tuple[str, Facts]:
    """The decode phase if there is one: it is what the project is about."""
    phases: Mapping[str, Facts] = facts["phases"]
    name = main_phase(phases) or "decode"
    return name, phases.get(name, {})


def _anchoring(predictions: Sequence[Facts]) -> str:
    kinds = {p["anchored"] for p in predictions}
    if kinds == {"unanchored"}:
        return (
            " (unanchored: times are the model's, no measurement on this class of device stands behind them)"
        )
    return (
        " (the column 'anchored' is the share of time that a measurement stands behind)"
        if kinds != {"anchored"}
        else ""
    )


def _row(facts: Facts, phase: Facts, common: Sequence[str]) -> tuple[str, ...]:
    top = max(facts["families"], key=lambda f: f["step_s"] or 0.0, default=None)
    distinct = facts.get("distinct") or {}
    settings = " ".join(s for s in facts["label"].split() if s not in common)
    idle = float(phase.get("idle_share") or 0.0)
    # The device waits longer than it does anything else.
    waits = top is not None and idle > top["share"] * (1 - idle)
    return (
        clean(facts["hardware"]),
        clean(settings or "as recorded" if not common else settings or DASH),
        f"{clean(top['family'])} ({share(top['share'])})" if top else DASH,
        "idle" if waits else clean(str(top["bound"])) if top else DASH,
        share(idle) if phase.get("idle_share") is not None else DASH,
        seconds(phase.get("step_s")),
        interval(phase.get("low_s"), phase.get("high_s")),
        number(phase.get("tokens_per_s")),
        f"{decimal(distinct.get('mean_distinct'))}/{number(distinct['experts'])}"
        if distinct.get("experts")
        else DASH,
    )


def interval(low: float | None, high: float | None) -> str:
    """``6.5 - 11.4 ms``; the unit is said twice only where it differs."""
    low_text, high_text = seconds(low), seconds(high)
    if low_text.split()[1:] == high_text.split()[1:]:
        low_text = low_text.split()[0]
    return f"{low_text} - {high_text}"


def _capacity_lines(predictions: Sequence[Facts]) -> list[Block]:
    lines: list[Block] = []
    for index, facts in enumerate(predictions, 1):
        memory = facts.get("memory") or {}
        several = (facts.get("wafers") or 1) > 1
        if memory.get("fits") is False:
            said, holder = (
                (f"takes {facts['wafers']} wafers", "one") if several else ("does not fit", "the machine")
            )
            lines.append(
                f"row {index} {said}: it needs {size(memory['needed_bytes'])}, "
                f"{holder} has {size(memory['capacity_bytes'])}"
            )
        elif several:
            lines.append(f"row {index} takes {facts['wafers']} wafers")
    return lines


def routing_blocks(predictions: Sequence[Facts], measure: str) -> list[Block]:
    """Of rows whose routing is not known, what they would be with text's; `measure` is what is set beside (``TPOT``)."""
    rows = []
    for index, facts in enumerate(predictions, 1):
        other = facts.get("other_routing")
        if other and abs(facts["distinct"]["mean_distinct"] - other["mean_distinct"]) >= _TELLING:
            rows.append(
                (
                    str(index),
                    decimal(facts["distinct"]["mean_distinct"]),
                    decimal(other["mean_distinct"]),
                    number(facts["distinct"]["experts"]),
                    seconds(other["value"]),
                    interval(other["low"], other["high"]),
                )
            )
    if not rows:
        return []
    title = (
        "Routing is not known: tokens are assumed to choose their experts uniformly. Text touches fewer, which the "
        "intervals above do not cover; with --set routing=skewed:"
    )
    return [Table(title, ("row", "distinct", "skewed", "of", measure, "80 % interval"), tuple(rows), left=0)]


def accuracy_lines(predictions: Sequence[Facts]) -> list[Block]:
    """What was published of the accuracy that the rows' edits cost, each once."""
    said: dict[str, None] = {}
    for facts in predictions:
        for point in facts.get("accuracy") or ():
            edit, source = clean(f"{point['knob']}={point['value']}"), clean(point["source"])
            said[
                f"  {edit}: {point['percent']:.1f} % against {point['native']:.1f} % as it is ({source})"
            ] = None
    return ["Published accuracy of these edits:", *said] if said else []


def assumption_lines(predictions: Sequence[Facts]) -> list[Block]:
    """What predictions assume, each sentence once, marked with the rows that it holds for if not all.

    Sentences that differ in their shares alone are one, with the least and the most of each share.
    """
    said: dict[str, dict[str, list[int]]] = {}
    for index, facts in enumerate(predictions, 1):
        for text in facts.get("assumptions", ()):
            said.setdefault(_SHARE.sub("%", text), {}).setdefault(text, []).append(index)
    lines: list[Block] = ["Assumptions:"] if said else []
    for place, texts in enumerate(said.values(), 1):
        where = sorted({row for rows in texts.values() for row in rows})
        mark = "" if len(where) == len(predictions) else f" [row {_ranges(where)}]"
        lines.append(f"  {place}. {clean(_of_all(list(texts)))}{mark}")
    return lines


def _of_all(texts: Sequence[str]) -> str:
    """Sentences that differ in their shares alone as one."""
    places = zip(*(_SHARE.findall(text) for text in texts), strict=True)
    ranges = iter([sorted(set(shares), key=float) for shares in places])

    def spread(_: re.Match[str]) -> str:
        shares = next(ranges)
        return f"{shares[0]} %" if len(shares) == 1 else f"{shares[0]} to {shares[-1]} %"

    return _SHARE.sub(spread, texts[0])


def _ranges(rows: Sequence[int]) -> str:
    """Ascending numbers in words: ``1-3, 7``."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
