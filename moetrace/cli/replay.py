"""``moetrace replay``: RUN x machines x scenarios -> predictions, side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moetrace.cli.options import (
    force_option,
    json_option,
    open_source,
    output_option,
    reading_options,
    run_argument,
)
from moetrace.replay.knobs import knob_table

if TYPE_CHECKING:
    from moetrace.replay import Prediction

MACHINES_HELP = "Machines to replay on (see 'moetrace profiles'); repeats, and a comma separates several."
SET_HELP = (
    "Edit of the run (see 'moetrace knobs'); repeats. A comma separates scenarios, a colon the layers "
    "of one value: n_a=8,6,4 or n_a=6x13:4x13. Several swept knobs give every combination."
)


def _alias_options(command: Any) -> Any:
    """``--n-a VALUE`` for ``--set n_a=VALUE`` and so on, one per knob."""
    for name, meaning, _grammar in reversed(knob_table()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(
            flag,
            f"alias_{name}",
            metavar="VALUE",
            multiple=True,
            help=f"Same as --set {name}=VALUE: {meaning}.",
        )(command)
    return command


@click.command()
@run_argument
@click.option("--hw", "machines", metavar="NAME[,NAME]", multiple=True, required=True, help=MACHINES_HELP)
@click.option("--set", "sets", metavar="NAME=VALUE", multiple=True, help=SET_HELP)
@_alias_options
@output_option("DIR", "Directory for the predicted runs, one RUN in it per row of the table.")
@reading_options
@force_option
@json_option
def replay(
    source: Path,
    machines: tuple[str, ...],
    sets: tuple[str, ...],
    output: Path | None,
    model: str | None,
    capture_trace: Path | None,
    kv_len: int | None,
    force: bool,
    as_json: bool,
    **aliases: tuple[str, ...],
) -> None:
    """Predict a run on other hardware and with edited settings.

    A measurement anchors a prediction only on the same class of device; elsewhere the times are the
    model's alone, and the table says so.
    """
    from moetrace import load_hardware, scenarios
    from moetrace import replay as predict
    from moetrace.report import comparison, terminal
    from moetrace.report.tables import plural

    edits = [
        *sets,
        *(f"{name.removeprefix('alias_')}={value}" for name, values in aliases.items() for value in values),
    ]
    hardware = [load_hardware(name) for names in machines for name in names.split(",")]
    run = open_source(source, model=model, capture_trace=capture_trace, kv_len=kv_len)
    plans = scenarios(edits, hardware, run)
    predictions = []
    with terminal.progress("replaying") as tell:
        for done, (machine, scenario) in enumerate(plans):
            tell(done / len(plans))
            predictions.append(predict(run, machine, scenario))
    written = _save(predictions, output, force) if output is not None else []
    if as_json:
        terminal.show_json(
            {
                "schema": "moetrace.comparison/1",
                "source": str(source),
                "predictions": [p.summary for p in predictions],
                "written": [str(path) for path in written],
            }
        )
        return
    name = run.meta.model.name if run.meta.model else run.meta.source
    terminal.show(comparison.replay_report([p.summary for p in predictions], name))
    if written:
        terminal.show([f"written: {plural(len(written), 'run')} under {output}"])


def _save(predictions: Sequence[Prediction], root: Path, force: bool) -> list[Path]:
    """Writes each predicted run; nothing at all if one of them may not be replaced."""
    from moetrace.run import check_output

    paths = [root / _folder(p.summary["hardware"], p.summary["label"]) for p in predictions]
    for path in paths:
        check_output(path, force)
    for prediction, path in zip(predictions, paths, strict=True):
        prediction.run.save(path, force)
    return paths


def _folder(machine: str, label: str) -> str:
    """A folder's name for one row, such as ``h100-sxm-x8.n_a=4.tp=8``."""
    return re.sub(r"[^A-Za-z0-9_.=:-]+", ".", f"{machine} {label}".strip())
