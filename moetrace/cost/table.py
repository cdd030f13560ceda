"""A table of ops to OpColumns: columns by name, the routing of MoE ops, and what is wrong with which row.

See docs/cost.md for the columns. Nothing here stops at a bad row: each row has a code, 0 where it is fine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moetrace import ops
from moetrace.cost.names import COLUMNS, DTYPES, KINDS
from moetrace.errors import MoetraceError, ScenarioError
from moetrace.grouping import distinct_rows
from moetrace.hardware import ANY_ENGINE
from moetrace.op import FloatArray, Op, OpColumns, dtypes
from moetrace.routing import Ties, rank_load

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
UNIFORM = "uniform"
_COUNTED = "counted"  # what a routing given as a number becomes: so many distinct experts on the rank
_ROUNDED = 1e-6  # experts that a count read from text may be off
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
    rows = _Rows(table.num_rows)
    source = columns_of(table.column_names)
    column = {own: table.column(name) for own, name in source.items()}
    found = _from_text(rows, column["op"]) if "op" in column else _from_dims(rows, column)
    moe = found.by_type(["distinct" in _dims(op.kind) for op in found.types]) > 0
    if moe.any():
        found = _shared_out(rows, found, moe, column)
    begin = time.perf_counter()
    found, words, code = _routed(rows, found, moe, column.get("routing"), _TIES.get(engine, "spread"))
    routing_s = time.perf_counter() - begin
    _check(rows, found)
    if (rows.problem > 0).any():  # no formula is to see a bad row
        code_of = np.where(rows.problem > 0, len(found.types), found.code)
        found = replace(found, types=(*found.types, Op(ops.OTHER)), code=code_of)
    return OpTable(found, tuple(rows.problems), rows.problem, words, code, routing_s)


@dataclass(slots=True)
class _Rows:
    """What is found wrong while rows are read; the first problem of a row stays."""

    size: int
    problems: list[str] = field(default_factory=lambda: [""])
    problem: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.problem = np.zeros(self.size, dtype=np.int64)

    def mark(self, bad: BoolArray, text: str) -> None:
        bad = bad & (self.problem == 0)
        if bad.any():
            self.problem[bad] = len(self.problems)
            self.problems.append(text)

    def mark_each(self, code: IntArray, texts: Sequence[str | None]) -> None:
        """Marks the rows of every code that has a text."""
        for at, text in enumerate(texts):
            if text is not None:
                self.mark(code == at, text)


def _dims(kind: str) -> frozenset[str]:
    return ops.dims_read(kind) if kind in ops.KINDS else frozenset()


def _from_text(rows: _Rows, column: pa.ChunkedArray) -> OpColumns:
    code, texts = _codes(column)
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


def _from_dims(rows: _Rows, column: dict[str, pa.ChunkedArray]) -> OpColumns:
    kind_code, kinds = _codes(column["kind"], KINDS)
    dtype_code, dtype = _codes(column["dtype"], DTYPES)
    kv_code, kv = (
        _codes(column["kv_cache_dtype"], DTYPES) if "kv_cache_dtype" in column else (dtype_code, dtype)
    )
    rows.mark(kind_code < 0, "kind is empty")
    rows.mark(dtype_code < 0, "dtype is empty")
    first, code = distinct_rows(kind_code, dtype_code, kv_code)
    types = []
    for at in first.tolist():
        weights = dtype[dtype_code[at]] if dtype_code[at] >= 0 else "bf16"
        name = kinds[kind_code[at]] if kind_code[at] >= 0 else ops.OTHER
        # A cache in a type of its own: the op's dtype is the cache's, then the activations'.
        if "kv" in _dims(name) and kv_code[at] >= 0 and kv[kv_code[at]] != weights:
            weights = f"{kv[kv_code[at]]}/{weights}"
        types.append(Op(name, weights))
    rows.mark_each(code, [_unknown(op.kind, op.dtype) for op in types])
    wanted = frozenset[str]().union(*(_dims(op.kind) for op in types))
    dims = {
        name: _numbers(rows, name, column[name]) for name in column if name in wanted and name not in _TEXT
    }
    found = OpColumns(tuple(types), code, dims)
    return _with_kv(rows, found, column) if "kv" in wanted else found


def _with_kv(rows: _Rows, found: OpColumns, column: dict[str, pa.ChunkedArray]) -> OpColumns:
    """KV tokens from `context`, or `isl` and `step`, where `kv` is not given: batch x context, cut to a window."""
    window = found.column("window", 0.0)
    dims = {
        **found.dims,
        **({"window": np.where(window > 0, window, np.nan)} if "window" in found.dims else {}),
    }
    if "kv" not in column and "batch" in dims:
        if "context" in column:
            context = _numbers(rows, "context", column["context"])
        elif {"isl", "step"} <= set(column):
            context = _numbers(rows, "isl", column["isl"]) + _numbers(rows, "step", column["step"])
        else:
            return replace(found, dims=dims)
        read = np.where(window > 0, np.minimum(context, window), context)
        dims["kv"] = np.where(
            found.by_type(["kv" in _dims(op.kind) for op in found.types]) > 0, dims["batch"] * read, np.nan
        )
    return replace(found, dims=dims)


def _shared_out(
    rows: _Rows, found: OpColumns, moe: BoolArray, column: dict[str, pa.ChunkedArray]
) -> OpColumns:
    """What one rank does of MoE ops given whole: `inter` over moe_tp ranks, `experts` over moe_ep."""
    dims = dict(found.dims)
    if "moe_tp" in column:
        ways = np.nan_to_num(_numbers(rows, "moe_tp", column["moe_tp"]), nan=1.0)
        rows.mark(moe & ~(ways >= 1), "moe_tp is below 1")
        inter = found.column("inter")
        dims["inter"] = np.where(moe, inter / np.maximum(ways, 1.0), inter)
        rows.mark(moe & (dims["inter"] % 1 != 0) & ~np.isnan(inter), "inter does not divide by moe_tp")
    if "moe_ep" in column:
        ways = np.nan_to_num(_numbers(rows, "moe_ep", column["moe_ep"]), nan=1.0)
        rows.mark(moe & ~(ways >= 1), "moe_ep is below 1")
        experts, local = found.column("experts"), found.column("local_experts")
        share = experts / np.maximum(ways, 1.0)
        rows.mark(moe & (share % 1 != 0) & ~np.isnan(experts), "experts do not divide by moe_ep")
        dims["local_experts"] = np.where(moe & np.isnan(local) & (ways > 1), share, local)
    return replace(found, dims=dims)


def _routed(
    rows: _Rows, found: OpColumns, moe: BoolArray, column: pa.ChunkedArray | None, ties: Ties
) -> tuple[OpColumns, tuple[str, ...], IntArray]:
    """The ops with the distinct experts and rows of their routing; what that is, and its code by row."""
    said = ~np.isnan(found.column("distinct")) | ~np.isnan(found.column("distinct_est"))
    moe = (
        moe
        & ~np.isnan(found.column("experts"))
        & ~np.isnan(found.column("topk"))
        & ~np.isnan(found.column("tokens"))
    )
    words = ["", _COUNTED, UNIFORM]
    code = np.where(moe, np.where(said, 1, 2), 0)
    if column is None or not moe.any():
        return found, tuple(words), code
    asked, names = _codes(column)
    asked = np.where(moe & ~said, asked, -1)
    number = np.array([_number(name) for name in names])
    local = _local(found)
    dims = dict(found.dims)
    counted = (asked >= 0) & ~np.isnan(np.append(number, np.nan)[asked])
    if counted.any():
        value = np.append(number, np.nan)[asked]
        least, most = _distinct_ends(found)
        rows.mark(
            counted & ~((value >= least) & (value <= most)),
            "routing is a number of distinct experts that cannot be",
        )
        dims["distinct"] = np.where(counted, value, found.column("distinct"))
        code = np.where(counted, 1, code)
    named = (asked >= 0) & ~counted & (rows.problem == 0)
    place = np.array([-1, *(words.index(n) if n in words else len(words) + i for i, n in enumerate(names))])
    words += [name if name not in words else "" for name in names]
    code = np.where(named, place[asked + 1], code)
    if named.any():
        loads = _loads(rows, found, named, asked, names, local, ties)
        if loads is not None:
            sure = named & np.isin(asked, [i for i, name in enumerate(names) if name == "balanced"])
            dims["distinct"] = np.where(sure, loads[0], dims.get("distinct", found.column("distinct")))
            dims["distinct_est"] = np.where(named & ~sure, loads[0], found.column("distinct_est"))
            dims["rows"] = np.where(named & np.isnan(found.column("rows")), loads[1], found.column("rows"))
    return replace(found, dims=dims), tuple(words), code


def _loads(
    rows: _Rows,
    found: OpColumns,
    named: BoolArray,
    asked: IntArray,
    names: Sequence[str],
    local: FloatArray,
    ties: Ties,
) -> tuple[FloatArray, FloatArray] | None:
    """(distinct experts, token rows) on the busiest rank, [rows], nan where no routing is named; each asked for once."""
    at = np.flatnonzero(named)
    experts, topk, tokens = (found.column(name)[at] for name in ("experts", "topk", "tokens"))
    sane = (
        (experts >= 1)
        & (topk >= 1)
        & (topk <= experts)
        & (tokens >= 0)
        & (tokens % 1 == 0)
        & (local[at] >= 1)
    )
    at, experts, topk, tokens = (
        at[sane],
        experts[sane],
        topk[sane],
        tokens[sane],
    )  # the others are marked later
    if not at.size:
        return None
    whole = [column.astype(np.int64) for column in (experts, topk, tokens, experts / local[at])]
    first, place = distinct_rows(asked[at], *whole)
    distinct, token_rows = np.full(found.code.size, np.nan), np.full(found.code.size, np.nan)
    one = [column[first] for column in whole]
    known = np.zeros((2, first.size))
    for name in np.unique(asked[at][first]).tolist():
        mine = asked[at][first] == name
        try:
            load = rank_load([names[name]] * int(mine.sum()), *(column[mine] for column in one), ties=ties)
        except ScenarioError as error:
            rows.mark(named & (asked == name), str(error))
            continue
        known[:, mine] = load.distinct, load.rows
    distinct[at], token_rows[at] = known[0][place], known[1][place]
    return distinct, token_rows


def _local(found: OpColumns) -> FloatArray:
    """The experts of each op's rank."""
    local = found.column("local_experts")
    return np.asarray(np.where(np.isnan(local), found.column("experts"), local))


def _distinct_ends(found: OpColumns) -> tuple[FloatArray, FloatArray]:
    """The least and the most distinct experts of each op: a token touches k of all, but maybe none of a rank's share."""
    local, tokens, topk = _local(found), found.column("tokens"), found.column("topk")
    least = np.where((local >= found.column("experts")) & (tokens >= 1), topk, 0.0)
    return least, np.minimum(local, tokens * topk)


def _check(rows: _Rows, found: OpColumns) -> None:
    """Marks rows that lack a dim, or have one that cannot be."""
    for at, op in enumerate(found.types):
        here = found.code == at
        for name in ops.KINDS[op.kind].needs if op.kind in ops.KINDS else ():
            rows.mark(here & np.isnan(found.column(name)), f"{op.kind} lacks the dim {name}")
    for name, values in found.dims.items():
        rows.mark(
            ~(np.isnan(values) | (np.isfinite(values) & (values >= 0))), f"{name} is negative or not finite"
        )
    if {"distinct", "topk", "experts", "tokens"} <= set(found.dims):
        least, most = _distinct_ends(found)
        out = (found.column("distinct") < least - _ROUNDED) | (found.column("distinct") > most + _ROUNDED)
        rows.mark(out, "distinct is a number of experts that cannot be")
    if {"topk", "experts"} <= set(found.dims):
        topk, experts = found.column("topk", 0.0), found.column("experts", np.inf)
        rows.mark((topk > experts) | ((experts < 1) & (topk >= 0)), "topk is above experts")


def _unknown(kind: str, dtype: str) -> str | None:
    """What is wrong with a kind and dtype, None if nothing."""
    if kind not in ops.KINDS:
        return f"unknown kind {kind!r}: there are {', '.join(ops.KINDS)}"
    odd = next((part for part in dtype.split("/") if part not in dtypes()), None)
    return None if odd is None else f"unknown dtype {odd!r}: there are {', '.join(dtypes())}"


def _codes(column: pa.ChunkedArray, words: Mapping[str, str] | None = None) -> tuple[IntArray, list[str]]:
    """(code of each row, -1 for null; the texts) of a column of texts or numbers; `words` replaces some texts."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_encode()
    code = np.asarray(pc.fill_null(whole.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False))
    texts = [str(text) for text in whole.dictionary.to_pylist()]
    return code, [words.get(text, text) for text in texts] if words else texts


def _numbers(rows: _Rows, name: str, column: pa.ChunkedArray) -> FloatArray:
    """A column as floats, nan for null; texts that are no numbers are marked."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(), dtype=np.float64)
    code, texts = _codes(column)
    values = np.array([*(_number(text) for text in texts), np.nan])[code]
    rows.mark((code >= 0) & np.isnan(values), f"{name} is not a number")
    return np.asarray(values)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
