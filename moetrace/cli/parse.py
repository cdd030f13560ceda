"""``moetrace parse``: trace -> RUN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    model: str | None,
    capture_trace: Path | None,
    kv_len: int | None,
    ran_tp: int | None,
    ran_ep: int | None,
    hardware: str | None,
    routing: Path | None,
    comm_table: Path | None,
    jobs: int | None,
    scheduler: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Read a trace into a RUN: one row per op, with FLOPs, bytes and layer.

    TRACE is a PyTorch profiler (Kineto) trace (.json, .json.gz, .json.zst), an Nsight Systems report
    (.sqlite, or .nsys-rep where nsys is installed), or a directory that 'moetrace record' wrote.

    A directory or a quoted pattern with the traces of several ranks gives a directory of RUNs, rank-0, rank-1, ..., whose
    clocks are aligned on collectives, and a comparison: who waits for whom, skew, stragglers.
    """
    from moetrace.files import check_directory
    from moetrace.parse import summary
    from moetrace.report import tables, terminal

    if ranks := _ranks(trace):
        if routing is not None:
            raise click.UsageError("--routing is of one rank: parse that one by itself")
        options = {
            "model": model, "capture_trace": capture_trace, "kv_len": kv_len, "ran_tp": ran_tp, "ran_ep": ran_ep,
            "hardware": hardware, "comm_table": comm_table,
        }  # fmt: skip
        _parse_ranks(ranks, output, options, (jobs, scheduler), force, as_json)
        return
    if scheduler is not None:
        raise click.UsageError(f"--scheduler is for the ranks of a run: {trace} is one trace")
    if output is not None:
        check_directory(output, force)
    run = open_source(
        trace,
        model=model,
        capture_trace=capture_trace,
        kv_len=kv_len,
        ran_tp=ran_tp,
        ran_ep=ran_ep,
        hardware=hardware,
        routing=routing,
        comm_table=comm_table,
        output=output,
    )
    if output is not None:
        run = run.save(output, force)
    facts = summary(run)
    if as_json:
        terminal.show_json(facts)
        return
    terminal.show(tables.parse_report(facts))
    terminal.show([f"written: {output}" if output else "nothing written: give -o RUN to keep it"])


def _ranks(trace: Path) -> dict[int, Path]:
    from moetrace.parse.ranks import rank_files

    return rank_files(trace)


def _parse_ranks(
    files: dict[int, Path],
    output: Path | None,
    options: dict[str, Any],
    by: tuple[int | None, str | None],
    force: bool,
    as_json: bool,
) -> None:
    """The ranks of one run, kept in `output` or only compared; `by` so many processes, or a scheduler's workers."""
    from tempfile import TemporaryDirectory

    from moetrace.parse.ranks import parse_ranks
    from moetrace.report import terminal
    from moetrace.report.ranks import ranks_report

    with (
        TemporaryDirectory(prefix="moetrace-") as scratch,
        terminal.progress(f"reading {len(files)} ranks") as tell,
    ):
        folder = output or Path(scratch) / "ranks"
        facts = parse_ranks(
            files, folder, options=options, jobs=by[0], scheduler=by[1], force=force, progress=tell
        )
    if as_json:
        terminal.show_json(facts)
        return
    said = f"written: {output}, a RUN for each rank" if output else "nothing written: give -o DIR to keep it"
    terminal.show([*ranks_report(facts), said])
