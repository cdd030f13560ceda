"""``moetrace show``: a quick look at a RUN; writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moetrace.cli.attribute import PHASES, ROWS
from moetrace.cli.options import (
    hardware_option,
    json_option,
    named_machines,
    open_source,
    predicted_option,
    quiet_option,
    reading_options,
    run_argument,
)


@click.command()
@run_argument
@click.option(
    "--by", type=click.Choice(list(ROWS)), default="family", show_default=True, help="What a row is."
)
@click.option(
    "--top", metavar="N", type=click.IntRange(min=1), default=10, show_default=True, help="Rows to print."
)
@click.option("--phase", type=click.Choice(PHASES), help="Steps to sum up; the default is decode if any.")
@hardware_option("Machine to hold it against; the default is the one it ran on.")
@predicted_option
@reading_options
@json_option
@quiet_option
def show(
    source: Path,
    by: str,
    top: int,
    phase: str | None,
    hardware: str | None,
    predicted: tuple[str, ...],
    reading: dict[str, Any],
    as_json: bool,
) -> None:
    """Take a quick look at a run: the answers, and where the time goes."""
    from moetrace import load_hardware
    from moetrace.report import quick, terminal
    from moetrace.report.facts import report_facts

    machine = load_hardware(hardware) if hardware else None
    machines = named_machines(predicted)
    run = open_source(source, **reading)
    facts, _ = report_facts(run, machine, machines, short=True)
    if as_json:
        terminal.show_json(quick.show_facts(facts, ROWS[by], phase, top))
    else:
        terminal.show(quick.show_report(facts, by, ROWS[by], phase, top))
