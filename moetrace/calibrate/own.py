"""Measured ops that are one's own: a table with the columns of `moetrace cost` and a time, or a measured RUN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from moetrace.calibrate.measured import Measured, TextArray
from moetrace.cost.bulk import COST_COLUMNS
from moetrace.cost.check import dims_of
from moetrace.cost.names import COLUMNS
from moetrace.cost.reading import TIMES, batches, seconds_of
from moetrace.cost.table import read_ops
from moetrace.engines import stated
from moetrace.errors import CalibrationError, ScenarioError, unknown
from moetrace.hardware import ANY_ENGINE, profile_names
from moetrace.op import FloatArray, OpColumns
from moetrace.ops import KINDS
from moetrace.run import Run

if TYPE_CHECKING:
    import pandas as pd

# Columns beside the op and its time; the last seven, a measuring script's account of itself, are not used.
_OWN = frozenset({
    "engine", "kernel", "hardware", "shape", "weight", "p10_s", "p90_s", "repeats", "source", "sm_mhz", "mem_mhz", "power_w",
})  # fmt: skip
_OP = frozenset({"op", "kind", "dtype", "routing", "moe_tp", "moe_ep", "isl", "step", "kv_cache_dtype"})
_SHAPE_FREE = frozenset({"tokens", "m", "batch", "kv", "context", "q", "distinct", "distinct_est", "rows"})


def read_own(table: pd.DataFrame, path: Path, hardware: str) -> Measured:
    """The rows of a table that were measured on `hardware`. Raises CalibrationError with the first row that cannot be."""
    some = len(table)
    if "hardware" in table:
        table = table[table["hardware"].isna() | (table["hardware"] == hardware)]
    if table.empty:
        raise CalibrationError(
            f"{path}: no row was measured on {hardware}" if some else f"{path}: has no rows"
        )
    _check_names(table, path)
    engine = np.array([engine_of(name, str(path)) for name in _texts(table, "engine", ANY_ENGINE).tolist()])
    parts = [_read(table[engine == one], path, one, hardware) for one in dict.fromkeys(engine.tolist())]
    found = Measured.join(parts)
    return found.take(np.argsort(found.row, kind="stable"))


def _read(table: pd.DataFrame, path: Path, engine: str, hardware: str) -> Measured:
    """Rows of one engine, which says how a power law of routing was dealt."""
    row = table.index.to_numpy(dtype=np.int64)
    table = table.assign(**{name: _numbers(table, name, path) for name in TIMES if name in table})
    dims = [name for name in table.columns if name not in _OWN]
    try:
        whole = pa.concat_tables(list(batches(table[dims].reset_index(drop=True))))
        read, seconds = read_ops(whole, engine), seconds_of(whole)
    except ScenarioError as error:
        raise CalibrationError(f"{path}: {error}") from error
    if (bad := np.flatnonzero(read.problem > 0)).size:
        first = int(bad[0])
        raise CalibrationError(f"{path}, row {row[first] + 1}: {read.problems[int(read.problem[first])]}")
    if (bad := np.flatnonzero(~(np.isfinite(seconds) & (seconds > 0)))).size:
        first = int(bad[0])
        raise CalibrationError(
            f"{path}, row {row[first] + 1}: its time is {seconds[first]:g} s: expected above 0"
        )
    weight = (
        np.nan_to_num(_numbers(table, "weight", path), nan=1.0) if "weight" in table else np.ones(len(table))
    )
    shape = np.array(_shapes(read.ops), dtype=str)
    if "shape" in table:
        shape = np.where(table["shape"].isna(), shape, _texts(table, "shape", ""))
    return Measured(
        read.ops, seconds, np.full(len(table), engine), _texts(table, "kernel", ANY_ENGINE), shape,
        np.full(len(table), hardware), weight, row, path.name,
    )  # fmt: skip


def _check_names(table: pd.DataFrame, path: Path) -> None:
    """Raises CalibrationError for a column whose name is none of ours: it may be a dim whose name is spelt otherwise."""
    dims = frozenset[str]().union(*map(dims_of, KINDS)) | {"context"}
    known = dims | _OWN | _OP | set(COLUMNS) | set(TIMES)
    strange = next((str(name) for name in table.columns if name not in known), None)
    if strange in {name for name, *_ in COST_COLUMNS}:
        raise CalibrationError(
            f"{path}: column {strange} is what moetrace cost predicts, not a measurement: leave out the columns that it adds"
        )
    if strange is not None:
        kinds = sorted(set(table["kind"].astype(str))) if "kind" in table else []
        here = frozenset[str]().union(*map(dims_of, kinds)) or dims
        raise CalibrationError(
            f"{path}: {unknown('dim', strange, here)}; leave out what is not a dim of an op"
        )


def engine_of(name: str, where: str) -> str:
    """The engine of a free text as a profile's keys have it: small letters, without its version (``vLLM 0.19.0``: ``vllm``).

    Raises CalibrationError for what can be no key.
    """
    found = stated(name)
    if found is None:
        raise CalibrationError(
            f"{where}: engine {name!r}: expected a name of letters, digits and _, such as vllm"
        )
    return found[0]


def _texts(table: pd.DataFrame, name: str, default: str) -> TextArray:
    """A column as texts, the default where it is empty or there is none."""
    if name not in table:
        return np.full(len(table), default)
    return np.array(table[name].where(table[name].notna(), default).astype(str), dtype=str)


def _numbers(table: pd.DataFrame, name: str, path: Path) -> FloatArray:
    """A column of numbers, nan where it is empty. Raises CalibrationError at the first value that is none."""
    import pandas as pd

    column = table[name]
    found = pd.to_numeric(column, errors="coerce")
    bad = np.flatnonzero((found.isna() & column.notna()).to_numpy())
    if bad.size:
        raise CalibrationError(
            f"{path}, row {column.index[bad[0]] + 1}: {name} is {column.iloc[bad[0]]!r}: expected a number"
        )
    return np.asarray(found.to_numpy(dtype=np.float64))


def read_run(path: Path, hardware: str) -> Measured:
    """The ops of a measured RUN whose work is known, an execution a row. Raises CalibrationError if another machine ran it."""
    run = Run.load(path)
    if run.meta.kind != "measured":
        raise CalibrationError(f"{path}: a {run.meta.kind} run: coefficients are fitted to measured ones")
    there = run.meta.hardware or run.meta.device_class
    # One's own profile may be of any machine.
    other = there != hardware and {there, hardware} <= set(profile_names())
    if run.meta.device_class != "gpu" or other:
        raise CalibrationError(f"{path}: the run was recorded on {there}, not on {hardware}")
    index, found = run.distinct_ops
    seconds = run.numpy("dur_ns") / 1e9
    some = np.flatnonzero(seconds > 0)
    ops = OpColumns.of(found).take(index[some])
    kernel = np.array(run.column("kernel").to_pylist(), dtype=str)[some]
    return Measured(
        ops,
        seconds[some],
        np.full(some.size, engine_of(run.meta.engine or ANY_ENGINE, str(path))),
        kernel,
        np.array(_shapes(ops)),
        np.full(some.size, run.meta.hardware or ""),
        np.ones(some.size),
        some,
        path.name,
    )


def _shapes(ops: OpColumns) -> list[str]:
    """What an op is apart from its size: kind and all dims that are no count of tokens."""
    fixed = {name: values for name, values in ops.dims.items() if name not in _SHAPE_FREE}
    kinds = [ops.types[code].kind for code in ops.code.tolist()]
    rows = zip(*(values.tolist() for values in fixed.values()), strict=True) if fixed else [()] * len(ops)
    return [
        f"{kind} {' '.join(f'{v:g}' for v in row if v == v)}" for kind, row in zip(kinds, rows, strict=True)
    ]


__all__ = ["engine_of", "read_own", "read_run"]
