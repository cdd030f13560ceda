"""All tables that a verb writes, by name: `moetrace schema` and docs/schema.md (``make docs``) are made from it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from moetrace.attribute import ATTRIBUTION_COLUMNS, ATTRIBUTION_VERSION
from moetrace.cost.bulk import COST_COLUMNS
from moetrace.parse.ranks import RANKS_COLUMNS
from moetrace.replay.grid.rows import BREAKDOWN_COLUMNS, MINOR, scenario_columns
from moetrace.report.schema import Written, schema_facts, schema_page
from moetrace.routing import ROUTING_COLUMNS, ROUTING_VERSION
from moetrace.routing.load import LOADS_COLUMNS
from moetrace.routing.tokens import TOKEN_ROUTING_COLUMNS
from moetrace.run import OPS_COLUMNS, RUN_VERSION
from moetrace.validate import LEDGER_COLUMNS, LEDGER_VERSION

TABLES: Mapping[str, Written] = {
    "ops": Written("RUN/ops.parquet", "parse", RUN_VERSION, "one row per op execution", OPS_COLUMNS),
    "attribution": Written(
        "RUN/attribution.parquet",
        "attribute",
        ATTRIBUTION_VERSION,
        "one row per row of `ops.parquet`, in its order; once `moetrace attribute` has run",
        ATTRIBUTION_COLUMNS,
    ),
    "routing": Written(
        "RUN/routing.parquet",
        "parse",
        ROUTING_VERSION,
        "how often each expert was chosen, by step, layer and rank of choice; if recorded",
        ROUTING_COLUMNS,
    ),
    "routing_tokens": Written(
        "OUT/routing_tokens.parquet",
        "record --token-ids",
        1,
        "one row per token, layer and choice: which expert it was; `moetrace parse` keeps it in the RUN",
        TOKEN_ROUTING_COLUMNS,
    ),
    "ranks": Written(
        "OUT/ranks.parquet", "parse of a folder of ranks", 1, "one row per rank and step", RANKS_COLUMNS
    ),
    "scenarios": Written(
        "DIR/scenarios/*.parquet",
        "simulate --grid DIR",
        1,
        "one row per scenario, with a column more for each knob that was set; DIR/pareto.parquet has the rows of the front",
        scenario_columns(),
        MINOR,
    ),
    "breakdown": Written(
        "DIR/breakdown/*.parquet",
        "simulate --grid DIR",
        1,
        "one row per scenario and op family",
        BREAKDOWN_COLUMNS,
        MINOR,
    ),
    "cost": Written(
        "FILE", "cost -o FILE", 1, "the rows that came, with these columns behind their own", COST_COLUMNS
    ),
    "ledger": Written(
        "FILE", "validate -o FILE", LEDGER_VERSION, "one row per figure, or ratio of two", LEDGER_COLUMNS
    ),
    "loads": Written(
        "FILE",
        "cost --routing-cache FILE",
        1,
        "one row per routing whose busiest rank was worked out",
        LOADS_COLUMNS,
    ),
}

if __name__ == "__main__":
    sys.stdout.write(schema_page(schema_facts(TABLES)))
