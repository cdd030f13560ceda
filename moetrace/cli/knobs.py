"""``moetrace knobs``: what --set can change."""

from __future__ import annotations

import click

from moetrace.cli.options import json_option


@click.command()
@json_option
def knobs(as_json: bool) -> None:
    """List what --set can change."""
    from moetrace.replay.knobs import knob_table
    from moetrace.report import tables, terminal

    if as_json:
        terminal.show_json(
            {
                "schema": "moetrace.knobs/1",
                "knobs": [{"name": n, "meaning": m, "grammar": g} for n, m, g in knob_table()],
            }
        )
        return
    rows = tuple((n, g, m) for n, m, g in knob_table())
    terminal.show(
        [
            tables.Table("Knobs of --set NAME=VALUE", ("knob", "values", "meaning"), rows, left=3),
            "--set is repeatable; a comma separates scenarios (n_a=8,6,4), "
            "a colon the layers of one value (n_a=6x13:4x13).",
        ]
    )
