"""Every option and argument, defined once; a verb's file lists those it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from moetrace.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

run_argument = click.argument("source", metavar="RUN|TRACE", type=PATH)
trace_argument = click.argument("trace", metavar="TRACE", type=PATH)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
force_option = click.option("--force", is_flag=True, help="Replace an output that exists.")


def output_option(metavar: str, help: str, required: bool = False) -> Callable[[Command], Command]:
    """``-o``, with what it names for this verb."""
    return click.option("-o", "--output", metavar=metavar, type=PATH, required=required, help=help)


def hardware_option(help: str) -> Callable[[Command], Command]:
    """``--hw`` of one machine."""
    return click.option("--hw", "hardware", metavar="NAME", help=help)


def reading_options(command: Command) -> Command:
    """What a trace cannot say by itself; taken by every verb that reads one."""
    for option in reversed(
        (
            click.option(
                "--model",
                metavar="NAME|FILE",
                help="The model that ran: a name from 'moetrace models' or a Hugging Face config.json.",
            ),
            click.option(
                "--capture-trace",
                metavar="FILE",
                type=PATH,
                help="Trace of the graph capture, to name the kernels of a replayed graph.",
            ),
            click.option(
                "--kv-len",
                metavar="N",
                type=click.IntRange(min=1),
                help="KV tokens per sequence in the decode steps, if the trace does not say.",
            ),
        )
    ):
        command = option(command)
    return command


def open_source(
    source: Path,
    *,
    model: str | None,
    capture_trace: Path | None,
    kv_len: int | None,
    hardware: str | None = None,
) -> Run:
    """The run of a RUN directory, or of a trace that is parsed first.

    Raises RunError where an option about reading a trace is given with a RUN, which is read already.
    """
    from moetrace.parse import open_run
    from moetrace.report.terminal import progress

    with progress(f"reading {source.name}") as tell:
        return open_run(
            source, model=model, capture_trace=capture_trace, kv_len=kv_len, hardware=hardware, progress=tell
        )
