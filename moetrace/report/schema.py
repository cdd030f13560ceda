"""The columns of a RUN's tables, their units and what null says: docs/schema.md (``make docs``) and ``moetrace schema``."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from moetrace.attribute import ATTRIBUTION_COLUMNS, ATTRIBUTION_VERSION
from moetrace.report.queries import QUERIES
from moetrace.report.tables import Block, Table
from moetrace.routing import ROUTING_COLUMNS, ROUTING_VERSION
from moetrace.run import OPS_COLUMNS, RUN_VERSION

SCHEMA = "moetrace.schema/1"
_NAMES = {"pandas": "pandas", "duckdb": "DuckDB", "polars": "Polars"}
_TABLES: Mapping[str, tuple[int, str, Sequence[tuple[str, pa.DataType, str]]]] = {
    "ops": (RUN_VERSION, "one row per op execution", OPS_COLUMNS),
    "attribution": (
        ATTRIBUTION_VERSION,
        "one row per row of `ops.parquet`, in its order; once `moetrace attribute` has run",
        ATTRIBUTION_COLUMNS,
    ),
    "routing": (
        ROUTING_VERSION,
        "how often each expert was chosen, by step, layer and rank of choice; if recorded",
        ROUTING_COLUMNS,
    ),
}
TABLES = tuple(_TABLES)
# The end of a column's name says its unit; the first that fits counts.
_UNITS = (
    ("bytes_per_s", "B/s"), ("flop_per_s", "FLOP/s"), ("intensity", "FLOP/B"), ("_ns", "ns"), ("_s", "s"), ("_bytes", "B"),
    ("flops", "FLOP"), ("error", "share"), ("count", "tokens"),
)  # fmt: skip
_NULL = re.compile(r"; null: (?P<null>.*)$")

_HEAD = f"""# What a RUN holds

<!-- Made by `make docs` from moetrace/run/columns.py, attribute/, routing/ and report/queries.py; edit those. -->

A RUN is a directory, written whole or not at all:

| file | holds |
|---|---|
| `run.json` | model, machine, parallelism, steps, and where they are known from; `version` is {RUN_VERSION} |
"""

_RULES = """
A predicted run has the same files and columns as a measured one. `moetrace schema [TABLE] [--json]` prints this page's tables.

**Versions.** Parquet metadata names the table (`moetrace.table`) and its version (`moetrace.version`; of routing
`moetrace.routing.version`). Within a version columns may be added, never renamed, retyped or given another meaning: that makes
a new version, which older moetraces refuse by name. A file with columns that this moetrace does not know is read, and so
is a file from before a column was added: where null has a meaning, an absent column reads as null throughout.

Times named `_ns` are whole nanoseconds, everything else is in SI units. `text` columns are dictionary-encoded. Sums over
`dur_ns` count time twice where streams overlap; `exposed_ns` of the attribution does not.
"""


def schema_facts(table: str | None = None) -> dict[str, Any]:
    """The tables, or one of them: file, version, rows, `columns` (name, type, unit, null, meaning) and example `queries`.

    `unit` is None for what has none, `null` None for a column that is never null.
    """
    tables = {
        name: {
            "file": f"{name}.parquet",
            "version": version,
            "rows": rows,
            "columns": [_column(*column) for column in columns],
            "queries": QUERIES[name],
        }
        for name, (version, rows, columns) in _TABLES.items()
        if table in (None, name)
    }
    return {"schema": SCHEMA, "run_version": RUN_VERSION, "tables": tables}


def schema_report(facts: Mapping[str, Any]) -> list[Block]:
    """Blocks for `schema_facts`; of one table its queries too."""
    blocks: list[Block] = []
    header = ("column", "type", "unit", "null says", "meaning")
    for found in facts["tables"].values():
        rows = tuple(
            (c["name"], c["type"], c["unit"] or "", c["null"] or "never null", c["meaning"])
            for c in found["columns"]
        )
        title = f"{found['file']}, version {found['version']}: {found['rows'].replace('`', '')}"
        blocks.append(Table(title, header, rows, left=5))
        if len(facts["tables"]) == 1:
            for name, query in found["queries"].items():
                blocks += [f"{_NAMES[name]}:", *(f"  {line}" for line in query.splitlines()), ""]
    return blocks


def schema_page() -> str:
    """The text of docs/schema.md."""
    tables = schema_facts()["tables"]
    files = [f"| `{t['file']}` | {t['rows']} |" for t in tables.values()]
    return "\n".join([_HEAD + "\n".join(files), _RULES, *map(_section, tables.values())])


def _section(found: Mapping[str, Any]) -> str:
    lines = [
        f"## {found['file']}",
        "",
        "| column | type | unit | null says | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{c['name']}` | {c['type']} | {c['unit'] or ''} | {c['null'] or 'never null'} | {c['meaning']} |"
        for c in found["columns"]
    ]
    for name, query in found["queries"].items():
        lines += [
            "",
            f"In {_NAMES[name]}:",
            "",
            f"```{'sql' if name == 'duckdb' else 'python'}",
            query.rstrip(),
            "```",
        ]
    return "\n".join(lines) + "\n"


def _column(name: str, kind: pa.DataType, doc: str) -> dict[str, Any]:
    found = _NULL.search(doc)
    text = pa.types.is_dictionary(kind) or pa.types.is_string(kind)
    return {
        "name": name,
        "type": "text" if text else str(kind),
        "unit": next((unit for end, unit in _UNITS if name.endswith(end)), None),
        "null": found["null"] if found else None,
        "meaning": doc[: found.start()] if found else doc,
    }


if __name__ == "__main__":
    sys.stdout.write(schema_page())
