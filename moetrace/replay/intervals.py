"""How sure a step is, from how sure its ops are.

Ops of one family err alike: their coefficients come from one fit. Families' fits are made on measurements of their own, so
their errors are taken as independent of each other, and a step's deviation is the root of the sum of the families' squares.
Over served runs on H100 the 80 % interval then holds about 80 % (docs/simulate.md); with all errors at once it held nearly
all. The rule was chosen with those runs in view. A wafer's error is the whole law's and one for all its ops; what a transfer to
another chip gets wrong (its clock, its memory) is common to all families too, so there all ops are at their ends at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.replay.draft import Draft

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Ends = tuple[IntArray, IntArray] | tuple[FloatArray, FloatArray]  # of an interval


def errs_by_family(draft: Draft) -> bool:
    """Whether the draft's ops have errors by family: on a wafer, or with another machine's coefficients, they have one for
    all."""
    return draft.hw.law != "wafer" and not any(family.transferred for family in draft.hw.families.values())


def together(deviations: FloatArray) -> FloatArray:
    """Share of the plain sum that independent deviations [families, ...] come to; 1 where nothing deviates."""
    plain = deviations.sum(axis=0)
    root = np.sqrt((deviations**2).sum(axis=0))
    return np.where(plain > 0, root / np.maximum(plain, 1e-300), 1.0)


def narrowed(
    draft: Draft, segment: IntArray, ends: list[IntArray], spans: tuple[IntArray, IntArray, IntArray]
) -> tuple[IntArray, IntArray, IntArray]:
    """(expected, low, high) ns of each segment, from those with all ops at their ends at once.

    `ends` are ns by row, expected, low and high; `segment` the rows' segment (step and rank).
    """
    span, low, high = spans
    if not errs_by_family(draft):
        return spans
    names = [work_of.family(op.kind) for op in draft.ops]
    known = sorted(set(names))
    family = np.array([known.index(name) for name in names], dtype=np.int64)[draft.cell]
    place = family * span.size + segment
    below, above = (
        together(_summed(place, off, len(known), span.size)) for off in (ends[0] - ends[1], ends[2] - ends[0])
    )
    return span, span - _whole((span - low) * below), span + _whole((high - span) * above)


def beside_ops(spans: IntArray | FloatArray, ops: Ends, host: Ends) -> tuple[FloatArray, FloatArray]:
    """Both ends of each span from those by what is wrong with ops and by what is wrong with the host, in whole ns.

    The two have nothing to do with each other: the squares of their logarithms are added.
    """
    whole, both = np.log(np.maximum(spans, 1)), np.log(np.maximum(np.stack([ops, host]), 1))
    low, high = np.exp(np.hypot(*(both - whole)))
    return np.rint(spans / low), np.rint(spans * high)


def _summed(place: IntArray, off: IntArray, families: int, segments: int) -> FloatArray:
    sums = np.bincount(place, off, families * segments).reshape(families, segments)
    return np.asarray(sums, dtype=np.float64)


def _whole(ns: FloatArray) -> IntArray:
    return np.asarray(np.rint(ns), dtype=np.int64)
