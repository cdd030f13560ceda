"""``moetrace doctor``: what a trace can and cannot answer, and how to capture what it lacks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moetrace.cli.options import hardware_option, json_option, open_source, reading_options, run_argument
from moetrace.engines import stated
from moetrace.errors import unknown

if TYPE_CHECKING:
    from moetrace.parse.ranks import Found

# Those of parse/remedies.py, which is slow to import.
ENGINES = ("vllm", "sglang", "tensorrt-llm", "transformers")
LACKING = 1


def _engine(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The engine however it is written, with a version or without."""
    if value is None:
        return None
    name = (stated(value) or (value,))[0]
    name = "tensorrt-llm" if name == "trtllm" else name
    if name not in ENGINES:
        raise click.BadParameter(unknown("engine", value, ENGINES), ctx, param)
    return name


@click.command()
@run_argument
@click.option(
    "--engine",
    metavar=f"[{'|'.join(ENGINES)}]",
    callback=_engine,
    help="The engine that ran, if the trace does not show it.",
)
@reading_options
@hardware_option("The machine it ran on, if the trace does not say.")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    source: Path,
    engine: str | None,
    reading: dict[str, Any],
    hardware: str | None,
    as_json: bool,
) -> None:
    """Say what a trace can and cannot answer, and how to capture what it lacks.

    The ranks of one run (a folder of traces, an Nsight Systems file of several GPUs) are asked together.

    Exit status: 0 if it answers everything, 1 if something is missing, 2 if it cannot be read.
    """
    from moetrace.parse.doctor import diagnose
    from moetrace.parse.ranks import ranks_of
    from moetrace.report import terminal
    from moetrace.report.doctor import doctor_report

    options = {**reading, "hardware": hardware}
    with ranks_of(source) as (trace, ranks):
        facts = (
            _of_ranks(ranks, options, engine) if ranks else diagnose(open_source(trace, **options), engine)
        )
    if as_json:
        terminal.show_json(facts)
    else:
        terminal.show(doctor_report(facts))
    if not facts["whole"]:
        ctx.exit(LACKING)


def _of_ranks(ranks: Found, options: dict[str, Any], engine: str | None) -> dict[str, Any]:
    """The answers of several ranks together, parsed into a temporary folder."""
    from moetrace.parse.doctor import diagnose
    from moetrace.parse.ranks import parse_ranks
    from moetrace.ranks import Ranks
    from moetrace.report import terminal

    with tempfile.TemporaryDirectory(prefix="moetrace-") as folder:
        place = Path(folder) / f"{len(ranks)} ranks"
        with terminal.progress(f"reading {len(ranks)} ranks") as tell:
            parse_ranks(ranks, place, options=options, progress=tell)
        return diagnose(Ranks.load(place), engine)
