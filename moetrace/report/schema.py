"""docs/schema.md, made from the tables' own definitions (``make docs``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pyarrow as pa

from moetrace.attribute import ATTRIBUTION_COLUMNS
from moetrace.parse.ranks.compare import RANKS_COLUMNS
from moetrace.routing import ROUTING_COLUMNS
from moetrace.run import OPS_COLUMNS, RUN_VERSION

_HEAD = f"""# What a RUN holds

<!-- Made by `make docs` from moetrace/run.py, moetrace/attribute and moetrace/routing; edit those. -->

A RUN is a directory, written whole or not at all:

| file | holds |
|---|---|
| `run.json` | model, machine, parallelism, steps, and where they are known from; `version` is {RUN_VERSION} |
| `ops.parquet` | one row per op execution |
| `routing.parquet` | how often each expert was chosen, by step, layer and rank of choice; if recorded |
| `attribution.parquet` | one row per row of `ops.parquet`, in its order; once `moetrace attribute` has run |

`moetrace parse` of many ranks writes a directory of RUNs, `rank-0`, `rank-1`, ..., and beside them `ranks.parquet`, one row per
rank and step, and `ranks.json`, the comparison that it prints.

A predicted run has the same files and columns as a measured one. Parquet metadata names the table
(`moetrace.table`) and its version (`moetrace.version`). Columns may be added within a version; one that
changes its meaning makes a new version. Times named `_ns` are whole nanoseconds, everything else is in SI units.
`text` columns are dictionary-encoded.
"""

_QUERIES = """## Queries

Time by op family, of the decode steps. In pandas, reading only three columns:

```python
import pandas as pd

ops = pd.read_parquet("run/ops.parquet", columns=["family", "phase", "dur_ns"])
print(ops[ops.phase == "decode"].groupby("family", observed=True).dur_ns.sum().sort_values(ascending=False))
```

In DuckDB:

```sql
SELECT family, sum(dur_ns) / 1e6 AS ms FROM 'run/ops.parquet'
WHERE phase = 'decode' GROUP BY family ORDER BY ms DESC;
```

In Polars:

```python
import polars as pl

ops = pl.scan_parquet("run/ops.parquet").filter(pl.col("phase").cast(pl.String) == "decode")
print(ops.group_by("family").agg(pl.col("dur_ns").sum()).sort("dur_ns", descending=True).collect())
```

The tables line up row by row, so what an op took and what it should have taken stand side by side:

```python
import pandas as pd

ops = pd.read_parquet("run/ops.parquet", columns=["layer", "kind", "dur_ns"])
bounds = pd.read_parquet("run/attribution.parquet", columns=["expected_s"])
both = ops.join(bounds)
print(both[both.kind == "moe_gate_up"].groupby("layer")[["dur_ns", "expected_s"]].sum())
```

Sums over `dur_ns` count time twice where streams overlap; `moetrace attribute` takes the union.
"""


def _type_name(kind: pa.DataType) -> str:
    return "text" if pa.types.is_dictionary(kind) or pa.types.is_string(kind) else str(kind)


def _columns(title: str, columns: Sequence[tuple[str, pa.DataType, str]]) -> str:
    lines = [f"## {title}", "", "| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {_type_name(kind)} | {meaning} |" for name, kind, meaning in columns]
    return "\n".join(lines) + "\n"


def schema_page() -> str:
    """The text of docs/schema.md."""
    tables = [
        _columns("ops.parquet", OPS_COLUMNS),
        _columns("attribution.parquet", ATTRIBUTION_COLUMNS),
        _columns("routing.parquet", ROUTING_COLUMNS),
        _columns("ranks.parquet", RANKS_COLUMNS),
    ]
    return "\n".join([_HEAD, *tables, _QUERIES])


if __name__ == "__main__":
    sys.stdout.write(schema_page())
