"""``moetrace profiles``: the machines that --hw knows."""

from __future__ import annotations

import click

from moetrace.cli.options import json_option


@click.command()
@json_option
def profiles(as_json: bool) -> None:
    """List the machines that --hw knows."""
    from moetrace.hardware import load_hardware, profile_names
    from moetrace.report import catalogue, terminal

    machines = [load_hardware(name) for name in profile_names()]
    if as_json:
        terminal.show_json(
            {
                "schema": "moetrace.profiles/1",
                "profiles": [catalogue.profile_facts(machine) for machine in machines],
            }
        )
    else:
        terminal.show(catalogue.profiles_report(machines))
