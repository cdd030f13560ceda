"""``moetrace models``: the catalogue that --model knows."""

from __future__ import annotations

import click

from moetrace.cli.options import json_option


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models that --model knows."""
    from moetrace.model import load_model, model_names
    from moetrace.report import catalogue, terminal

    specs = [load_model(name) for name in model_names()]
    if as_json:
        terminal.show_json({"schema": "moetrace.models/1", "models": [spec.to_dict() for spec in specs]})
    else:
        terminal.show(catalogue.models_report(specs))
