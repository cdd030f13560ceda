"""Which rows of a table name an op that cannot be: a dim that is lacking, no whole number, nothing or beyond all tensors."""

from __future__ import annotations

import numpy as np

from moetrace import ops
from moetrace.cost.cells import BoolArray, Rows
from moetrace.hardware import FORM_OF
from moetrace.machines.forms import FORMS
from moetrace.op import FloatArray, OpColumns

_UNIT = 300.0  # units are a thousand apart; no chip is that far off its law
_ROUNDED = 1e-6  # experts that a count read from text may be off
# Expectations and sums over sequences or ranks of a routing, and passes over operands of which some are smaller, so that a
# fraction is right; bytes: of types below a byte.
FRACTIONS = frozenset(
    {"distinct", "distinct_est", "rows", "kv", "context", "pairs", "bytes", "reads", "writes"}
)
_MOST = float(2**31)  # of a dim: kernels count with 32 bits
_MOST_OF_ALL = 1e18  # of what is a product of dims
_PRODUCTS = frozenset({"rows", "kv", "pairs", "bytes", "elements"})
_FLAGS = frozenset({"eager", "gated"})  # dims that are 0 or 1
# Without the size of its group a collective has no time; all others say what they need with their work.
_NEEDS = {kind: ("ranks",) for kind, form in FORM_OF.items() if FORMS[form].network}


def wrong_unit(seconds: FloatArray, law_s: FloatArray) -> str:
    """Why measured times cannot be seconds, held against what the law expects of the same ops; "" if they can."""
    known = np.isfinite(law_s) & (law_s > 0)
    ratio = float(np.median(seconds[known] / law_s[known])) if known.any() else 1.0
    if 1 / _UNIT < ratio < _UNIT:
        return ""
    said = f"{ratio:,.0f}" if ratio > 1 else f"{ratio:.2g}"
    return (
        f"times are {said} x what the law expects (median): their unit is another than their column says "
        "(seconds; latency and latency_ms: ms; latency_us: us)"
    )


def dims_of(kind: str) -> frozenset[str]:
    """All dims that the work or the law of a kind reads; none of a kind that there is not."""
    if kind not in ops.KINDS:
        return frozenset()
    return ops.dims_read(kind) | set(FORMS[FORM_OF[kind]].reads if kind in FORM_OF else ())


def check(rows: Rows, found: OpColumns) -> None:
    """Marks the rows that lack a dim, or have one that cannot be: below 1 where it is needed, a fraction, beyond 2^31.

    A dim that an op may leave out may be 0, which is the same.
    """
    needs = [_needs(op.kind) for op in found.types]
    for name in dict.fromkeys((*found.dims, *(name for some in needs for name in some))):
        needed = found.by_type([name in some for some in needs]) > 0
        values = found.column(name)
        if name in _FLAGS:
            rows.mark(values > 1, f"{rows.called(name)} is neither 0 nor 1")
        least, most = needed.astype(np.float64), _MOST_OF_ALL if name in _PRODUCTS else _MOST
        good = (values >= least) & (values <= most)
        if name not in FRACTIONS:
            good &= np.floor(values) == values
        if good.all():
            continue
        absent, said = np.isnan(values), rows.called(name)
        for at, op in enumerate(found.types):
            if name in needs[at]:
                rows.mark((found.code == at) & absent, f"{op.kind} lacks the dim {name}")
        rows.mark(values < least, f"{said} is below 1" if needed.any() else f"{said} is negative")
        rows.mark(values > most, f"{said} is above {most:g}, which no tensor holds")
        rows.mark(~good & ~absent, f"{said} is not a whole number")
    _related(rows, found)


def _needs(kind: str) -> tuple[str, ...]:
    return (*ops.KINDS[kind].needs, *_NEEDS.get(kind, ())) if kind in ops.KINDS else ()


def _related(rows: Rows, found: OpColumns) -> None:
    """Marks rows whose dims cannot be together."""
    have = set(found.dims)
    column = found.column
    if {"topk", "experts"} <= have:
        rows.mark(column("topk") > column("experts"), "topk is above experts")
    if {"local_experts", "experts"} <= have:
        rows.mark(column("local_experts") > column("experts"), "local_experts is above experts")
    if {"heads", "kv_heads"} <= have:
        heads, shared = column("heads"), column("kv_heads")
        with np.errstate(invalid="ignore", divide="ignore"):
            rows.mark((heads / shared) % 1 > 0, "heads are not a multiple of kv_heads")
    if {"rows", "tokens", "topk"} <= have:
        most = column("tokens") * column("topk")
        rows.mark(column("rows") > most * (1 + _ROUNDED), "rows are above tokens x topk")
    if {"batch", "kv"} <= have:
        rows.mark(column("kv") < column("batch"), "kv, the tokens of all sequences, is below batch")


def check_distinct(rows: Rows, found: OpColumns) -> None:
    """Marks rows whose count of distinct experts, given or by their routing, cannot be."""
    if {"distinct", "topk", "experts", "tokens"} <= set(found.dims):
        distinct = found.column("distinct")
        rows.mark(impossible(distinct, found), "distinct is a number of experts that cannot be")


def impossible(distinct: FloatArray, found: OpColumns) -> BoolArray:
    """Whether an op cannot touch so many experts, [ops]: a token touches k of all, but maybe none of a rank's share."""
    local, tokens, topk = local_experts(found), found.column("tokens"), found.column("topk")
    least = np.where((local >= found.column("experts")) & (tokens >= 1), topk, 0.0)
    most = np.minimum(local, tokens * topk)
    return np.asarray((distinct < least - _ROUNDED) | (distinct > most + _ROUNDED))


def local_experts(found: OpColumns) -> FloatArray:
    """The experts of each op's rank."""
    local = found.column("local_experts")
    return np.asarray(np.where(local > 0, local, found.column("experts")))
