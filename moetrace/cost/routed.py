"""The routing of a table's MoE ops: what it is by row, and the distinct experts and token rows that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from moetrace.cost.cells import BoolArray, IntArray, Rows, codes, number
from moetrace.cost.check import impossible, local_experts
from moetrace.errors import ScenarioError
from moetrace.grouping import distinct_rows
from moetrace.op import FloatArray, OpColumns
from moetrace.routing import Ties, rank_load

UNIFORM = "uniform"
COUNTED = "counted"  # what a routing given as a number becomes: so many distinct experts on the rank


def routed(
    rows: Rows, found: OpColumns, moe: BoolArray, column: pa.ChunkedArray | None, ties: Ties
) -> tuple[OpColumns, tuple[str, ...], IntArray]:
    """The ops with the distinct experts and rows of their routing; what that is, and its code by row."""
    said = ~np.isnan(found.column("distinct")) | ~np.isnan(found.column("distinct_est"))
    moe = (
        moe
        & ~np.isnan(found.column("experts"))
        & ~np.isnan(found.column("topk"))
        & ~np.isnan(found.column("tokens"))
    )
    words = ["", COUNTED, UNIFORM]
    code = np.where(moe, np.where(said, 1, 2), 0)
    if column is None or not moe.any():
        return found, tuple(words), code
    asked, names = codes(column)
    asked = np.where(moe & ~said, asked, -1)
    numbers = np.array([*(number(name) for name in names), np.nan])
    local = local_experts(found)
    dims = dict(found.dims)
    counted = (asked >= 0) & ~np.isnan(numbers[asked])
    if counted.any():
        value = np.where(counted, numbers[asked], found.column("distinct"))
        rows.mark(
            counted & impossible(value, found), "routing is a number of distinct experts that cannot be"
        )
        dims["distinct"] = value
        code = np.where(counted, 1, code)
    named = (asked >= 0) & ~counted & (rows.problem == 0)
    place = np.array([-1, *(words.index(n) if n in words else len(words) + i for i, n in enumerate(names))])
    words += [name if name not in words else "" for name in names]
    code = np.where(named, place[asked + 1], code)
    if named.any():
        loads = _loads(rows, found, named, asked, names, local, ties)
        sure = named & np.isin(asked, [i for i, name in enumerate(names) if name == "balanced"])
        dims["distinct"] = np.where(sure, loads[0], dims.get("distinct", found.column("distinct")))
        dims["distinct_est"] = np.where(named & ~sure, loads[0], found.column("distinct_est"))
        dims["rows"] = np.where(named & np.isnan(found.column("rows")), loads[1], found.column("rows"))
    return replace(found, dims=dims), tuple(words), code


def _loads(
    rows: Rows,
    found: OpColumns,
    named: BoolArray,
    asked: IntArray,
    names: Sequence[str],
    local: FloatArray,
    ties: Ties,
) -> tuple[FloatArray, FloatArray]:
    """(distinct experts, token rows) on the busiest rank, [rows], nan where no routing is named; each asked for once."""
    at = np.flatnonzero(named)
    experts, topk, tokens = (found.column(name)[at] for name in ("experts", "topk", "tokens"))
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
