"""The rows of a run that lie in a step, sorted: what a draft's rows point into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError
from moetrace.op import Op
from moetrace.run import Run, Step

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Base:
    """The rows of a run that lie in a step, in order; `row` is the row of the run's table. Times in ns."""

    row: IntArray
    step: IntArray
    segment: IntArray  # (step, rank) as an index, ascending
    layer: IntArray
    op: IntArray
    start: IntArray
    dur: IntArray
    ops: tuple[Op, ...]
    outside: int  # rows of no step


@lru_cache(maxsize=2)
def base_of(run: Run) -> Base:
    """The rows of a run that lie in a step. Raises ScenarioError if none do, or a rank's lie on several devices.

    What one rank did is laid out as one device's work, which several devices did at the same time.
    """
    step, rank, start = (run.numpy(name).astype(np.int64) for name in ("step", "rank", "start_ns"))
    place = np.full(max([s.index for s in run.meta.steps], default=-1) + 2, -1, dtype=np.int64)
    place[[s.index for s in run.meta.steps]] = np.arange(len(run.meta.steps))
    step = place[np.where((step >= 0) & (step < place.size - 1), step, -1)]
    inside = np.flatnonzero(step >= 0)
    if not inside.size:
        raise ScenarioError("the run has no op inside a step, so there is nothing to replay")
    row = inside[np.lexsort((start[inside], rank[inside], step[inside]))]
    devices = np.unique(np.stack([rank[inside], run.numpy("device").astype(np.int64)[inside]]), axis=1).shape[
        1
    ]
    if devices > (ranks := np.unique(rank[inside]).size):
        raise ScenarioError(
            f"{devices} devices were recorded as {ranks} rank(s), which replay cannot tell apart: record a trace for each rank"
        )
    new = (np.diff(step[row], prepend=-1) != 0) | (np.diff(rank[row], prepend=-2) != 0)
    index, ops = run.distinct_ops
    layer, dur = (run.numpy(name).astype(np.int64)[row] for name in ("layer", "dur_ns"))
    op = np.where(index[row] < 0, len(ops), index[row])
    return Base(
        row,
        step[row],
        np.cumsum(new) - 1,
        layer,
        op,
        start[row],
        dur,
        (*ops, Op("other")),
        step.size - inside.size,
    )


def step_classes(steps: Sequence[Step]) -> IntArray:
    """For each step the first one that is like it in what knobs ask of a step: phase, batch and tokens."""
    first: dict[tuple[Any, ...], int] = {}
    return np.array(
        [first.setdefault((s.phase, s.batch, s.tokens), i) for i, s in enumerate(steps)], dtype=np.int64
    )


def layer_blocks(layer: IntArray, segment: IntArray) -> IntArray:
    """The layer that each row lies within: its own, else the last before it; -1 before the first, int32 max after all."""
    here = np.arange(layer.size)
    seen = np.maximum.accumulate(np.where(layer >= 0, here, -1))
    first = np.searchsorted(segment, segment)  # the first row of the row's segment
    block = np.where(seen >= first, layer[np.maximum(seen, 0)], -1)
    coming = np.minimum.accumulate(np.where(layer >= 0, here, layer.size)[::-1])[::-1]
    after = coming >= np.searchsorted(segment, segment, side="right")
    return np.where(after & (block >= 0), np.iinfo(np.int32).max, block)
