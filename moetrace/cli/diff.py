"""``moetrace diff``: RUN x RUN -> what changed, and whether it may be noise; gates for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moetrace.cli.attribute import PHASES
from moetrace.cli.options import (
    PATH,
    force_option,
    json_option,
    open_source,
    output_option,
    reading_options,
)


@click.command()
@click.argument("before", metavar="BEFORE", type=PATH)
@click.argument("after", metavar="AFTER", type=PATH)
@click.option(
    "--by",
    type=click.Choice(["family", "op", "layer", "op-layer"]),
    default="op-layer",
    show_default=True,
    help="What a row is.",
)
@click.option(
    "--top", metavar="N", type=click.IntRange(min=1), default=15, show_default=True, help="Rows to print."
)
@click.option("--all", "everything", is_flag=True, help="Also print rows that may be noise.")
@click.option(
    "--phase",
    type=click.Choice(PHASES[:-1]),
    help="Steps to compare; the default is decode if both have any.",
)
@click.option(
    "--gate",
    "gates",
    metavar="METRIC<LIMIT",
    multiple=True,
    help="Exit with 1 if the limit is shown to be exceeded: tpot<+3%, experts<+200us, step<6ms; repeatable. "
    "Metrics: tpot, step, busy, idle, prefill, and the op families.",
)
@click.option(
    "--confidence",
    metavar="SHARE",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals and of each gate.",
)
@output_option("FILE", "HTML file to write.")
@reading_options
@force_option
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    before: Path,
    after: Path,
    by: str,
    top: int,
    everything: bool,
    phase: str | None,
    gates: tuple[str, ...],
    confidence: float,
    output: Path | None,
    reading: dict[str, Any],
    force: bool,
    as_json: bool,
) -> None:
    """Compare two runs: what changed, by op and layer, and whether it may be noise.

    BEFORE and AFTER are RUNs or traces. Each step is a sample; a row is printed where its change is beyond
    what steps differ by.
    """
    from moetrace import diff as compare
    from moetrace.files import check_output
    from moetrace.report import terminal
    from moetrace.report.diff import diff_report
    from moetrace.report.html.diff import write_diff

    if output is not None:
        check_output(output, force, ours=())
    first, second = (open_source(source, **reading) for source in (before, after))
    found = compare(first, second, gates=gates, confidence=confidence, phase=phase)
    if output is not None:
        size = write_diff(found, output)
    if as_json:
        terminal.show_json(found.facts)
    else:
        terminal.show(diff_report(found.facts, by, top, everything))
        if output is not None:
            terminal.show([f"written: {output} ({size / 1e6:.1f} MB; open it in a browser)"])
    if found.failed:
        ctx.exit(1)
