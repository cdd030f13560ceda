"""``moetrace validate``: published figures and measured tables -> the ledger of predictions and their errors."""

from __future__ import annotations

from pathlib import Path

import click

from moetrace.cli.options import PATH, force_option, json_option, output_option


@click.command()
@click.option(
    "--on",
    "files",
    metavar="FILE",
    type=PATH,
    multiple=True,
    help="Score this too: a CSV of figures, or a Parquet file of measured ops; repeatable (docs/validate.md).",
)
@output_option("FILE", "Parquet file to write: a row for each figure.")
@force_option
@json_option
def validate(files: tuple[Path, ...], output: Path | None, force: bool, as_json: bool) -> None:
    """Recompute published figures and show how far off the predictions are.

    Every shipped figure has a row: measured, predicted, 80 % interval and error, or why it is not simulated.
    """
    from moetrace.files import check_table_output, table_facts, write_parquet
    from moetrace.report import terminal
    from moetrace.report.ledger import ledger_report
    from moetrace.validate import LEDGER_VERSION, summary
    from moetrace.validate import validate as recompute

    if output is not None:
        check_table_output(output, force)
    with terminal.progress("recomputing") as tell:
        ledger = recompute(files, tell)
    found = summary(ledger)
    if output is not None:
        write_parquet(ledger, output, table_facts("ledger", LEDGER_VERSION))
    if as_json:
        terminal.show_json({**found, "rows": ledger.to_pylist(), "written": str(output) if output else None})
        return
    terminal.show(ledger_report(found))
    if output is not None:
        terminal.show([f"written: {output}"])
