"""The columns of all tables, their units and what null says: docs/schema.md (``make docs``) and ``moetrace schema``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from moetrace.report.queries import QUERIES
from moetrace.report.tables import Block, Table
from moetrace.run import RUN_VERSION

SCHEMA = "moetrace.schema/1"
_NAMES = {"pandas": "pandas", "duckdb": "DuckDB", "polars": "Polars"}


@dataclass(frozen=True, slots=True)
class Written:
    """A table: its file and the verb that writes it, version, what a row is, columns."""

    file: str
    verb: str
    version: int
    rows: str
    columns: Sequence[tuple[str, pa.DataType, str]]
    minor: int = 0


# The end of a column's name says its unit; the first that fits counts.
_UNITS = (
    ("bytes_per_s", "B/s"), ("flop_per_s", "FLOP/s"), ("_per_s", "tokens/s"), ("intensity", "FLOP/B"), ("_ns", "ns"),
    ("_s", "s"), ("_bytes", "B"), ("flops", "FLOP"), ("error", "share"), ("count", "tokens"),
)  # fmt: skip
_NULL = re.compile(r"; null: (?P<null>.*)$")

_HEAD = f"""# Tables: what the files hold

<!-- Made by `make docs` from the columns' own declarations and report/queries.py; edit those. -->

A RUN is a directory, written whole or not at all: `run.json` (model, machine, parallelism, steps, and where they are known
from; `version` is {RUN_VERSION}) and the first three tables. `diff` writes JSON and HTML, no table.

| table | file | written by | holds |
|---|---|---|---|
"""

_RULES = """
A predicted run has the same files and columns as a measured one. `moetrace schema [TABLE] [--json]` prints this page's tables.

**Versions.** Parquet metadata names the table (`moetrace.table`), its version (`moetrace.version`) and minor version
(`moetrace.minor`). Within a version columns may be added, which raises the minor version, never renamed, retyped or given
another meaning: that makes a new version, which older moetraces refuse by name. A file of a newer minor version, with columns
that this moetrace does not know, is read, and so is a file from before a column was added: where null has a meaning, an absent
column reads as null throughout.

Times named `_ns` are whole nanoseconds, everything else is in SI units. `text` columns are dictionary-encoded. Sums over
`dur_ns` count time twice where streams overlap; `exposed_ns` of the attribution does not. In the examples `run` is a RUN,
`rec` a recording, `out` what `parse` made of many ranks, `grid` a grid.
"""


def schema_facts(tables: Mapping[str, Written], table: str | None = None) -> dict[str, Any]:
    """The tables, or one of them: file, the verb that writes it, version, minor, rows, `columns` (name, type, unit, null,
    meaning) and example `queries`.

    `unit` is None for what has none, `null` None for a column that is never null.
    """
    found = {
        name: {
            "file": t.file,
            "written_by": f"moetrace {t.verb}",
            "version": t.version,
            "minor": t.minor,
            "rows": t.rows,
            "columns": [_column(*column) for column in t.columns],
            "queries": QUERIES[name],
        }
        for name, t in tables.items()
        if table in (None, name)
    }
    return {"schema": SCHEMA, "run_version": RUN_VERSION, "tables": found}


def schema_report(facts: Mapping[str, Any]) -> list[Block]:
    """Blocks for `schema_facts`; of one table its queries too."""
    blocks: list[Block] = []
    header = ("column", "type", "unit", "null says", "meaning")
    for name, found in facts["tables"].items():
        rows = tuple(
            (c["name"], c["type"], c["unit"] or "", c["null"] or "never null", c["meaning"])
            for c in found["columns"]
        )
        title = (
            f"{name}, version {found['version']}.{found['minor']}: {found['file']} of {found['written_by']}, "
            f"{found['rows'].replace('`', '')}"
        )
        blocks.append(Table(title, header, rows, left=5))
        if len(facts["tables"]) == 1:
            for tool, query in found["queries"].items():
                blocks += [f"{_NAMES[tool]}:", *(f"  {line}" for line in query.splitlines()), ""]
    return blocks


def schema_page(facts: Mapping[str, Any]) -> str:
    """The text of docs/schema.md, for `schema_facts`."""
    tables = facts["tables"]
    files = [
        f"| [{name}](#{name}) | `{t['file']}` | `{t['written_by']}` | {t['rows']} |"
        for name, t in tables.items()
    ]
    sections = [_section(name, found) for name, found in tables.items()]
    return "\n".join([_HEAD + "\n".join(files), _RULES, *sections])


def _section(name: str, found: Mapping[str, Any]) -> str:
    lines = [
        f"## {name}",
        "",
        f"`{found['file']}` of `{found['written_by']}`, version {found['version']}.{found['minor']}: {found['rows']}.",
        "",
        "| column | type | unit | null says | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{c['name']}` | {c['type']} | {c['unit'] or ''} | {c['null'] or 'never null'} | {c['meaning']} |"
        for c in found["columns"]
    ]
    for tool, query in found["queries"].items():
        lines += [
            "",
            f"In {_NAMES[tool]}:",
            "",
            f"```{'sql' if tool == 'duckdb' else 'python'}",
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
