"""What is printed of a grid: how many scenarios there were, and the best of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from moetrace.replay.grid.choose import DEVICE, USER, Limits
from moetrace.replay.grid.plan import Plan
from moetrace.replay.grid.recorded import Replays
from moetrace.replay.grid.rows import measure_column
from moetrace.report.tables import DASH, Block, Table, plural
from moetrace.units import seconds

_MOST = 40  # rows of a front that are printed; all of them are in the table and in the JSON


def grid_facts(
    plan: Plan | Replays,
    before: int,
    took_s: float,
    met: int,
    best: pa.Table | None,
    limits: Limits,
    pareto: bool,
    root: Path | None,
) -> dict[str, Any]:
    """A JSON-able summary of a grid (schema ``moetrace.grid-summary/1``): counts, and the rows of the front."""
    rows = best.to_pylist() if best is not None else []
    rates = limits.per_device(best).tolist() if best is not None else []
    for row, rate in zip(rows, rates, strict=True):
        row["budget_per_gpu_per_s"] = rate
    return {
        "schema": "moetrace.grid-summary/1",
        "scenarios": plan.size,
        "done_before": before,
        "seconds": took_s,
        "slo": dict(limits.slo),
        "budget_gpus": limits.gpus,
        "met": met,
        "pareto": rows if pareto else rows_of_interest(rows),
        "knobs": [*plan.knobs, *(plan.varied if isinstance(plan, Plan) else ())],
        "models": len(plan.ask.models) if isinstance(plan, Plan) else 1,
        "written": str(root) if root is not None else None,
    }


def rows_of_interest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a front, its two ends: the fastest for a user and the one with the most tokens of a device."""
    return rows if len(rows) < 3 else [rows[0], rows[-1]]


def grid_report(facts: dict[str, Any]) -> list[Block]:
    """The lines and the table that are printed."""
    done = facts["scenarios"] - facts["done_before"]
    said = f"{plural(facts['scenarios'], 'scenario')}, {done:,} of them worked out in {seconds(facts['seconds'])}"
    lines: list[Block] = [said]
    limits = [f"{name} {limit:g}" for name, limit in facts["slo"].items()]
    if facts["budget_gpus"]:
        limits.append(f"at most {facts['budget_gpus']} GPUs")
    lines.append(
        f"{facts['met']:,} fit their machine" + (f" and keep to {', '.join(limits)}" if limits else "")
    )
    if facts["pareto"]:
        lines.append(_table(facts))
        beyond = _beyond_words(facts["pareto"][:_MOST])
        lines += [f"({i}) the fit did not see {text}" for i, text in enumerate(beyond, 1)]
        if len(facts["pareto"]) > _MOST:
            lines.append(f"the first {_MOST} of {len(facts['pareto']):,} rows")
    if facts["written"]:
        lines.append(f"written: {facts['written']}")
    return lines


def _beyond_words(rows: list[dict[str, Any]]) -> list[str]:
    """What lies beyond the fit in rows, each text once."""
    return list(dict.fromkeys(row["beyond_fit"] for row in rows if row["beyond_fit"]))


def _table(facts: dict[str, Any]) -> Table:
    rows = facts["pareto"][:_MOST]
    beyond = _beyond_words(rows)
    knobs = [name for name in facts["knobs"] if any(row.get(name) is not None for row in rows)]
    columns: dict[str, list[str]] = {}
    if facts["models"] > 1:
        columns["model"] = [row["model"] for row in rows]
    columns["hardware"] = [row["hardware"] for row in rows]
    columns["tok/s/user"] = [f"{row[USER]:,.1f}" for row in rows]
    rate = "budget_per_gpu_per_s" if facts["budget_gpus"] else DEVICE
    columns["tok/s/GPU"] = [f"{row[rate]:,.1f}" for row in rows]
    if any(row["cost_per_million_tokens"] is not None for row in rows):
        columns["cost/Mtok"] = [_figure(row["cost_per_million_tokens"]) for row in rows]
    for name in ("tpot", "ttft"):
        if any(measure_column(name) in row for row in rows):  # a replay of decode steps has no TTFT
            columns[name.upper()] = [seconds(row[measure_column(name)]) for row in rows]
    for name in knobs:
        columns[name] = [DASH if row.get(name) is None else str(row[name]) for row in rows]
    columns["fit"] = [
        f"beyond it ({beyond.index(row['beyond_fit']) + 1})" if row["beyond_fit"] else "within"
        for row in rows
    ]
    body = tuple(zip(*columns.values(), strict=True))
    return Table("best scenarios, the fastest for a user first", tuple(columns), body)


def _figure(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
