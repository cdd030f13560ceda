"""Costs told relative to measured points: a law's ratio of two ops of one shape is better known than either of its answers.

An anchor is a measured op. It serves every op of its kind, element types and shape (all dims but those that count tokens or
follow from them), best one of the same routing; of several, that whose time by the law is nearest. The prediction is

    measured x law(op) / law(anchor)                 where the anchor's time is work: from mid-batch
    measured + law(op) - law(anchor)                 where much of it is the floor: at one token
    between them, (the one)^(1 - w) (the other)^w    w = f^2 / (f^2 + 0.1^2), f the floor's share of the law's anchor

What a measurement says of the law wears off with distance: of the ratio of that to law(op) the power 1 / (1 + d / d0) is
kept, d = |ln(law(op) / law(anchor))|, d0 = 2 + r ln r, r the larger of measured / law(anchor) and its inverse. Never below
the op's lower bound; an anchor's own op comes back as measured.

An op of another shape follows all anchors of its kind together (`pooled`).

0.1 and 2 were chosen on public measurements of MoE modules on an H100, most of which the law had seen (eight engines and
types, EP 1, TP up to 8; other token counts predicted from one; mean / median error, the median over the eight): 4.3 / 2.8 %
from 1 token, 5.0 / 3.1 % from 16, 5.2 / 2.9 % from 64; by the law alone 5.2 / 3.3 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace import ops
from moetrace.cost.beyond import TRANSFERRED
from moetrace.cost.check import wrong_unit
from moetrace.cost.price import PriceContext, price
from moetrace.cost.reading import batches, seconds_of
from moetrace.cost.table import OpTable, read_ops
from moetrace.errors import ScenarioError
from moetrace.grouping import distinct_rows
from moetrace.hardware import Hardware, load_hardware
from moetrace.machines.gpu import decade_of
from moetrace.op import Costs, FloatArray, OpColumns

IntArray = npt.NDArray[np.int64]
# Dims that count tokens, follow from how many there are and where they go, or say whose they are.
SIZES = frozenset(
    {
        "tokens",
        "m",
        "batch",
        "kv",
        "context",
        "q",
        "pairs",
        "rows",
        "distinct",
        "distinct_est",
        "elements",
        "bytes",
        "prompt",
    }
)
_HALF_FLOOR, _SHARPNESS, _REACH = 0.1, 2.0, 2.0
# Between two chips half of the error of either answer is taken to remain in the ratio of both: kernels differ, and what one
# lost says little of the other. An assumption: anchored predictions of one kind of op were off by 5-10 % where un-anchored ones
# were by 9-12 %. On one chip an anchor of another size leaves the law's own error: it holds 70-85 % of what is so predicted.
RATIO_ERROR = 0.5
WITHIN = 0.8
POOLED = -2
_POOL = 3  # shapes that a family's ratio is drawn from, at least
_SYSTEMS = {"h100_sxm": "h100-sxm", "a100_sxm": "a100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200"}


@dataclass(frozen=True, slots=True)
class Anchors:
    """Measured ops: their columns, seconds, and what the law says of them on the machine that they were measured on."""

    read: OpTable
    seconds: FloatArray
    law_s: FloatArray
    floor: FloatArray  # share of the law's time that no faster resource saves
    error: FloatArray
    chip: tuple[str, ...]  # of each

    def __len__(self) -> int:
        return self.seconds.size


def anchored_s(
    measured_s: FloatArray, anchor_s: FloatArray, floor: FloatArray, law_s: FloatArray
) -> FloatArray:
    """Seconds of ops from anchors measured at `measured_s`, the law saying `anchor_s` of these and `law_s` of the ops.

    `floor` is the share of `anchor_s` that is fixed. Arrays are [ops].
    """
    sharp = floor**_SHARPNESS
    weight = sharp / (sharp + _HALF_FLOOR**_SHARPNESS)
    scaled = measured_s * law_s / anchor_s
    # The sum cannot fall to nothing: it stays above the share of the measurement that the law's own ratio would leave of work.
    added = np.maximum(measured_s + law_s - anchor_s, scaled * 0.1)
    near = scaled ** (1 - weight) * added**weight
    off = np.maximum(measured_s / anchor_s, anchor_s / measured_s)
    reach = _REACH + off * np.log(off)  # so that more by the law is never less, whatever was measured
    kept = 1.0 / (1.0 + np.abs(np.log(law_s / anchor_s)) / reach)
    return np.asarray(law_s * (near / law_s) ** kept, dtype=np.float64)


def read_anchors(table: object, hw: Hardware, context: PriceContext) -> Anchors:
    """The anchors of a table: its ops as `cost` reads them, the measured time (`reading.seconds_of`), and
    `hardware` where they were measured elsewhere than on `hw`. Raises ScenarioError if it has none of these."""
    whole = pa.concat_tables(list(batches(table)))
    if not whole.num_rows:
        raise ScenarioError("anchors: the table holds no rows")
    try:
        seconds = seconds_of(whole)
    except ScenarioError as wrong:
        raise ScenarioError(f"anchors: {wrong}") from wrong
    read = read_ops(whole, context.engine)
    machine = _machines(whole, hw)
    good = (read.problem == 0) & np.isfinite(seconds) & (seconds > 0)
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        why = read.problems[int(read.problem[bad])] or f"its time is {seconds[bad]:g} s: expected above 0"
        raise ScenarioError(f"anchors, row {bad + 1}: {why}")
    law_s, floor, error = (np.full(seconds.size, np.nan) for _ in range(3))
    for name in dict.fromkeys(machine):
        mine = np.flatnonzero(np.array(machine) == name)
        there = hw if name == hw.name else load_hardware(name)
        costs = price(ops.works(read.ops.take(mine)), there, context=context)
        law_s[mine], error[mine] = costs.expected_s, costs.error
        floor[mine] = np.divide(
            costs.fixed_s, costs.expected_s, where=costs.expected_s > 0, out=np.zeros(mine.size)
        )
    if not (law_s > 0).all():
        bad = int(np.flatnonzero(~(law_s > 0))[0])
        why = (
            "a rank alone launches no collective: leave it out"
            if law_s[bad] == 0
            else "the machine has no price for it"
        )
        raise ScenarioError(f"anchors, row {bad + 1}: {why}")
    if problem := wrong_unit(seconds, law_s):
        raise ScenarioError(f"anchors: {problem}")
    chips = {name: (hw if name == hw.name else load_hardware(name)).chip for name in set(machine)}
    return Anchors(
        read, seconds, law_s, np.clip(floor, 0.0, 1.0), error, tuple(chips[name] for name in machine)
    )


def between_chips(error: FloatArray, other: FloatArray) -> FloatArray:
    """The error of a time measured on one chip, told for another by the ratio of laws that are off by these."""
    return np.asarray((1 + RATIO_ERROR * error) * (1 + RATIO_ERROR * other) - 1)


def anchored(
    costs: Costs, read: OpTable, anchors: Anchors, hw: Hardware
) -> tuple[FloatArray, FloatArray, IntArray]:
    """(seconds, error, the anchor used, -1 for none, POOLED for all of its kind) of ops whose costs by the law are `costs`.

    Ops that no anchor serves by its shape follow what all anchors of their family say together (`pooled`).
    """
    found = _nearest(costs.expected_s, read, anchors)
    at = np.maximum(found, 0)
    priced = np.where(costs.expected_s > 0, costs.expected_s, 1.0)
    told = anchored_s(anchors.seconds[at], anchors.law_s[at], anchors.floor[at], priced)
    told = np.maximum(told, np.minimum(costs.lower_bound_s, anchors.seconds[at]))
    here = np.array([chip == hw.chip for chip in anchors.chip])[at]
    far = between_chips(costs.error, anchors.error[at])
    error = np.where(here, costs.error, np.maximum(far, costs.error))
    use = (found >= 0) & (costs.expected_s > 0)
    shift, left = pooled(costs, read, anchors)
    together = np.maximum(costs.expected_s * np.exp(shift), costs.lower_bound_s)
    return (
        np.where(use, told, together),
        np.where(use, error, left),
        np.where(use, found, np.where(shift != 0, POOLED, -1)),
    )


def pooled(costs: Costs, read: OpTable, anchors: Anchors) -> tuple[FloatArray, FloatArray]:
    """(logarithm of measured over law, error) of each op by all anchors of its kind, [ops]: 0 and the law's error without any.

    The median over the shapes of the anchors (each its own median), by n / (n + 1) of n shapes; fewer than three say nothing.
    Anchors of the same element types count whole; where there are none, those of other types by half, since another kernel
    runs. In a regime that no anchor shows (a decade of tokens) the half counts too. The error is the law's, of another chip's
    coefficients half of it, since what all shapes share cancels, with what 80 % of the anchors leave as an error of its own;
    what is taken off the shift is added.
    """
    shift, error = np.zeros(len(costs)), np.array(costs.error)
    ratio = np.log(anchors.seconds / anchors.law_s)
    moved = np.array([TRANSFERRED in word for word in costs.words], dtype=bool)[costs.word]
    own = np.log1p(error) * np.where(moved, RATIO_ERROR, 1.0)
    shape = _shapes(anchors.read.ops, anchors.read.ops)[: ratio.size]
    types = anchors.read.ops.types
    decade, shown = _decades(read.ops), _decades(anchors.read.ops)
    for code, op in enumerate(read.ops.types):
        rows = read.ops.code == code
        for same, others in ((True, [op]), (False, [o for o in types if o.kind == op.kind and o != op])):
            mine = np.isin(anchors.read.ops.code, [i for i, o in enumerate(types) if o in others])
            each = np.array([np.median(ratio[mine & (shape == one)]) for one in np.unique(shape[mine])])
            if each.size < _POOL:
                continue
            middle = float(np.median(each)) * each.size / (each.size + 1)
            part = np.where(np.isin(decade, np.unique(shown[mine])), 1.0, RATIO_ERROR) * (
                1.0 if same else RATIO_ERROR
            )
            left = float(np.quantile(np.abs(ratio[mine] - middle), WITHIN))
            widened = np.hypot(own, left) + (1.0 - part) * abs(middle)
            shift, error = np.where(rows, part * middle, shift), np.where(rows, np.expm1(widened), error)
            break
    return shift, error


def _decades(ops: OpColumns) -> IntArray:
    size = np.full(len(ops), np.nan)
    for name in ("tokens", "m", "batch"):
        size = np.where(np.isnan(size), ops.column(name), size)
    return decade_of(size)


def _nearest(law_s: FloatArray, read: OpTable, anchors: Anchors) -> IntArray:
    """The anchor of each op: of its shape and, if there is one, of its routing; the nearest in time by the law. -1: none."""
    shape = _shapes(read.ops, anchors.read.ops)
    words = {name: i for i, name in enumerate(dict.fromkeys((*read.routings, *anchors.read.routings)))}
    routing = np.concatenate(
        [np.array([words[name] for name in t.routings])[t.routing] for t in (read, anchors.read)]
    )
    logs = np.log(np.concatenate([np.where(law_s > 0, law_s, 1.0), anchors.law_s]))
    size = law_s.size
    out = np.full(size, -1, dtype=np.int64)
    for keys in ((shape, routing), (shape,)):
        group = distinct_rows(*keys)[1]
        some = _nearest_in_group(group[:size], logs[:size], group[size:], logs[size:])
        out = np.where(out >= 0, out, some)
    return out


def _nearest_in_group(group: IntArray, value: FloatArray, groups: IntArray, values: FloatArray) -> IntArray:
    """For each of `value` the place of the nearest of `values` in its group, -1 where the group has none."""
    low = min(value.min(initial=0.0), values.min(initial=0.0))
    span = 2.0 * (max(value.max(initial=0.0), values.max(initial=0.0)) - low + 1.0)
    key, keys = group * span + value - low, groups * span + values - low
    order = np.argsort(keys, kind="stable")
    after = np.searchsorted(keys[order], key)
    left, right = order[np.maximum(after - 1, 0)], order[np.minimum(after, order.size - 1)]
    distance = [np.where(groups[at] == group, np.abs(values[at] - value), np.inf) for at in (left, right)]
    best = np.where(distance[0] <= distance[1], left, right)
    return np.where(np.isfinite(np.minimum(*distance)), best, -1)


def _shapes(one: OpColumns, two: OpColumns) -> IntArray:
    """A number for each op of both, the same for ops of one kind, dtype and shape."""
    types = {op: i for i, op in enumerate(dict.fromkeys((*one.types, *two.types)))}
    code = np.concatenate(
        [np.array([types[op] for op in ops.types], dtype=np.int64)[ops.code] for ops in (one, two)]
    )
    names = sorted({*one.dims, *two.dims} - SIZES)
    columns = [np.concatenate([one.column(name, -1.0), two.column(name, -1.0)]) for name in names]
    return distinct_rows(code, *(np.rint(column * 16).astype(np.int64) for column in columns))[1]


def _machines(table: pa.Table, hw: Hardware) -> list[str]:
    column = next((name for name in ("hardware", "system") if name in table.column_names), None)
    if column is None:
        return [hw.name] * table.num_rows
    names: Mapping[object, str] = {None: hw.name, **dict(_SYSTEMS.items())}
    return [names.get(name, name) for name in table.column(column).to_pylist()]
