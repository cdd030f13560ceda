"""``moetrace record``: the built-in MoE workload -> a recording (trace, routing, metadata)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from moetrace.cli.options import force_option, json_option, output_option
from moetrace.cli.workload_options import workload_options


@click.command()
@workload_options
@output_option("DIR", "Directory to write.", required=True)
@force_option
@json_option
def record(output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Record a MoE decode run of the built-in workload.

    Builds the real architecture with random or given weights, prefills, decodes greedily with a static KV cache,
    once unrecorded and once under torch.profiler, and writes trace.json.gz, routing.parquet and recording.json.
    Routing of random weights is near uniform unless --routing prescribes another. Your own loop is recorded in
    Python, with moetrace.record.
    """
    if options["model"] is None:
        raise click.UsageError("missing option '--model': name the model whose decode loop to record")
    _workload(output, force, as_json, options)


def _workload(output: Path, force: bool, as_json: bool, options: dict[str, Any]) -> None:
    from moetrace.record.workload import Workload, run_workload

    told = run_workload(Workload(**options), output, force=force, progress=_progress)
    if as_json:
        click.echo(json.dumps({"output": str(output), **told}))
        return
    click.echo(f"{output}: recorded {len(told['recorded_s'])} steps; next: moetrace parse {output}")
    decode = [sorted(told[key][1:]) for key in ("unprofiled_s", "recorded_s")]
    plain, recorded = (1e3 * times[len(times) // 2] for times in decode)
    click.echo(f"median decode step: {plain:.1f} ms unrecorded, {recorded:.1f} ms recorded")
    taken = told["routing_taken"]
    if taken is not None and taken < 1:
        click.echo(f"note: the routers took {100 * taken:.1f} % of the prescribed choices", err=True)
    if not told["tokens_equal"]:
        click.echo(
            "note: the recorded run chose other tokens than the unrecorded one (atomics on this device?)",
            err=True,
        )


def _progress(message: str) -> None:
    if sys.stderr.isatty():
        click.echo(message, err=True)
