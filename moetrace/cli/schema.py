"""``moetrace schema``: the columns of all Parquet files."""

from __future__ import annotations

import click

from moetrace.cli.options import json_option

NAMES = (
    "ops", "attribution", "routing", "routing_tokens", "ranks", "scenarios", "breakdown", "cost", "ledger", "loads",
)  # fmt: skip


@click.command()
@click.argument("table", metavar="[TABLE]", type=click.Choice(NAMES), required=False)
@json_option
def schema(table: str | None, as_json: bool) -> None:
    """List the columns of all Parquet files: type, unit, meaning, and what null means.

    TABLE is ops, attribution or routing of a RUN, routing_tokens, ranks, scenarios or breakdown of a grid, cost, ledger or
    loads; with TABLE, example queries are printed as well.
    """
    from moetrace.cli.tables import TABLES
    from moetrace.report import terminal
    from moetrace.report.schema import schema_facts, schema_report

    facts = schema_facts(TABLES, table)
    if as_json:
        terminal.show_json(facts)
    else:
        terminal.show(schema_report(facts))
