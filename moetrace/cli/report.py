"""``moetrace report``: RUN... -> one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from moetrace.cli.options import (
    force_option,
    hardware_option,
    named_machines,
    open_source,
    output_option,
    predicted_option,
    quiet_option,
    reading_options,
    runs_argument,
    shown,
)

# Measured: 288 MB for 217,434 ops, 646 MB for 1,079,792 (docs/report.md).
_BASE_GB, _GB_PER_OP = 0.2, 4.1e-7
_MANY = 1_000_000


@click.command()
@runs_argument
@output_option("FILE", "HTML file to write.", required=True)
@hardware_option("Machine to hold the runs against; the default is the one each ran on.")
@predicted_option
@reading_options
@force_option
@quiet_option
def report(
    sources: tuple[Path, ...],
    output: Path,
    hardware: str | None,
    predicted: tuple[str, ...],
    reading: dict[str, Any],
    force: bool,
) -> None:
    """Write a report to open in a browser: one file, answers first.

    The answers come first, then their evidence: steps, ops, roofline, routing, other machines and n_a.
    """
    from moetrace import load_hardware
    from moetrace.files import check_output
    from moetrace.report import terminal
    from moetrace.report.html import make_report, write_page

    check_output(output, force, ours=())
    machine = load_hardware(hardware) if hardware else None
    machines = named_machines(predicted)
    pages = []
    with terminal.progress("reporting") as tell:
        for done, source in enumerate(sources):
            tell(done / len(sources))
            run = open_source(source, **reading)
            if run.num_rows > _MANY:
                gb = _BASE_GB + run.num_rows * _GB_PER_OP
                said = f"{shown(source)}: {run.num_rows:,} ops are held in memory, about {gb:.1f} GB"
                terminal.show(
                    [f"{said} ('moetrace show' and 'export' need no more for a long run)"], sys.stderr
                )
            pages.append(make_report(run, machine, machines))
    size = write_page(pages, output)
    terminal.show([f"written: {output} ({size / 1e6:.1f} MB; open it in a browser)"])
