"""``moetrace simulate``: model x workload x machines -> TTFT, TPOT, throughput, memory; no trace needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moetrace.cli.grids import GridAsked, grid_options, price_option, show_grid
from moetrace.cli.options import (
    edits,
    force_option,
    json_option,
    load_machines,
    machines_option,
    output_option,
    quiet_option,
    scenario_options,
)

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.model import ModelSpec
    from moetrace.replay import Scenario, Simulation
    from moetrace.synthesize import Workload


@click.command()
@click.option(
    "--model",
    metavar="NAME|FILE",
    required=True,
    help="A name from 'moetrace models' or a Hugging Face config.json; in a grid several, with commas.",
)
@machines_option
@scenario_options(without=("context", "fusion"))
@price_option
@grid_options
@output_option("DIR", "Directory for the predicted runs, one RUN in it per machine and scenario.")
@force_option
@json_option
@quiet_option
def simulate(
    model: str,
    machines: tuple[str, ...],
    sets: tuple[str, ...],
    prices: tuple[str, ...],
    many: GridAsked,
    output: Path | None,
    force: bool,
    as_json: bool,
    **aliases: tuple[str, ...],
) -> None:
    """Predict TTFT, TPOT and throughput of a model on a machine, without a trace.

    The ops follow from the model's shape, their times from the machine's law: nothing is measured, and
    every figure has an interval. Edits work as in 'moetrace replay'.
    """
    from moetrace.errors import ScenarioError

    if many.any:
        if output is not None:
            raise ScenarioError("a grid writes its tables to --grid DIR: without -o")
        show_grid(many, model, machines, edits(sets, aliases), prices, force, as_json)
        return
    if "," in model:
        raise ScenarioError(
            f"--model {model}: several models are a grid: add --grid DIR to keep it, or --pareto for the best of it"
        )
    from moetrace import load_model, scenarios, synthesize
    from moetrace.cli.replay import save_predictions
    from moetrace.replay.economics import read_prices
    from moetrace.replay.load import read_load
    from moetrace.report import simulation, terminal
    from moetrace.report.tables import plural

    asked = edits(sets, aliases)
    hardware, spec = load_machines(machines), load_model(model)
    workload, asked = read_load(asked)
    plans = scenarios(asked, hardware, synthesize(spec, workload))
    results = _predicted(spec, workload, plans, read_prices(prices, hardware))
    written = save_predictions([r.prediction for r in results], output, force) if output is not None else []
    summaries = [r.summary for r in results]
    if as_json:
        terminal.show_json(
            {
                "schema": "moetrace.simulations/1",
                "simulations": summaries,
                "written": [str(path) for path in written],
            }
        )
        return
    terminal.show(simulation.simulation_report(summaries))
    if written:
        terminal.show([f"written: {plural(len(written), 'run')} under {output}"])


def _predicted(
    model: ModelSpec,
    workload: Workload,
    plans: Sequence[tuple[Hardware, Scenario]],
    prices: Mapping[str, float],
) -> list[Simulation]:
    """The workload on each machine, what another routing would give beside."""
    from moetrace import simulate as predict
    from moetrace.replay.unknown_routing import simulated_otherwise
    from moetrace.report import terminal

    results = []
    with terminal.progress("simulating") as tell:
        for done, (machine, scenario) in enumerate(plans):
            tell(done / len(plans))
            hourly = prices.get(machine.base or machine.name)
            found = predict(model, workload, machine, scenario, price_per_hour=hourly)
            other = simulated_otherwise(found.summary, model, workload, machine, scenario)
            found.summary["other_routing"] = other
            results.append(found)
    return results
