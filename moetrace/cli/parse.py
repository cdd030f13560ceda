"""``moetrace parse``: trace -> RUN."""

from __future__ import annotations

from pathlib import Path

import click

from moetrace.cli.options import (
    PATH,
    force_option,
    hardware_option,
    json_option,
    open_source,
    output_option,
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
@force_option
@json_option
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
    force: bool,
    as_json: bool,
) -> None:
    """Read a trace into a RUN: one row per op, with FLOPs, bytes and layer.

    TRACE is a PyTorch profiler (Kineto) trace (.json, .json.gz, .json.zst), an Nsight Systems report
    (.sqlite, or .nsys-rep where nsys is installed), or a directory that 'moetrace record' wrote.
    """
    from moetrace.files import check_directory
    from moetrace.parse import summary
    from moetrace.report import tables, terminal

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
