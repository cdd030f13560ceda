"""``moetrace record``: the built-in MoE workload -> a recording (trace, routing, metadata)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from moetrace.cli.options import force_option, json_option, output_option

COUNT = click.IntRange(min=1)


@click.command()
@click.option(
    "--model", metavar="NAME|FILE", required=True, help="A built-in model, or a Hugging Face config.json."
)
@click.option("--layers", metavar="N", type=COUNT, help="Build only the first N layers.  [default: all]")
@click.option("--batch", metavar="N", type=COUNT, default=16, show_default=True, help="Sequences.")
@click.option(
    "--context",
    metavar="N",
    type=COUNT,
    default=512,
    show_default=True,
    help="Prompt tokens of each sequence.",
)
@click.option("--steps", metavar="N", type=COUNT, default=4, show_default=True, help="Decode steps.")
@click.option("--n-a", metavar="K", type=COUNT, help="Experts per token.  [default: the model's]")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="Element type of weights and activations.",
)
@click.option(
    "--experts",
    type=click.Choice(["grouped_mm", "batched_mm", "eager"]),
    default="grouped_mm",
    show_default=True,
    help="How transformers runs the experts: one grouped GEMM, a batched one, or a loop.",
)
@click.option("--prefill/--no-prefill", default=True, show_default=True, help="Record the prefill step too.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to run; auto takes a GPU if there is one.",
)
@click.option("--threads", metavar="N", type=COUNT, help="CPU threads of torch.  [default: torch's]")
@click.option(
    "--seed", metavar="N", type=int, default=0, show_default=True, help="Of the weights and the prompt."
)
@output_option("DIR", "Directory to write.", required=True)
@force_option
@json_option
def record(output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Record a MoE decode run of the built-in workload.

    Builds the real architecture with random weights, prefills, decodes greedily with a static KV cache, once
    unrecorded and once under torch.profiler, and writes trace.json.gz, routing.parquet and recording.json.
    Routing of random weights is near uniform. Your own loop is recorded in Python, with moetrace.record.
    """
    from moetrace.record.workload import Workload, run_workload

    def progress(message: str) -> None:
        if sys.stderr.isatty():
            click.echo(message, err=True)

    told = run_workload(Workload(**options), output, force=force, progress=progress)
    if as_json:
        click.echo(json.dumps({"output": str(output), **told}))
        return
    click.echo(f"{output}: recorded {len(told['recorded_s'])} steps; next: moetrace parse {output}")
    decode = [sorted(told[key][1:]) for key in ("unprofiled_s", "recorded_s")]
    plain, recorded = (1e3 * times[len(times) // 2] for times in decode)
    click.echo(f"median decode step: {plain:.1f} ms unrecorded, {recorded:.1f} ms recorded")
    if not told["tokens_equal"]:
        click.echo(
            "note: the recorded run chose other tokens than the unrecorded one (atomics on this device?)",
            err=True,
        )
