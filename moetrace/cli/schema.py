"""``moetrace schema``: the columns of a RUN's Parquet files."""

from __future__ import annotations

import click

from moetrace.cli.options import json_option


@click.command()
@click.argument(
    "table", metavar="[TABLE]", type=click.Choice(["ops", "attribution", "routing"]), required=False
)
@json_option
def schema(table: str | None, as_json: bool) -> None:
    """List the columns of a RUN's Parquet files: type, unit, what null says, meaning.

    TABLE is ops, attribution or routing; of one table example queries are printed too.
    """
    from moetrace.report import terminal
    from moetrace.report.schema import schema_facts, schema_report

    facts = schema_facts(table)
    if as_json:
        terminal.show_json(facts)
    else:
        terminal.show(schema_report(facts))
