"""Measured ops as columns, from three kinds of table: the public performance tables, a table of one's own, a run.

The last two are read by `own`. See docs/calibrate.md.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moetrace.calibrate import public
from moetrace.calibrate.measured import DTYPES, SYSTEMS, Measured
from moetrace.calibrate.own import read_own, read_run
from moetrace.errors import CalibrationError, plainly
from moetrace.op import FloatArray, Op, OpColumns
from moetrace.routing import Ties, rank_load
from moetrace.routing.limited import limited_load

if TYPE_CHECKING:
    import pandas as pd

# Makers of public MoE tables, engine and version, whose generator deals what rounding leaves of a power law to the first
# experts (the others' spread it): at one token all experts are one rank's.
_FIRST = ("trtllm 1.3", "vllm 0.14")
# And one that gives a rank only the tokens that chose one of its experts, with all k choices of theirs: other ranks' stand for
# its own first expert. So far as rows go a rank's tokens are then as many as its choices, at most all.
_OWN_TOKENS = ("sglang 0.5.10",)
# The same maker's next version does so for models that route by a plain softmax, whose kernel it calls bare, and not for those
# with a router of their own, for which it runs the framework's layer (`use_framework_layer` in its collect_moe.py). A table
# does not name models: hidden size, width, choices and experts of Mixtral 8x7B and Gemma 4.
_PLAIN = "sglang 0.5.14"
_PLAIN_ROUTERS = ("4096x14336x2x8", "2816x704x8x128")
# And DeepSeek-V3's router keeps to groups of experts, for which these logits were not made: it chooses others.
_GROUP_ROUTER = "7168x2048x8x256"
_SUFFIXES = (".parquet", ".csv", ".jsonl")


def read_measurements(path: Path, hardware: str) -> Measured:
    """The measured ops of one table or RUN directory, those of `hardware` (a profile's name) alone where it says.

    Raises CalibrationError if the file is neither, lacks a column, or has no row for that hardware.
    """
    if path.is_dir():
        return read_run(path, hardware)
    table = _read(path)
    reader = _public(table)
    if reader is not None:
        return reader(_clean(table, path, hardware), path)
    return read_own(table, path, hardware)


def read_public(table: pd.DataFrame, path: Path) -> Measured | None:
    """All rows of a public table whose type of op is known, flagged ones too; None if it is no such table."""
    reader = _public(table)
    return None if reader is None else reader(_plain(table).reset_index(drop=True), path)


def _public(table: pd.DataFrame) -> Callable[[pd.DataFrame, Path], Measured] | None:
    return next((read for needs, read in PUBLIC if needs | {"kernel_source"} <= set(table.columns)), None)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    if path.suffix not in _SUFFIXES:
        raise CalibrationError(f"{path}: expected a RUN or a file that ends in {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path)
        else:
            table = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_parquet(path)
        names = _header(path) if path.suffix == ".csv" else list(table.columns)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise CalibrationError(
            f"{path}: cannot be read as CSV, JSON lines or Parquet ({plainly(error)})"
        ) from error
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise CalibrationError(f"{path}: has several columns {twice[0]}: which of them is meant is not known")
    return _plain(table)


def _header(path: Path) -> list[str]:
    """The names of a CSV's columns as they stand there: pandas gives a second one of a name another."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file), [])


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with texts where it has categories."""
    return table.astype({name: str for name in table.columns if str(table[name].dtype) == "category"})


def _clean(table: pd.DataFrame, path: Path, hardware: str) -> pd.DataFrame:
    """Rows of a public table that belong to the hardware and carry no quality flag."""
    if "system" in table:
        table = table[table["system"].map(lambda name: SYSTEMS.get(name, name)) == hardware]
    if "quality_flag" in table:
        table = table[table["quality_flag"] == 0]
    if table.empty:
        raise CalibrationError(f"{path}: no clean row was measured on {hardware}")
    return table.reset_index(drop=True)


def _moe(table: pd.DataFrame, path: Path) -> Measured:
    """Whole MoE modules on one rank; its routing decides how many experts are touched and is simulated.

    Times are ms. Engine and version tell how a row was made (`_FIRST`, `_OWN_TOKENS`).
    """
    table = table[(table["num_experts"] % table["moe_ep_size"] == 0) & table["moe_dtype"].isin(list(DTYPES))]
    version = table["aic_version"].astype(str) if "aic_version" in table else table["version"].astype(str)
    made_by = (table["framework"].str.lower() + " " + version).tolist()
    first = np.array([made.startswith(_FIRST) for made in made_by], dtype=bool)
    distinct, rows = np.zeros(len(table)), np.zeros(len(table))
    masks: tuple[tuple[npt.NDArray[np.bool_], Ties], ...] = ((first, "first"), (~first, "spread"))
    for mask, ties in masks:
        part = table[mask]
        load = rank_load(
            part["distribution"].tolist(), part["num_experts"], part["topk"], part["num_tokens"],
            part["moe_ep_size"], ties=ties,
        )  # fmt: skip
        distinct[mask], rows[mask] = load.distinct, load.rows
    column = {
        name: table[name].to_numpy(dtype=np.float64) for name in ("num_tokens", "hidden_size", "inter_size")
    }
    column |= {
        name: table[name].to_numpy(dtype=np.float64) for name in ("num_experts", "topk", "moe_ep_size")
    }
    shape = table[["hidden_size", "inter_size", "topk", "num_experts"]].astype(str).agg("x".join, axis=1)
    groups = (shape == _GROUP_ROUTER).to_numpy() & [made.startswith(_PLAIN) for made in made_by]
    if groups.any():
        part = table[groups]
        distinct[groups], rows[groups] = limited_load(
            part["distribution"].tolist(), 256, 8, part["num_tokens"], part["moe_ep_size"]
        )
    plain = shape.isin(_PLAIN_ROUTERS).tolist()
    own = np.array([
        made.startswith(_OWN_TOKENS) or (bare and made.startswith(_PLAIN))
        for made, bare in zip(made_by, plain, strict=True)
    ]) & (column["moe_ep_size"] > 1)  # fmt: skip
    column["num_tokens"] = np.where(own, np.minimum(rows, column["num_tokens"]), column["num_tokens"])
    rows = np.where(own, column["num_tokens"] * column["topk"], rows)
    exact = (table["distribution"] == "balanced").to_numpy()  # the only one whose touched experts are certain
    dims = {
        "tokens": column["num_tokens"],
        "hidden": column["hidden_size"],
        "inter": column["inter_size"] / table["moe_tp_size"].to_numpy(dtype=np.float64),
        "experts": column["num_experts"],
        "topk": column["topk"],
        "local_experts": column["num_experts"] / column["moe_ep_size"],
        "distinct": np.where(exact, distinct, np.nan),
        "distinct_est": np.where(exact, np.nan, distinct),
        "rows": rows,
        "gated": np.where(table["kernel_source"].str.contains("nongated"), 0.0, 1.0),
    }
    return measured("moe_module", table["moe_dtype"], dims, table, shape, path)


def measured(
    kind: str,
    dtype: pd.Series[Any],
    dims: Mapping[str, FloatArray],
    table: pd.DataFrame,
    shape: pd.Series[Any],
    path: Path,
) -> Measured:
    """Rows of a public table (`latency` in ms, `framework`, `kernel_source`) as measured ops of one kind."""
    words, code = np.unique(dtype.map(DTYPES).to_numpy(dtype=str), return_inverse=True)
    ops = OpColumns(tuple(Op(kind, str(word)) for word in words), code.astype(np.int64), dict(dims))
    system = (
        table["system"].map(lambda name: SYSTEMS.get(name, name))
        if "system" in table
        else table["kernel_source"]
    )
    return Measured(
        ops=ops,
        seconds=table["latency"].to_numpy(dtype=np.float64) * 1e-3,
        engine=table["framework"].str.lower().to_numpy(dtype=str),
        kernel=table["kernel_source"].to_numpy(dtype=str),
        shape=shape.to_numpy(dtype=str),
        hardware=system.to_numpy(dtype=str),
        weight=np.ones(len(table)),
        row=table.index.to_numpy(dtype=np.int64),
        source=path.name,
    )


# Columns that tell a public table, and its reader.
PUBLIC: tuple[tuple[frozenset[str], Callable[[pd.DataFrame, Path], Measured]], ...] = (
    (frozenset({"moe_dtype", "num_tokens", "moe_tp_size", "moe_ep_size", "distribution", "latency"}), _moe),
    *public.TABLES,
)
