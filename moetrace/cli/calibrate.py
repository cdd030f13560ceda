"""``moetrace calibrate``: measured ops -> a profile with fitted coefficients and their held-out error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from moetrace.cli.options import PATH, force_option, json_option, output_option


@click.command()
@click.argument("measurements", metavar="MEASUREMENTS...", type=PATH, nargs=-1, required=True)
@click.option(
    "--hw", "hardware", metavar="BASE", required=True, help="Profile whose datasheet and assumptions hold."
)
@output_option("PROFILE", "Profile (.toml) to write; without it nothing is written.")
@click.option(
    "--source", metavar="TEXT", default="", help="Where the measurements are from, for the profile."
)
@click.option(
    "--cache",
    type=click.Choice(["warm", "cold"]),
    default="warm",
    show_default=True,
    help="Whether an op that was repeated found small weights in the cache.",
)
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Largest op to fit.",
)
@click.option(
    "--max-rows",
    metavar="N",
    type=click.IntRange(min=30),
    default=3000,
    show_default=True,
    help="Most rows of one group to fit, a random part of more.",
)
@force_option
@json_option
def calibrate(
    measurements: tuple[Path, ...],
    hardware: str,
    output: Path | None,
    source: str,
    cache: str,
    max_tokens: int,
    max_rows: int,
    force: bool,
    as_json: bool,
) -> None:
    """Fit a machine's coefficients to measured ops, scored on shapes left out.

    MEASUREMENTS are RUN directories, tables (CSV, JSON lines, Parquet) with the columns of 'moetrace cost' and seconds,
    or public performance tables (docs/calibrate.md).
    """
    from moetrace.calibrate import calibrate as fit_all
    from moetrace.calibrate import summary
    from moetrace.calibrate.profile import write_profile
    from moetrace.errors import OutputError
    from moetrace.files import check_output
    from moetrace.report import calibration, terminal

    if output is not None:
        if output.suffix != ".toml":
            raise OutputError(f"{output}: a profile's name ends in .toml")
        check_output(output, force)
    state: Literal["warm", "cold"] = "warm" if cache == "warm" else "cold"
    found = fit_all(measurements, hardware, cache=state, max_tokens=max_tokens, max_rows=max_rows)
    if output is not None:
        write_profile(found, hardware, output, source)
    said = f"written: {output}" if output is not None else "nothing written: give -o PROFILE.toml to keep it"
    if as_json:
        terminal.show_json(summary(found))
    else:
        terminal.show([*calibration.report(summary(found)), said])
