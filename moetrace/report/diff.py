"""What changed between two runs, as blocks of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetrace.report import tables
from moetrace.report.tables import DASH, Block, Facts, Table, clean, plural, seconds, shorten

_COLUMNS = {"family": ("family",), "op": ("family", "op"), "layer": ("layer",), "op-layer": ("op", "layer")}
TABLES = {"family": "families", "op": "ops", "layer": "layers", "op-layer": "op_layers"}


def diff_report(facts: Facts, by: str, top: int, everything: bool = False) -> list[Block]:
    """Blocks for the facts of a `Diff`: the runs, what differs, the change of a token, rows by `by`, gates, notes."""
    runs = facts["runs"]
    blocks: list[Block] = [f"{side}: {tables.identity(runs[side])}" for side in ("before", "after")]
    blocks += [
        f"differs: {d['what']} {_said(d['before'])} -> {_said(d['after'])}" for d in facts["differences"]
    ]
    blocks.append(headline(facts))
    rows = facts[TABLES[by]]
    # Too few steps to tell noise: then every row is worth a look.
    blind = all(row["low_s"] is None for row in rows)
    shown = [row for row in rows if row["sure"] or everything or (blind and row["change_s"])]
    lines = _lines(by, shown)
    if lines:
        blocks.append(_table(facts, by, lines[:top]))
    blocks += _left_out(facts, rows, lines, top, everything)
    blocks += [gate_line(gate, facts["confidence"]) for gate in facts["gates"]]
    return blocks + tables.notes(facts)


def headline(facts: Facts) -> str:
    """What became of the time that a token costs; also of a decode step, where that is another."""
    if facts["tpot_of"] == "steps":
        return _headline(facts)
    step = facts["metrics"]["step"]
    line = f"decode step: {_became(step, facts['confidence'])}"
    if facts["tpot_of"] == "none":
        return f"{line}; tpot is not compared: prompts, the host's time or drafting are in it, and it is not known of both"
    tpot = facts["metrics"]["tpot"]
    change = percent_change(tpot["change"]) if tpot["change_s"] else "no change"
    was, now = seconds(tpot["before_s"]), seconds(tpot["after_s"])
    return f"tpot as simulated: {was} -> {now}: {change}; its {line}"


def _headline(facts: Facts) -> str:
    tpot = facts["metrics"]["tpot"]
    what = "tpot" if facts["phase"] == "decode" else f"{step_of(facts)}, with the wait before it"
    return f"{what}: {_became(tpot, facts['confidence'])}"


def _became(metric: Facts, confidence: float) -> str:
    """A metric before and after, its change, and whether that is noise."""
    line = f"{seconds(metric['before_s'])} -> {seconds(metric['after_s'])}"
    if metric["change_s"] == 0:
        return f"{line}: no change"
    line += f": {percent_change(metric['change'])} ({interval(metric, confidence)})"
    return line if metric["sure"] else f"{line}{beside(metric)}"


def step_of(facts: Facts) -> str:
    """What the compared steps are called: by their phase, where the trace says it."""
    return "step" if facts["phase"] == "unknown" else f"{facts['phase']} step"


def beside(change: Facts) -> str:
    """What is said of a change that is not sure; nothing where there were too few steps to tell it from noise."""
    return ": within noise" if change["low_s"] is not None else ""


def _said(value: object) -> str:
    """What a run is said to be; a mean that is whole without its decimals."""
    return f"{value:,.6g}" if isinstance(value, float) else clean(str(value))


def _lines(by: str, rows: Sequence[Facts]) -> list[tuple[str, ...]]:
    """The lines of a table: a row each, but one for all layers of an op in which the same is read, as in predictions."""
    alike: dict[tuple[str, ...], list[Facts]] = {}
    for i, row in enumerate(rows):
        figures = (
            seconds(row["before_s"]),
            seconds(row["after_s"]),
            signed(row["change_s"]),
            f"{signed(row['low_s'])} to {signed(row['high_s'])}" if row["low_s"] is not None else DASH,
            percent_change(row["change"]),
            _ratio(row["bytes_before"], row["bytes_after"]),
            _ratio(row["bytes_per_s_before"], row["bytes_per_s_after"]),
        )
        one = (cell(row, "op"), "") if by == "op-layer" and row["layer"] is not None else ("", str(i))
        alike.setdefault((*one, *figures), []).append(row)
    return [(*_names(by, some), *figures) for (_, _, *figures), some in alike.items()]


def _names(by: str, rows: Sequence[Facts]) -> list[str]:
    """The first cells of a line."""
    names = [cell(rows[0], name) for name in _COLUMNS[by]]
    if len(rows) > 1:
        layers = sorted(row["layer"] for row in rows)
        whole = layers[-1] - layers[0] == len(layers) - 1
        names[-1] = (
            f"{'each of layers' if whole else f'each of {len(layers)} layers,'} {layers[0]} to {layers[-1]}"
        )
    return names


def _table(facts: Facts, by: str, lines: Sequence[tuple[str, ...]]) -> Table:
    header = (*_COLUMNS[by], "before", "after", "change", "interval", "relative", "bytes", "bytes/s")
    title = f"Time of a mean {clean(step_of(facts))} by {by.replace('-', ' and ')}, largest change first"
    return Table(title, header, tuple(lines), left=len(_COLUMNS[by]))


def cell(row: Facts, name: str) -> str:
    """The name of a row in one of its columns."""
    value = row[name]
    if name == "layer":
        return f"layer {value}" if value is not None else clean(row["family"] or "outside of layers")
    return shorten(str(value)) if value is not None else DASH


def _left_out(
    facts: Facts, rows: Sequence[Facts], shown: Sequence[tuple[str, ...]], top: int, everything: bool
) -> list[Block]:
    out: list[Block] = []
    if len(shown) > top:
        out.append(f"{len(shown) - top} more rows: --top {len(shown)} shows all")
    noise = [row for row in rows if not row["sure"] and row["change_s"] and row["low_s"] is not None]
    if not everything and noise:
        total = signed(sum(row["change_s"] for row in noise))
        out.append(f"{plural(len(noise), 'row')} within noise, {total} together: --all shows them")
    if not shown and not noise:
        out.append("nothing changed")
    return out


def gate_line(gate: Facts, confidence: float) -> str:
    """What became of a gate, in words."""
    said = {
        "failed": "FAILED: beyond the limit",
        "passed": "passed: within the limit",
        "open": "passed: not shown to be beyond the limit, nor within it",
    }[gate["result"]]
    was = f"{seconds(gate['before_s'])} -> " if gate["form"] != "level" else ""
    return (
        f"gate {clean(gate['gate'])}: {said} at {confidence:.4g} confidence: {was}{seconds(gate['after_s'])}, "
        f"{signed(gate['over_by_s'])} from the limit ({signed(gate['low_s'])} to {signed(gate['high_s'])})"
    )


def interval(change: Facts, confidence: float) -> str:
    """The interval of a change as a share of what it was."""
    if change["low_s"] is None:
        return "no interval: too few steps"
    if change["low"] is None:
        return f"{100 * confidence:.4g} % interval {signed(change['low_s'])} to {signed(change['high_s'])}"
    return f"{100 * confidence:.4g} % interval {percent_change(change['low'])} to {percent_change(change['high'])}"


def signed(value: float | None) -> str:
    """Seconds with their sign."""
    if value is None:
        return DASH
    return f"{'-' if value < 0 else '+'}{seconds(abs(value))}" if value else "0"


def percent_change(value: float | None) -> str:
    """A share as a signed percentage; a dash where there was nothing before."""
    if value is None:
        return DASH
    return f"{value:+.1%}".replace("%", " %")


def _ratio(before: Any, after: Any) -> str:
    return percent_change(after / before - 1) if before and after else DASH
