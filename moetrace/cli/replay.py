"""``moetrace replay``: RUN x machines x scenarios -> predictions, side by side."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moetrace.cli.grids import GridAsked, grid_options, price_option
from moetrace.cli.options import (
    edits,
    force_option,
    json_option,
    load_machines,
    machines_option,
    open_source,
    output_option,
    quiet_option,
    reading_options,
    run_argument,
    scenario_options,
    shown,
)

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.replay import Prediction, Scenario
    from moetrace.run import Run


@click.command()
@run_argument
@machines_option
@scenario_options()
@price_option
@grid_options
@output_option("DIR", "Directory for the predicted runs, one RUN in it per row of the table.")
@reading_options
@force_option
@json_option
@quiet_option
def replay(
    source: Path,
    machines: tuple[str, ...],
    sets: tuple[str, ...],
    prices: tuple[str, ...],
    many: GridAsked,
    output: Path | None,
    reading: dict[str, Any],
    force: bool,
    as_json: bool,
    **aliases: tuple[str, ...],
) -> None:
    """Predict a run on other hardware and with edited settings.

    A measurement anchors a prediction only on the same class of device; elsewhere the times are the
    model's alone, and the table says so.
    """
    from moetrace import scenarios
    from moetrace.errors import ScenarioError
    from moetrace.report import comparison, terminal
    from moetrace.report.tables import plural

    if many.any and output is not None:
        raise ScenarioError("a grid writes its tables to --grid DIR: without -o")
    if prices and not many.any:
        raise ScenarioError(
            "--price-per-hour: a replay's costs are columns of its grid: add --grid DIR, --pareto or a limit"
        )
    hardware = load_machines(machines)
    run = open_source(source, **reading)
    if many.any:
        from moetrace.cli.grids import show_replays
        from moetrace.replay.grid.recorded import replays_of

        show_replays(
            many, replays_of(run, source.name, hardware, edits(sets, aliases), prices), force, as_json
        )
        return
    predictions = _predicted(run, scenarios(edits(sets, aliases), hardware, run))
    written = save_predictions(predictions, output, force) if output is not None else []
    if as_json:
        terminal.show_json(
            {
                "schema": "moetrace.comparison/1",
                "source": shown(source),
                "predictions": [p.summary for p in predictions],
                "written": [str(path) for path in written],
            }
        )
        return
    name = run.meta.model.name if run.meta.model else run.meta.source
    terminal.show(comparison.replay_report([p.summary for p in predictions], name))
    if written:
        terminal.show([f"written: {plural(len(written), 'run')} under {output}"])


def _predicted(run: Run, plans: Sequence[tuple[Hardware, Scenario]]) -> list[Prediction]:
    """The run replayed on each machine, what another routing would give beside."""
    from moetrace import replay as predict
    from moetrace.replay.unknown_routing import replayed_otherwise
    from moetrace.report import terminal

    predictions = []
    with terminal.progress("replaying") as tell:
        for done, (machine, scenario) in enumerate(plans):
            tell(done / len(plans))
            found = predict(run, machine, scenario)
            found.summary["other_routing"] = replayed_otherwise(found.summary, run, machine, scenario)
            predictions.append(found)
    return predictions


def save_predictions(predictions: Sequence[Prediction], root: Path, force: bool) -> list[Path]:
    """Writes each predicted run; nothing at all if one of them may not be replaced or written, or `root` lies in a run."""
    from moetrace.errors import OutputError
    from moetrace.files import check_directory, check_outside_runs, publish, staging

    check_outside_runs(root)
    paths = [root / _folder(p.summary["hardware"], p.summary["label"]) for p in predictions]
    twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if twice is not None:
        raise OutputError(f"two rows of the table would both be {twice}: predict them one at a time")
    for path in paths:
        check_directory(path, force)
    stage = staging(root)  # all are written before the first takes its place
    try:
        for prediction, path in zip(predictions, paths, strict=True):
            prediction.run.save(stage / path.name)
        root.mkdir(exist_ok=True)
        for path in paths:
            publish(stage / path.name, path, force)
    except OSError as err:
        raise OutputError(f"cannot write {root}: {err.strerror or err}") from err
    except OutputError as err:
        raise OutputError(str(err).replace(str(stage), str(root))) from err
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return paths


def _folder(machine: str, label: str) -> str:
    """A folder's name for one row, such as ``h100-sxm-x8.n_a=4.tp=8``."""
    return re.sub(r"[^A-Za-z0-9_.=:-]+", ".", f"{machine} {label}".strip())
