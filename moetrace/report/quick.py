"""A quick look at a run: the answers of the report as tables, then one table of where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetrace.report import attributed, tables
from moetrace.report.tables import Block, Facts, Table, clean

SCHEMA = "moetrace.show/1"


def show_report(facts: Facts, by: str, table: str, phase: str | None, top: int) -> list[Block]:
    """Blocks for the facts of a report: who and what, the answers, the rows of one table, what was left out."""
    held = facts["attribution"]
    rows, what = attributed.rows_of(held, table, phase)
    blocks: list[Block] = [
        tables.coverage_line(held["coverage"], tables.device_word(held["run"])),
        tables.identity(held["run"]),
    ]
    blocks.append(_answers(facts["answers"]))
    blocks += ["How sure:", *(f"  {clean(a['question'])} {clean(a['sure'])}" for a in facts["answers"])]
    if by == "step":
        blocks.append(attributed.step_table(rows[:top]))
    else:
        blocks.append(attributed.bound_table(what, held["hardware"], by, rows[:top]))
    if len(rows) > top:
        blocks.append(f"{len(rows) - top} more rows: --top {len(rows)} shows all")
    return [*blocks, *tables.notes(held)]


def _answers(answers: Sequence[Facts]) -> Table:
    """Each question with its short answer, and below it the lines that it rests on."""
    rows: list[tuple[str, str, str]] = []
    for answer in answers:
        rows.append((clean(answer["question"]), clean(answer["short"]), ""))
        rows += [(f"  {clean(x['label'])}", clean(x["value"]), clean(x["note"])) for x in answer["lines"]]
    return Table("Answers", ("question", "answer", "what it says"), tuple(rows), left=3)


def show_facts(facts: Facts, table: str, phase: str | None, top: int) -> dict[str, Any]:
    """What `show_report` says, JSON-able: answers with their lines, the rows of the table, coverage and the run."""
    held = facts["attribution"]
    rows, what = attributed.rows_of(held, table, phase)
    return {
        "schema": SCHEMA,
        "run": held["run"],
        "hardware": held["hardware"],
        "coverage": held["coverage"],
        "answers": facts["answers"],
        "steps_of": what,
        "table": table,
        "rows": rows[:top],
        "rows_left_out": max(0, len(rows) - top),
        "notes": held["notes"],
    }
