"""A diagnosis as blocks: the questions with their answers, then what to do, then the command."""

from __future__ import annotations

from moetrace.report.tables import DASH, Block, Facts, Table, clean, identity, notes


def doctor_report(facts: Facts) -> list[Block]:
    """Blocks for a `parse.doctor.diagnose`."""
    engine = facts["engine"] or "no engine was recognised (--engine says it)"
    answers = facts["answers"]
    rows = tuple((clean(a["question"]), a["answer"], clean(a["why"]) or DASH) for a in answers)
    blocks: list[Block] = [
        identity(facts["run"]),
        f"recorded by {facts['recorded_by']}; engine: {engine}",
        Table("What this trace can answer", ("question", "answered", "why not"), rows, left=3),
    ]
    if facts["whole"]:
        return [*blocks, "nothing is missing", *notes(facts)]
    fixes: dict[str, str] = {a["fix"]: a["question"] for a in reversed(answers) if a["fix"]}
    blocks.append("What would answer the rest:")
    blocks += [f"  {clean(question)} {clean(fix)}" for fix, question in reversed(fixes.items())]
    return [*blocks, f"to capture it again: {facts['capture']}", *notes(facts)]
