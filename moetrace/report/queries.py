"""Example queries for each table, the same question in pandas, DuckDB and Polars; the tests run and compare them.

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


def _queries(question: str, pandas: str, duckdb: str, polars: str) -> Mapping[str, str]:
    """One question as three programs; `pandas` and `polars` are the lines that make `answer`."""
    return {
        "pandas": f"# {question}\nimport pandas as pd\n\n{pandas}\nprint(answer)\n",
        "duckdb": duckdb + "\n",
        "polars": f"import polars as pl\n\n{polars}\nprint(answer)\n",
    }


_TOKENS = _queries(
    "How often each expert was chosen first, over all layers and steps",
    """\
rows = pd.read_parquet("rec/routing_tokens.parquet")
answer = rows[rows.rank_of_choice == 1].groupby("expert").size().sort_values(ascending=False)""",
    """\
SELECT expert, count(*) AS tokens FROM 'rec/routing_tokens.parquet'
WHERE rank_of_choice = 1 GROUP BY expert ORDER BY tokens DESC;""",
    """\
rows = pl.scan_parquet("rec/routing_tokens.parquet").filter(pl.col("rank_of_choice") == 1)
answer = rows.group_by("expert").agg(pl.len().alias("tokens")).sort("tokens", descending=True).collect()""",
)

_RANKS = _queries(
    "How long each rank waited for others, over all steps, in ns",
    """\
rows = pd.read_parquet("out/ranks.parquet", columns=["rank", "wait_ns"])
answer = rows[rows.wait_ns.notna()].groupby("rank").wait_ns.sum().sort_values(ascending=False)""",
    """\
SELECT rank, sum(wait_ns)::DOUBLE AS wait_ns FROM 'out/ranks.parquet'
WHERE wait_ns IS NOT NULL GROUP BY rank ORDER BY wait_ns DESC;""",
    """\
rows = pl.scan_parquet("out/ranks.parquet").drop_nulls("wait_ns")
answer = rows.group_by("rank").agg(pl.col("wait_ns").sum()).sort("wait_ns", descending=True).collect()""",
)

_SCENARIOS = _queries(
    "Most output tokens per second and device at each batch, of the scenarios that fit",
    """\
rows = pd.read_parquet("grid/scenarios", columns=["batch", "fits", "output_per_gpu_per_s"])
rows = rows[rows.fits.fillna(False).astype(bool)]
answer = rows.groupby("batch").output_per_gpu_per_s.max().sort_values(ascending=False)""",
    """\
SELECT batch, max(output_per_gpu_per_s) AS best FROM 'grid/scenarios/*.parquet'
WHERE fits GROUP BY batch ORDER BY best DESC;""",
    """\
rows = pl.scan_parquet("grid/scenarios/*.parquet").filter(pl.col("fits"))
best = rows.group_by("batch").agg(pl.col("output_per_gpu_per_s").max().alias("best"))
answer = best.sort("best", descending=True).collect()""",
)

_BREAKDOWN = _queries(
    "Seconds of each op family in the decode step, mean over all scenarios",
    """\
rows = pd.read_parquet("grid/breakdown", columns=["family", "decode_s"])
answer = rows.groupby("family", observed=True).decode_s.mean().sort_values(ascending=False)""",
    """\
SELECT family, avg(decode_s) AS decode_s FROM 'grid/breakdown/*.parquet'
GROUP BY family ORDER BY decode_s DESC;""",
    """\
rows = pl.scan_parquet("grid/breakdown/*.parquet").group_by("family").agg(pl.col("decode_s").mean())
answer = rows.sort("decode_s", descending=True).collect()""",
)

_COST = _queries(
    "Time of all ops by what bounds them",
    """\
rows = pd.read_parquet("costs.parquet", columns=["bound", "time_s"])
answer = rows.groupby("bound", observed=True).time_s.sum().sort_values(ascending=False)""",
    """\
SELECT bound, sum(time_s) AS time_s FROM 'costs.parquet'
WHERE bound IS NOT NULL GROUP BY bound ORDER BY time_s DESC;""",
    """\
rows = pl.scan_parquet("costs.parquet").drop_nulls("bound").group_by("bound").agg(pl.col("time_s").sum())
answer = rows.sort("time_s", descending=True).collect()""",
)

_LEDGER = _queries(
    "Mean absolute error by source",
    """\
rows = pd.read_parquet("ledger.parquet", columns=["source", "error"]).dropna()
answer = rows.error.abs().groupby(rows.source).mean().sort_values(ascending=False)""",
    """\
SELECT source, avg(abs(error)) AS error FROM 'ledger.parquet'
WHERE error IS NOT NULL GROUP BY source ORDER BY error DESC;""",
    """\
rows = pl.scan_parquet("ledger.parquet").drop_nulls("error")
answer = rows.group_by("source").agg(pl.col("error").abs().mean()).sort("error", descending=True).collect()""",
)

_LOADS = _queries(
    "Distinct experts on the busiest rank, by tokens, mean over all that was worked out",
    """\
rows = pd.read_parquet("routing.parquet")
answer = rows.groupby("tokens").distinct.mean().sort_values(ascending=False)""",
    """\
SELECT tokens, avg("distinct") AS experts FROM 'routing.parquet' GROUP BY tokens ORDER BY experts DESC;""",
    """\
rows = pl.scan_parquet("routing.parquet").group_by("tokens").agg(pl.col("distinct").mean())
answer = rows.sort("distinct", descending=True).collect()""",
)

QUERIES: Mapping[str, Mapping[str, str]] = {
    "ops": _OPS,
    "attribution": _ATTRIBUTION,
    "routing": _ROUTING,
    "routing_tokens": _TOKENS,
    "ranks": _RANKS,
    "scenarios": _SCENARIOS,
    "breakdown": _BREAKDOWN,
    "cost": _COST,
    "ledger": _LEDGER,
    "loads": _LOADS,
}
