"""``moetrace record``: a program, the built-in MoE workload or a running server -> a recording (trace, routing, metadata)."""

from __future__ import annotations

import json
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from moetrace.cli.options import force_option, json_option, output_option
from moetrace.cli.program import program_of, run_program_recorded
from moetrace.cli.program_options import PROGRAM, ProgramCommand, program_options
from moetrace.cli.server_options import SERVER_ONLY, SHARED, server_options
from moetrace.cli.workload_options import WORKLOAD, workload_options


@click.command(cls=ProgramCommand, context_settings={"allow_interspersed_args": False})
@program_options
@workload_options
@server_options
@output_option("DIR", "Directory to write.", required=True)
@force_option
@json_option
@click.pass_context
def record(
    ctx: click.Context, /, server: str | None, output: Path, force: bool, as_json: bool, **options: Any
) -> None:
    """Record a MoE decode run: of your own program, of the built-in workload, or of a server.

    \b
    moetrace record -o out -- generate.py --my-flag          # your script, unchanged
    moetrace record -o out -m mypackage.generate             # your module
    moetrace record -o out --model olmoe-1b-7b --layers 2    # the built-in workload
    moetrace record -o out --server http://localhost:8000    # a running vLLM or SGLang

    A program runs in this process; the first MoE model that it calls is recorded, each forward being a step, and
    its exit status is passed on. The built-in workload builds the real architecture with random or given
    weights, prefills and decodes greedily, once unrecorded and once recorded; routing of random weights is near
    uniform unless --routing prescribes another. A server is profiled under a load of --batch prompts of --context
    tokens, continued by --steps. Written are the trace, routing.parquet and recording.json. A loop in Python is
    recorded with moetrace.record.
    """
    program = program_of(options["program"], options["module"])
    if program is not None:
        _refuse(
            ctx, (WORKLOAD | SERVER_ONLY | {"server"}) - PROGRAM, "is not about a program, and one is given"
        )
        run_program_recorded(
            program, output, force, as_json, {k: v for k, v in options.items() if k in PROGRAM}
        )
        return
    _refuse(
        ctx, PROGRAM - WORKLOAD, "is about a program, and none is given (moetrace record -o DIR -- SCRIPT)"
    )
    if server is not None:
        _refuse(ctx, WORKLOAD - SHARED, "is of the built-in workload or a program, not of a server")
        _server(
            server, output, force, as_json, {k: v for k, v in options.items() if k in SHARED | SERVER_ONLY}
        )
        return
    _refuse(ctx, SERVER_ONLY, "needs --server")
    if options["model"] is None:
        raise click.UsageError("nothing to record: give a program after --, or --model, or --server")
    _workload(output, force, as_json, {k: v for k, v in options.items() if k in WORKLOAD})


def _refuse(ctx: click.Context, names: Container[str], why: str) -> None:
    """An option that would change nothing is an error."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in names and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} {why}")


def _server(url: str, output: Path, force: bool, as_json: bool, options: dict[str, Any]) -> None:
    from moetrace.record.server import Attachment, record_server

    pairs = [text.partition("=") for text in options.pop("profile_options")]
    if odd := next((name for name, equals, value in pairs if not (name and equals and value)), None):
        raise click.UsageError(f"--profile-option {odd}: expected NAME=VALUE")
    what = Attachment(url, options={name: value for name, _, value in pairs}, **options)
    facts = record_server(what, output, force=force, progress=_progress)
    if as_json:
        click.echo(json.dumps({"schema": "moetrace.record/1", "output": str(output), **facts}))
        return
    click.echo(
        f"{output}: recorded {facts['engine']} {facts['engine_version']}; next: moetrace parse {output}"
    )
    click.echo(f"routing: {facts['routing']['source']}")
    if "recorded_load_s" in facts:
        plain, recorded = facts["unprofiled_load_s"], facts["recorded_load_s"]
        click.echo(f"the load took {plain:.2f} s without the profiler, {recorded:.2f} s with it")


def _workload(output: Path, force: bool, as_json: bool, options: dict[str, Any]) -> None:
    from moetrace.record.device import NO_KERNELS
    from moetrace.record.workload import Workload, run_workload

    told = run_workload(Workload(**options), output, force=force, progress=_progress)
    if as_json:
        click.echo(json.dumps({"schema": "moetrace.record/1", "output": str(output), **told}))
        return
    steps = options["steps"] + options["prefill"]
    click.echo(f"{output}: recorded {steps} steps; next: moetrace parse {output}")
    decode = [sorted(told[key][1:]) for key in ("unprofiled_s", "recorded_s")]
    plain, recorded = (1e3 * times[len(times) // 2] for times in decode)
    click.echo(f"median decode step: {plain:.1f} ms unrecorded, {recorded:.1f} ms recorded")
    taken = told["routing_taken"]
    if taken is not None and taken < 1:
        click.echo(f"note: the routers took {100 * taken:.1f} % of the prescribed choices", err=True)
    if told["saw_no_kernel"]:
        click.echo(f"note: {NO_KERNELS}", err=True)
    if not told["tokens_equal"]:
        click.echo(
            "note: the recorded run chose other tokens than the unrecorded one (atomics on this device?)",
            err=True,
        )


def _progress(message: str) -> None:
    if sys.stderr.isatty():
        click.echo(message, err=True)
