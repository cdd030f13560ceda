"""A table of ops to OpColumns: columns by name, the routing of MoE ops, and what is wrong with which row.

See docs/cost.md for the columns. Nothing here stops at a bad row: each row has a code, 0 where it is fine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from moetrace import ops
from moetrace.cost.cells import BoolArray, IntArray, Rows, codes, numbers
from moetrace.cost.check import check, check_distinct, dims_of
from moetrace.cost.names import COLUMNS, DTYPES, KINDS
from moetrace.cost.routed import routed
from moetrace.errors import MoetraceError, ScenarioError, unknown
from moetrace.grouping import distinct_rows
from moetrace.hardware import ANY_ENGINE
from moetrace.op import Op, OpColumns, dtypes
from moetrace.routing import Ties

_TEXT = ("kind", "dtype", "op", "routing")


@dataclass(frozen=True, slots=True)
class OpTable:
    """The ops of a table's rows. `problems[problem]` is what is wrong with a row, "" where nothing is.

    `routings[routing]` says what the distinct experts of a row's MoE op follow, "" for other ops; `routing_s` is how long
    it took to find out, nearly all of it for what was not known yet.
    """

    ops: OpColumns
    problems: tuple[str, ...]
    problem: IntArray
    routings: tuple[str, ...]
    routing: IntArray
    routing_s: float

    def marked(self, bad: BoolArray, text: str) -> OpTable:
        """The same with a problem of these rows, unless they have one."""
        problem = np.where(bad & (self.problem == 0), len(self.problems), self.problem)
        return replace(self, problems=(*self.problems, text), problem=problem)


# Whom the rest of a power law reaches first in the measurements behind an engine's coefficients: TensorRT-LLM 1.3's.
_TIES: Mapping[str, Ties] = {"trtllm": "first"}


def columns_of(names: Sequence[str]) -> dict[str, str]:
    """Our name -> the table's, of the columns that may say what the ops are. Raises ScenarioError if two mean the same."""
    found: dict[str, str] = {}
    for name in names:
        own = COLUMNS.get(name, name)
        if own in found and name != own:
            if found[own] == own:
                continue  # our own name wins over another table's
            raise ScenarioError(f"columns {found[own]!r} and {name!r} both say {own}: leave one out")
        found[own] = name
    if "op" not in found and not {"kind", "dtype"} <= set(found):
        raise ScenarioError(
            f"the table has the columns {', '.join(names)}: expected kind, dtype and the dims, or op (see docs/cost.md)"
        )
    return found


def read_ops(table: pa.Table, engine: str = ANY_ENGINE) -> OpTable:
    """The ops of a table, row by row; a power law as the tables behind the engine's coefficients deal it.

    Raises ScenarioError if its columns do not say what they are.
    """
    source = columns_of(table.column_names)
    rows = Rows(table.num_rows, source)
    column = {own: table.column(name) for own, name in source.items()}
    found = _from_text(rows, column["op"]) if "op" in column else _from_dims(rows, column)
    moe = found.by_type(["distinct" in dims_of(op.kind) for op in found.types]) > 0
    if moe.any():
        found = _shared_out(rows, found, moe, column)
    check(rows, found)
    begin = time.perf_counter()
    found, words, code = routed(
        rows, found, moe, column.get("routing"), _TIES.get(engine.partition("@")[0], "spread")
    )
    routing_s = time.perf_counter() - begin
    check_distinct(rows, found)
    bad = rows.problem > 0
    if bad.any():  # no formula is to see a bad row, nor its numbers
        dims = {name: np.where(bad, np.nan, values) for name, values in found.dims.items()}
        found = OpColumns((*found.types, Op(ops.OTHER)), np.where(bad, len(found.types), found.code), dims)
    return OpTable(found, tuple(rows.problems), rows.problem, words, code, routing_s)


def _from_text(rows: Rows, column: pa.ChunkedArray) -> OpColumns:
    code, texts = codes(column)
    parsed, wrong = [], list[str | None]()
    for text in texts:
        try:
            parsed.append(Op.parse(text))
            wrong.append(_unknown(parsed[-1].kind, parsed[-1].dtype))
        except MoetraceError as error:
            parsed.append(Op("other"))
            wrong.append(str(error))
    rows.mark(code < 0, "op is empty")
    rows.mark_each(code, wrong)
    return OpColumns.of([*parsed, Op("other")]).take(code)


def _from_dims(rows: Rows, column: dict[str, pa.ChunkedArray]) -> OpColumns:
    kind_code, kinds = codes(column["kind"], KINDS)
    dtype_code, dtype = codes(column["dtype"], DTYPES)
    kv_code, kv = (
        codes(column["kv_cache_dtype"], DTYPES) if "kv_cache_dtype" in column else (dtype_code, dtype)
    )
    rows.mark(kind_code < 0, "kind is empty")
    rows.mark(dtype_code < 0, "dtype is empty")
    first, code = distinct_rows(kind_code, dtype_code, kv_code)
    types = []
    for at in first.tolist():
        weights = dtype[dtype_code[at]] if dtype_code[at] >= 0 else "bf16"
        name = kinds[kind_code[at]] if kind_code[at] >= 0 else ops.OTHER
        # A cache in a type of its own: the op's dtype is the cache's, then the activations'.
        if "kv" in dims_of(name) and kv_code[at] >= 0 and kv[kv_code[at]] != weights:
            weights = f"{kv[kv_code[at]]}/{weights}"
        types.append(Op(name, weights))
    rows.mark_each(code, [_unknown(op.kind, op.dtype) for op in types])
    wanted = frozenset[str]().union(*(dims_of(op.kind) for op in types))
    dims = {
        name: numbers(rows, name, column[name]) for name in column if name in wanted and name not in _TEXT
    }
    found = OpColumns(tuple(types), code, dims)
    return _with_kv(rows, found, column) if "kv" in wanted else found


def _with_kv(rows: Rows, found: OpColumns, column: dict[str, pa.ChunkedArray]) -> OpColumns:
    """KV tokens from `context`, or `isl` and `step`, where `kv` is not given: batch x context, cut to a window."""
    window = found.column("window", 0.0)
    dims = {
        **found.dims,
        **({"window": np.where(window > 0, window, np.nan)} if "window" in found.dims else {}),
    }
    if "kv" not in column and "batch" in dims:
        if "context" in column:
            context = numbers(rows, "context", column["context"])
        elif {"isl", "step"} <= set(column):
            context = numbers(rows, "isl", column["isl"]) + numbers(rows, "step", column["step"])
        else:
            return replace(found, dims=dims)
        read = np.where(window > 0, np.minimum(context, window), context)
        # Of it, what a window cuts off costs little.
        dims["context"] = np.where(context > read, context, np.nan)
        dims["kv"] = np.where(
            found.by_type(["kv" in dims_of(op.kind) for op in found.types]) > 0, dims["batch"] * read, np.nan
        )
    return replace(found, dims=dims)


def _shared_out(
    rows: Rows, found: OpColumns, moe: BoolArray, column: dict[str, pa.ChunkedArray]
) -> OpColumns:
    """What one rank does of MoE ops given whole: `inter` over moe_tp ranks, `experts` over moe_ep."""
    dims = dict(found.dims)
    if "moe_tp" in column:
        ways = np.nan_to_num(numbers(rows, "moe_tp", column["moe_tp"]), nan=1.0)
        rows.mark(
            moe & ~((ways >= 1) & (ways % 1 == 0)), f"{rows.called('moe_tp')} is not a whole number from 1"
        )
        inter = found.column("inter")
        dims["inter"] = np.where(moe, inter / np.maximum(ways, 1.0), inter)
        rows.mark(moe & (dims["inter"] % 1 != 0) & ~np.isnan(inter), "inter does not divide by moe_tp")
    if "moe_ep" in column:
        ways = np.nan_to_num(numbers(rows, "moe_ep", column["moe_ep"]), nan=1.0)
        rows.mark(
            moe & ~((ways >= 1) & (ways % 1 == 0)), f"{rows.called('moe_ep')} is not a whole number from 1"
        )
        experts, local = found.column("experts"), found.column("local_experts")
        share = experts / np.maximum(ways, 1.0)
        rows.mark(moe & (share % 1 != 0) & ~np.isnan(experts), "experts do not divide by moe_ep")
        dims["local_experts"] = np.where(moe & np.isnan(local) & (ways > 1), share, local)
    return replace(found, dims=dims)


def _unknown(kind: str, dtype: str) -> str | None:
    """What is wrong with a kind and dtype, None if nothing."""
    if kind not in ops.KINDS:
        return unknown("kind", kind, ops.KINDS)
    odd = next((part for part in dtype.split("/") if part not in dtypes()), None)
    return None if odd is None else unknown("dtype", odd, dtypes())
