"""``moetrace parse``: trace -> RUN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moetrace.cli.options import (
    PATH,
    force_option,
    hardware_option,
    json_option,
    open_source,
    output_option,
    quiet_option,
    reading_options,
    trace_argument,
)

if TYPE_CHECKING:
    from moetrace.formats import Export
    from moetrace.parse.ranks import Found


@click.command()
@trace_argument
@output_option("RUN", "Directory to write; without it only the summary is printed.")
@reading_options
@hardware_option("The machine it ran on, if the trace does not say.")
@click.option(
    "--routing",
    metavar="FILE",
    type=PATH,
    help="Which experts were chosen: routing.parquet, SGLang's .pt, or a CSV or JSON log (docs/recording.md).",
)
@click.option(
    "--comm-table",
    metavar="FILE",
    type=PATH,
    help="Names of communication kernels beside the built-in ones, as TOML (docs/formats.md).",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Ranks to parse at a time, where TRACE holds several; the default is the number of cores.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Parse ranks on the Dask cluster of this scheduler, which is trusted code execution (docs/ranks.md).",
)
@force_option
@json_option
@quiet_option
def parse(
    trace: Path,
    output: Path | None,
    jobs: int | None,
    scheduler: str | None,
    force: bool,
    as_json: bool,
    reading: dict[str, Any],
    **others: Any,
) -> None:
    """Read a trace into a RUN: one row per op, with FLOPs, bytes and layer.

    TRACE is a PyTorch profiler (Kineto) trace (.json, .json.gz, .json.zst), an Nsight Systems report
    (.sqlite, or .nsys-rep where nsys is installed), or a directory that 'moetrace record' wrote.

    A directory, a quoted pattern or the URL of either with the traces of several ranks, and an Nsight Systems file of several
    GPUs, give a directory of RUNs, rank-0, rank-1, ..., which every verb takes as one RUN, and a comparison: clocks, who waits
    for whom, skew, stragglers.
    """
    from moetrace.parse.ranks import ranks_of

    options = {**reading, **others}
    with ranks_of(trace) as (source, ranks):
        if ranks:
            if scheduler is not None and not isinstance(source, Path):
                raise click.UsageError(
                    f"--scheduler: workers cannot see what {trace} expands to: give the .sqlite itself"
                )
            _parse_ranks(ranks, output, options, (jobs, scheduler), force, as_json)
        elif scheduler is not None:
            raise click.UsageError(f"--scheduler is for the ranks of a run: {trace} is one trace")
        else:
            _parse_one(source, output, options, force, as_json)


def _parse_one(
    trace: Path | Export, output: Path | None, options: dict[str, Any], force: bool, as_json: bool
) -> None:
    """One trace, kept in `output` or only summed up."""
    from moetrace.files import check_directory, url_of
    from moetrace.parse import summary
    from moetrace.parse.ranks.output import check_url, write_run
    from moetrace.report import tables, terminal

    url = url_of(output) if output is not None else None
    if url is not None:
        check_url(url, force)
    elif output is not None:
        check_directory(output, force)
    run = open_source(trace, **options, output=None if url else output)
    if url is not None:
        write_run(run, url)
    elif output is not None:
        run = run.save(output, force)
    facts = summary(run)
    if as_json:
        terminal.show_json(facts)
        return
    terminal.show(tables.parse_report(facts))
    terminal.show([f"written: {url or output}" if output else "nothing written: give -o RUN to keep it"])


def _parse_ranks(
    files: Found,
    output: Path | None,
    options: dict[str, Any],
    by: tuple[int | None, str | None],
    force: bool,
    as_json: bool,
) -> None:
    """The ranks of one run, kept in `output` or only compared; `by` so many processes, or a scheduler's workers.

    What is small is read here and travels: the model, the routing and the table of names need lie on no worker.
    """
    from moetrace.files import url_of
    from moetrace.model import load_model
    from moetrace.ops import communication_names
    from moetrace.parse.ranks import parse_ranks
    from moetrace.record.routing_files import read_routing
    from moetrace.report import terminal
    from moetrace.report.ranks import ranks_report

    here: dict[str, Callable[[Any], Any]] = {
        "model": load_model,
        "comm_table": communication_names,
        "routing": read_routing,
    }
    read = {k: here[k](v) if k in here and v is not None else v for k, v in options.items()}
    with terminal.progress(f"reading {len(files)} ranks") as tell:
        facts = parse_ranks(
            files, output, options=read, jobs=by[0], scheduler=by[1], force=force, progress=tell
        )
    if as_json:
        terminal.show_json(facts)
        return
    said = "nothing written: give -o DIR to keep it"
    if output is not None:
        said = f"written: {url_of(output) or output}, a RUN for each rank"
    terminal.show([*ranks_report(facts), said])
