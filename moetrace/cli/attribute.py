"""``moetrace attribute``: RUN x machine -> where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moetrace.cli.options import (
    force_option,
    hardware_option,
    json_option,
    open_source,
    output_option,
    quiet_option,
    reading_options,
    run_argument,
    shown,
)

if TYPE_CHECKING:
    from moetrace.attribute import Attribution

ROWS = {"family": "families", "layer": "layers", "kind": "kinds", "kernel": "kernels", "step": "steps"}
PHASES = ("decode", "verify", "prefill", "mixed", "draft", "all")


@click.command()
@run_argument
@hardware_option("Machine to hold it against; the default is the one it ran on.")
@click.option(
    "--by",
    type=click.Choice(list(ROWS)),
    default="family",
    show_default=True,
    help="What a row of the table is.",
)
@click.option(
    "--top", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print."
)
@click.option(
    "--phase",
    type=click.Choice(PHASES),
    help="Steps to sum up; the default is decode where there is any, else all.",
)
@output_option(
    "FILE",
    "Parquet file to write; the default is RUN/attribution.parquet where there is none yet, and none for a trace.",
)
@reading_options
@force_option
@json_option
@quiet_option
def attribute(
    source: Path,
    hardware: str | None,
    by: str,
    top: int,
    phase: str | None,
    output: Path | None,
    reading: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """Show where the time goes: bound, idle, and what halving each part saves."""
    from moetrace import attribute as explain
    from moetrace import load_hardware
    from moetrace.errors import ProfileError
    from moetrace.report import attributed, terminal

    run = open_source(source, **reading)
    name = hardware or run.meta.hardware
    if name is None:
        raise ProfileError(
            f"{shown(source)} does not say which machine it ran on: give --hw NAME (see 'moetrace profiles')"
        )
    result = explain(run, load_hardware(name))
    said = _kept(result, output, run.path, force)
    if as_json:
        terminal.show_json(dict(result.summary))
    else:
        terminal.show([*attributed.attribute_report(result.summary, by, ROWS[by], phase, top), said])


def _kept(result: Attribution, output: Path | None, run: Path | None, force: bool) -> str:
    """Writes the table to `output`, else into the RUN's folder, and says so.

    A file that holds the same already is left as it is. So is another attribution in the RUN's folder, without `force`: the
    question was what is printed, not a file.
    """
    from moetrace.files import check_table_output

    path = output or (run / "attribution.parquet" if run else None)
    if path is None:
        return "nothing written: give -o FILE to keep it"
    if path.is_file() and not force and result.is_in(path):
        return f"unchanged: {path}"
    if output is None and path.is_file() and not force:
        return f"nothing written: {path} holds another attribution; give --force to replace it, or -o FILE"
    check_table_output(path, force)
    result.save(path)
    return f"written: {path}"
