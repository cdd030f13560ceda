"""Example queries for each table of a RUN, the same question in pandas, DuckDB and Polars; the tests run and compare them.

Each names its result `answer`: groups, and a number for each, largest first.
"""

from __future__ import annotations

from collections.abc import Mapping

_OPS = {
    "pandas": """\
# Time of the decode steps by op family, reading only three columns
import pandas as pd

ops = pd.read_parquet("run/ops.parquet", columns=["family", "phase", "dur_ns"])
answer = ops[ops.phase == "decode"].groupby("family", observed=True).dur_ns.sum().sort_values(ascending=False)
print(answer)
""",
    "duckdb": """\
SELECT family, sum(dur_ns) AS dur_ns FROM 'run/ops.parquet'
WHERE phase = 'decode' GROUP BY family ORDER BY dur_ns DESC;
""",
    "polars": """\
import polars as pl

ops = pl.scan_parquet("run/ops.parquet").filter(pl.col("phase").cast(pl.String) == "decode")
answer = ops.group_by("family").agg(pl.col("dur_ns").sum()).sort("dur_ns", descending=True).collect()
print(answer)
""",
}

_ATTRIBUTION = {
    "pandas": """\
# Time beyond what the machine's law expects, by op kind, where the work is known
import pandas as pd

rows = pd.read_parquet("run/attribution.parquet", columns=["kind", "phase", "unexplained_s"])
known = rows[(rows.phase == "decode") & rows.unexplained_s.notna()]
answer = known.groupby("kind", observed=True).unexplained_s.sum().sort_values(ascending=False)
print(answer)
""",
    "duckdb": """\
SELECT kind, sum(unexplained_s) AS unexplained_s FROM 'run/attribution.parquet'
WHERE phase = 'decode' AND unexplained_s IS NOT NULL GROUP BY kind ORDER BY unexplained_s DESC;
""",
    "polars": """\
import polars as pl

rows = pl.scan_parquet("run/attribution.parquet").filter(pl.col("phase").cast(pl.String) == "decode")
known = rows.drop_nulls("unexplained_s").group_by("kind").agg(pl.col("unexplained_s").sum())
answer = known.sort("unexplained_s", descending=True).collect()
print(answer)
""",
}

_ROUTING = {
    "pandas": """\
# Tokens of the busiest expert of each layer, over all steps
import pandas as pd

counts = pd.read_parquet("run/routing.parquet")
load = counts.groupby(["layer", "expert"])["count"].sum()
answer = load.groupby("layer").max().sort_values(ascending=False)
print(answer)
""",
    "duckdb": """\
SELECT layer, max(load) AS tokens
FROM (SELECT layer, expert, sum("count") AS load FROM 'run/routing.parquet' GROUP BY layer, expert)
GROUP BY layer ORDER BY tokens DESC;
""",
    "polars": """\
import polars as pl

counts = pl.scan_parquet("run/routing.parquet")
load = counts.group_by("layer", "expert").agg(pl.col("count").sum().alias("tokens"))
answer = load.group_by("layer").agg(pl.col("tokens").max()).sort("tokens", descending=True).collect()
print(answer)
""",
}

QUERIES: Mapping[str, Mapping[str, str]] = {"ops": _OPS, "attribution": _ATTRIBUTION, "routing": _ROUTING}
