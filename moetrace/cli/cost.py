"""``moetrace cost``: a table of ops x machine -> the same table with times, intervals and parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moetrace.cli.options import PATH, force_option, json_option, output_option, quiet_option

if TYPE_CHECKING:
    from moetrace.cost import Tally


@click.command()
@click.argument("table", metavar="OPS", type=PATH)
@click.option(
    "--hw", "machine", metavar="NAME", required=True, help="Machine to predict for (see 'moetrace profiles')."
)
@click.option(
    "--engine",
    metavar="NAME",
    default="any",
    show_default=True,
    help="Engine whose kernels were fitted apart: vllm, sglang, trtllm, or any; with its version: sglang@0.4.4.",
)
@click.option(
    "--cache",
    type=click.Choice(["warm", "cold"]),
    default="warm",
    show_default=True,
    help="warm: each op repeated alone, as micro-benchmarks run it; cold: one among others, as in serving.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Mark rows that cannot be priced in a column 'problem' instead of failing.",
)
@click.option(
    "--anchor",
    metavar="FILE",
    type=PATH,
    help="Table of measured ops with a column seconds: ops of their shapes are predicted relative to them.",
)
@click.option("--model", metavar="NAME|FILE", help="On a wafer: the model whose layers share its cores.")
@click.option(
    "--placement",
    type=click.Choice(["spread", "own", "whole"]),
    default="spread",
    show_default=True,
    help="On a wafer: experts over all cores of their layer, on cores of their own, or every matrix over all cores.",
)
@click.option(
    "--routing-cache",
    metavar="FILE",
    type=PATH,
    help="Parquet file that keeps the routing worked out from one call to the next.",
)
@output_option("FILE", "Parquet file to write: the table with its costs.", required=True)
@force_option
@json_option
@quiet_option
def cost(
    table: Path,
    machine: str,
    engine: str,
    cache: str,
    keep_going: bool,
    anchor: Path | None,
    model: str | None,
    placement: str,
    routing_cache: Path | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Predict the time of every op in a table, given by its dims.

    OPS is a Parquet, CSV or JSON-lines file with the columns kind, dtype and the dims of each op, or its text
    form in a column op; docs/cost.md lists them.
    Columns of other names are passed through.
    """
    import time
    from typing import Literal

    from moetrace.cost import Pricing, context_for, cost_file, read_anchors
    from moetrace.files import check_table_output
    from moetrace.hardware import load_hardware
    from moetrace.report import terminal
    from moetrace.routing import read_loads, save_loads

    check_table_output(output, force)
    state: Literal["warm", "cold"] = "warm" if cache == "warm" else "cold"
    if routing_cache is not None and routing_cache.exists():
        read_loads(routing_cache)
    hw = load_hardware(machine)
    said = context_for(hw, engine, state, model, placement)
    how = Pricing(hw, said, keep_going, read_anchors(anchor, hw, said) if anchor is not None else None)
    begin = time.perf_counter()
    with terminal.progress(f"pricing {table.name}") as tell:
        tally = cost_file(table, output, how, tell)
    took = time.perf_counter() - begin
    if routing_cache is not None:
        save_loads(routing_cache)
    _show(tally, hw.name, took, output, as_json)


def _show(tally: Tally, hardware: str, took: float, output: Path, as_json: bool) -> None:
    from moetrace.report import terminal
    from moetrace.report.tables import plural
    from moetrace.units import seconds

    if as_json:
        terminal.show_json(
            {
                "schema": "moetrace.cost/1",
                "hardware": hardware,
                "rows": tally.rows,
                "bad_rows": tally.bad,
                "seconds": took,
                "routing_seconds": tally.routing_s,
                "written": str(output),
            }
        )
        return
    lines = [
        f"{plural(tally.rows, 'op')} on {hardware} in {seconds(took)}, {seconds(tally.routing_s)} of it for routing"
    ]
    if tally.bad:
        lines.append(f"{plural(tally.bad, 'row')} could not be priced: see the column problem")
    terminal.show([*lines, f"written: {output}"])
