"""``moetrace profiles``: the machines that --hw knows."""

from __future__ import annotations

import click

from moetrace.cli.options import json_option


@click.command()
@click.argument("machine", metavar="[NAME]", required=False)
@json_option
def profiles(machine: str | None, as_json: bool) -> None:
    """List the machines that --hw knows, or show one in detail.

    With NAME: its figures, their sources, and the error of each fit on shapes that it did not see.
    """
    from moetrace.hardware import load_hardware, profile_names
    from moetrace.report import catalogue, terminal

    if machine is not None:
        one = load_hardware(machine)
        if as_json:
            terminal.show_json({"schema": "moetrace.profile/1", **catalogue.machine_facts(one)})
        else:
            terminal.show(catalogue.machine_report(one))
        return
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
