"""Runs of small operators as one kernel each: what a serving engine or a compiler makes of eager framework code.

An eager recording has an operator for every step of a norm (cast, square, mean, ...), of rotary embedding, of routing.
Where the recording gives the ops but not their times, pricing each as a kernel would charge its fixed cost many times
over for what engines run as one. Neighbours of one class become the one of them that moves the most bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.op import Op
from moetrace.replay.columns import works_of
from moetrace.replay.draft import Draft
from moetrace.replay.lanes import Lanes

IntArray = npt.NDArray[np.int64]

_CLASSES = {
    "norm": "norm", "elementwise": "pointwise", "rope": "pointwise", "activation": "pointwise", "shared_act": "pointwise",
    "topk": "topk", "moe_align": "rows", "moe_combine": "rows", "moe_act": "act", "expert_act": "act",
    "kv_write": "kv", "sampling": "sampling",
}  # fmt: skip
_NAMES = sorted(set(_CLASSES.values()))
_ALONE, _TINY = -1, -2
# Positions, counters and scalars: bookkeeping that engines do on the host or inside a neighbour.
_TINY_BYTES = 8192.0


def fuse(draft: Draft) -> Draft:
    """The draft with each run of neighbouring small ops of one class, in one layer of one step, as a single op."""
    act = draft.model.act_dtype if draft.model else "bf16"
    moved = np.nan_to_num(_moved([_typed(op, act) for op in draft.ops]))
    of_cell = np.array(
        [_class(op, nbytes) for op, nbytes in zip(draft.ops, moved.tolist(), strict=True)], dtype=np.int64
    )
    layer = np.array([at.layer for at in draft.at], dtype=np.int64)[draft.cell]
    segment = draft.base.segment[draft.rows]
    own = of_cell[draft.cell]
    kind = _filled(own, segment, layer)
    starts = (np.diff(kind, prepend=-9) != 0) | (kind == _ALONE) | _changes(segment) | _changes(layer)
    run = np.cumsum(starts) - 1
    # The last is kept: one that is of the class itself, of those the first that moves most. Tiny ops speak for no other.
    order = np.lexsort((-np.arange(run.size), moved[draft.cell], own == kind, run))
    keep = order[np.flatnonzero(np.diff(run[order], append=run[order][-1:] + 1))]
    dropped = run.size - keep.size
    if not dropped:
        return draft
    written = np.array([_written(op) for op in draft.ops])[draft.cell]
    size, elements = np.bincount(run), np.bincount(run, weights=written).astype(np.int64)
    small = replace(draft, rows=draft.rows[keep], cell=draft.cell[keep], inserted=draft.inserted[keep])
    fused, value = small.split(np.where(size > 1, 1 + elements, 0))
    new = tuple(_as_one(op, act, int(n)) for op, n in zip(fused.ops, value.tolist(), strict=True))
    return replace(fused, ops=new).noted(
        f"{dropped} of {run.size} recorded operators are assumed to run inside a neighbour's kernel, as serving engines fuse "
        "norms, rotary embedding, routing and activations (--set fusion=recorded prices each as a kernel)"
    )


def _moved(ops: list[Op]) -> npt.NDArray[np.float64]:
    """Bytes that each op moves, [ops]. Which op speaks for a run hangs on them, so many scenarios are parted by them."""
    if not any(isinstance(value, Lanes) for op in ops for _, value in op.dims):
        return work_of.works(ops)["bytes"]
    found = [(works["bytes"], axis) for works, axis in map(works_of, ops)]
    return np.array([b[0] if axis is None else float(axis.space.lanes(axis, b)) for b, axis in found])


def _class(op: Op, nbytes: float) -> int:
    name = _CLASSES.get(op.kind)
    if name is None:
        return _ALONE
    return _TINY if nbytes < _TINY_BYTES and name == "pointwise" else _NAMES.index(name)


def _filled(kind: IntArray, segment: IntArray, layer: IntArray) -> IntArray:
    """Tiny ops take the class of the op before them, at the head of a run that of the op behind."""
    here = np.arange(kind.size)
    border = _changes(segment) | _changes(layer)
    before = np.maximum.accumulate(np.where((kind != _TINY) | border, here, 0))
    out = np.where(kind[before] >= 0, kind[before], kind)
    behind = np.minimum.accumulate(np.where(out != _TINY, here, kind.size - 1)[::-1])[::-1]
    out = np.where(out == _TINY, out[behind], out)
    return np.where((kind == _TINY) & (out < 0), _NAMES.index("pointwise"), out)


def _changes(values: IntArray) -> npt.NDArray[np.bool_]:
    return np.asarray(np.diff(values, prepend=values[:1] - 1) != 0)


def _typed(op: Op, act: str) -> Op:
    """The op as a part of a kernel: activations in the model's own type, for the fp32 inside a norm stays on the chip."""
    return replace(op, dtype=act) if op.dtype == "fp32" and op.kind not in ("sampling", "kv_write") else op


def _written(op: Op) -> float:
    return float(op.get("elements", 0) or 0) if op.kind == "kv_write" else 0.0


def _as_one(op: Op, act: str, value: int) -> Op:
    """A run's op, with all of its cache writes; `value` is 0 for an op that stands alone, else 1 + the elements written."""
    if op.kind == "kv_write" and value > 1:
        return op.with_dims(elements=value - 1)
    return _typed(op, act) if value else op


__all__ = ["fuse"]
