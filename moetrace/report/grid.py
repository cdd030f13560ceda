"""What is printed of a grid: how many scenarios there were, and the best of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from moetrace.replay.grid.choose import DEVICE, USER, Limits, Marked
from moetrace.replay.grid.plan import Plan
from moetrace.replay.grid.recorded import Replays
from moetrace.replay.grid.rows import measure_column
from moetrace.replay.measures import MEASURES
from moetrace.report.tables import DASH, Block, Table, plural
from moetrace.units import seconds

_SLOW, _FAST = 45_000.0, 150_000.0  # scenarios a CPU second (docs/grid.md)
_REASONS = 3  # why scenarios cannot be, that are printed
_MOST = 40  # rows of a front that are printed; all of them are in the table and in the JSON


def grid_facts(
    plan: Plan | Replays,
    before: int,
    took_s: float,
    met: int,
    best: pa.Table | None,
    marked: Marked,
    limits: Limits,
    pareto: bool,
    root: Path | None,
) -> dict[str, Any]:
    """A JSON-able summary of a grid (schema ``moetrace.grid-summary/1``): counts, and the rows of the front."""
    rows = rows_of(best, limits)
    return {
        "schema": "moetrace.grid-summary/1",
        "scenarios": plan.size,
        "done_before": before,
        "seconds": took_s,
        "slo": dict(limits.slo),
        "budget_gpus": limits.gpus,
        "met": met,
        "out_of_memory": marked.short,
        "too_long": marked.long,
        "queued": marked.queued,
        "refused": dict(marked.reasons),
        "pareto": rows if pareto else rows_of_interest(rows),
        "routing_unknown": marked.unrouted,
        "notes": list(plan.notes) if isinstance(plan, Replays) else [],
        "knobs": [*plan.knobs, *(plan.varied if isinstance(plan, Plan) else ())],
        "models": len(plan.ask.models) if isinstance(plan, Plan) else 1,
        "written": str(root) if root is not None else None,
    }


def rows_of(table: pa.Table | None, limits: Limits) -> list[dict[str, Any]]:
    """Scenarios as dicts, with what they give of each device of the budget; none of None."""
    rows: list[dict[str, Any]] = table.to_pylist() if table is not None else []
    rates = limits.per_device(table).tolist() if table is not None else []
    return [{**row, "budget_per_gpu_per_s": rate} for row, rate in zip(rows, rates, strict=True)]


def about_s(scenarios: int) -> str:
    """How long so many take one core, in words: at the rates of docs/grid.md."""
    return f"{seconds(scenarios / _FAST)} to {seconds(scenarios / _SLOW)} of one core"


def rows_of_interest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a front, its two ends: the fastest for a user and the one with the most tokens of a device."""
    return rows if len(rows) < 3 else [rows[0], rows[-1]]


def grid_report(facts: dict[str, Any]) -> list[Block]:
    """The lines and the table that are printed."""
    done = facts["scenarios"] - facts["done_before"]
    said = f"{plural(facts['scenarios'], 'scenario')}, {done:,} of them worked out in {seconds(facts['seconds'])}"
    lines: list[Block] = [said]
    limits = [
        f"{name} {seconds(limit) if MEASURES[name][0] == 's' else f'{limit:g}'}"
        for name, limit in facts["slo"].items()
    ]
    if facts["budget_gpus"]:
        limits.append(f"at most {facts['budget_gpus']} GPUs")
    lines.append(
        f"{facts['met']:,} fit their machine" + (f" and keep to {', '.join(limits)}" if limits else "")
    )
    lines += facts["notes"]
    lines += _refused(facts)
    lines += _by_model(facts)
    if facts["pareto"]:
        shown, cheap = facts["pareto"][:_MOST], facts["cheapest"]
        beyond = _beyond_words([*shown, *cheap])
        lines.append(_table(facts, "best scenarios, the fastest for a user first", shown, beyond))
        if cheap:
            lines.append(_table(facts, "the cheapest output tokens of those that keep to it", cheap, beyond))
        lines += [f"({i}) the fit did not see {text}" for i, text in enumerate(beyond, 1)]
        if len(facts["pareto"]) > _MOST:
            lines.append(f"the first {_MOST} of {len(facts['pareto']):,} rows")
    if facts["routing_unknown"]:
        lines.append(
            f"routing is not known in {facts['routing_unknown']:,} (column routing_source): uniform was assumed; text touches "
            "fewer experts, which the intervals do not cover: add --set routing=uniform,skewed for both"
        )
    if facts["written"]:
        lines.append(f"written: {facts['written']}")
    return lines


def _by_model(facts: dict[str, Any]) -> list[Block]:
    """What is left of each model, or of each edit of one: smaller ones always win on the front, which weighs speed alone."""
    lines: list[Block] = []
    for name, shares in facts["met_by"].items():
        header = (name, "scenarios", "of them keep to it", "most tok/s/user", "most tok/s/GPU")
        rows = [
            (
                value,
                f"{own['scenarios']:,}",
                f"{own['met']:,}",
                *(
                    DASH if own[rate] is None else f"{own[rate]:,.1f}"
                    for rate in ("user_per_s", "per_device_per_s")
                ),
            )
            for value, own in shares.items()
        ]
        lines.append(
            Table(f"by {name}, whose price in quality is on no axis of the front", header, tuple(rows))
        )
    return lines


def _refused(facts: dict[str, Any]) -> list[Block]:
    """What became of scenarios that are no answer: too large for their machine, or none at all, and why."""
    lines: list[Block] = []
    if facts["out_of_memory"]:
        lines.append(f"{facts['out_of_memory']:,} out of memory: column fits")
    if facts["too_long"]:
        lines.append(
            f"{facts['too_long']:,} with sequences longer than their model is made for: column in_context"
        )
    if facts["queued"]:
        lines.append(
            f"{facts['queued']:,} with more prompts than their steps work through (column queued): TPOT holds the wait that a "
            "queue would have before the first token"
        )
    reasons = facts["refused"]
    if reasons:
        lines.append(f"{sum(reasons.values()):,} cannot be: column problem")
        lines += [f"  {count:,}: {reason}" for reason, count in list(reasons.items())[:_REASONS]]
        if len(reasons) > _REASONS:
            lines.append(f"  and {len(reasons) - _REASONS:,} other reasons")
    return lines


def _beyond_words(rows: list[dict[str, Any]]) -> list[str]:
    """What lies beyond the fit in rows, each text once."""
    return list(dict.fromkeys(row["beyond_fit"] for row in rows if row["beyond_fit"]))


def _table(facts: dict[str, Any], title: str, rows: list[dict[str, Any]], beyond: list[str]) -> Table:
    knobs = [name for name in facts["knobs"] if any(row.get(name) is not None for row in rows)]
    columns: dict[str, list[str]] = {}
    if facts["models"] > 1:
        columns["model"] = [row["model"] for row in rows]
    columns["hardware"] = [row["hardware"] for row in rows]
    columns["tok/s/user"] = [f"{row[USER]:,.1f}" for row in rows]
    rate = "budget_per_gpu_per_s" if facts["budget_gpus"] else DEVICE
    columns["tok/s/GPU"] = [f"{row[rate]:,.1f}" for row in rows]
    if any(row.get("wafers") is not None for row in rows):  # each counts as a GPU
        columns["wafers"] = [DASH if row.get("wafers") is None else f"{row['wafers']:.0f}" for row in rows]
    if any(row["cost_per_million_tokens"] is not None for row in rows):
        columns["cost/Mtok"] = [_figure(row["cost_per_million_tokens"]) for row in rows]
    for name in ("tpot", "ttft"):
        if any(measure_column(name) in row for row in rows):  # a replay of decode steps has no TTFT
            columns[name.upper()] = [seconds(row[measure_column(name)]) for row in rows]
    for name in knobs:
        columns[name] = [DASH if row.get(name) is None else str(row[name]) for row in rows]
    if any(row["in_context"] is False for row in rows):
        columns["length"] = ["TOO LONG" if row["in_context"] is False else "within" for row in rows]
    if any(row.get("queued") for row in rows):
        columns["load"] = ["QUEUED" if row["queued"] else "keeps up" for row in rows]
    columns["fit"] = [
        f"beyond it ({beyond.index(row['beyond_fit']) + 1})" if row["beyond_fit"] else "within"
        for row in rows
    ]
    body = tuple(zip(*columns.values(), strict=True))
    return Table(title, tuple(columns), body)


def _figure(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
