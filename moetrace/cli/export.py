"""``moetrace export``: RUN -> a timeline for a viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moetrace.cli.options import (
    force_option,
    hardware_option,
    open_source,
    output_option,
    quiet_option,
    reading_options,
    run_argument,
)


@click.command()
@run_argument
@click.option(
    "--perfetto", is_flag=True, required=True, help="Chrome trace JSON, which ui.perfetto.dev opens."
)
@output_option("FILE", "File to write; a name that ends in .gz is compressed.", required=True)
@hardware_option("Machine whose bounds to put on the ops; the default is the one it ran on.")
@click.option(
    "--predict",
    "predicted",
    metavar="NAME|RUN",
    multiple=True,
    help="Put a prediction beside it: on a machine (see 'moetrace profiles'), or one that 'replay -o' wrote; repeatable.",
)
@reading_options
@force_option
@quiet_option
def export(
    source: Path,
    perfetto: bool,
    output: Path,
    hardware: str | None,
    predicted: tuple[str, ...],
    reading: dict[str, Any],
    force: bool,
) -> None:
    """Write a run's timeline for a viewer such as Perfetto.

    One track per rank and stream, with tracks for steps, layers and counters (bandwidth, FLOP rate, distinct
    experts) above them.
    """
    from moetrace import attribute, load, load_hardware, replay
    from moetrace.files import check_output, is_run, lone_run, url_of
    from moetrace.report import terminal
    from moetrace.report.perfetto import write_timeline

    check_output(output, force, ours=())  # before the work
    run = open_source(source, **reading)
    name = hardware or run.meta.hardware
    beside = [
        load(other)
        if is_run(lone_run(Path(other))) or url_of(other)
        else replay(run, load_hardware(other)).run
        for other in predicted
    ]
    events = write_timeline(run, output, attribute(run, load_hardware(name)) if name else None, beside, force)
    terminal.show([f"written: {output} ({events:,} events; open it at https://ui.perfetto.dev)"])
