"""Interval tools on numpy columns: nesting of ranges on a thread, which range covers a moment, unions of busy time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_LIFT = 1 << 62


def _compact(lanes: int, *times: IntArray) -> tuple[list[IntArray], int]:
    """(the times from 0 up, their span), such that lanes x span fits one number and lanes can be lifted apart.

    From their minimum on; where one stray time makes that span too long, as ranks: equal and ordered as they are.
    """
    joined = np.concatenate(times)
    low, span = int(joined.min()), int(joined.max()) - int(joined.min()) + 1
    if lanes * span < _LIFT:
        return [t - low for t in times], span
    distinct, ranks = np.unique(joined, return_inverse=True)
    return np.split(ranks.reshape(-1), np.cumsum([len(t) for t in times])[:-1]), len(distinct)


def lookup(values: npt.NDArray[Any], index: IntArray, default: int = -1) -> IntArray:
    """The values at each index, `default` where the index is negative (`values` may be empty)."""
    if not len(values):
        return np.full(len(index), default, dtype=np.int64)
    return np.where(index >= 0, values[index], default)


def sort_ranges(lane: IntArray, start: IntArray, end: IntArray) -> IntArray:
    """The order by lane, start, and the longer first."""
    return np.lexsort((-end, start, lane))


def parents(lane: IntArray, start: IntArray, end: IntArray) -> IntArray:
    """For ranges in `sort_ranges` order, the index of the innermost range that holds each; -1 at the top.

    Peels one level of nesting at a time: within a lane a range is on top if no earlier range ends after its start.
    """
    parent = np.full(len(start), -1, dtype=np.int64)
    left = np.arange(len(start))
    while len(left):
        top = outermost(lane[left], start[left], end[left])
        if top.all():
            break
        holders = left[top]
        at = np.cumsum(top) - 1
        inner = left[~top]
        parent[inner] = holders[at[~top]]
        left = inner
    return parent


def outermost(lane: IntArray, start: IntArray, end: IntArray) -> npt.NDArray[np.bool_]:
    """Which of the sorted ranges lie in no earlier one of their lane."""
    step = np.concatenate(([0], np.cumsum(np.diff(lane) != 0)))
    # Lanes are lifted apart so that one running maximum serves them all.
    (start, end), span = _compact(int(step[-1]) + 1, start, end)
    reach = np.maximum.accumulate(end + step * span)
    before = np.concatenate(([np.int64(-1)], reach[:-1]))
    return np.asarray(before <= start + step * span)


class Ranges:
    """Ranges on lanes that can be asked which of them covers a moment."""

    def __init__(self, lane: IntArray, start: IntArray, end: IntArray) -> None:
        self.order = sort_ranges(lane, start, end)
        self.lane, self.start, self.end = lane[self.order], start[self.order], end[self.order]
        self.parent = parents(self.lane, self.start, self.end)

    def covering(self, lane: IntArray, moment: IntArray) -> IntArray:
        """Index (into the ranges as given) of the innermost range that covers each moment on its lane; -1 for none."""
        found = last_before(self.lane, self.start, lane, moment)
        while len(self.end):
            outside = (found >= 0) & (self.end[found] < moment)
            if not outside.any():
                break
            found = np.where(outside, self.parent[found], found)
        return lookup(self.order, found)


def last_before(lane: IntArray, start: IntArray, asked: IntArray, moment: IntArray) -> IntArray:
    """Index of the last start at or before each moment on the lane asked for; -1 for none. Starts are sorted by lane."""
    if not len(start):
        return np.full(len(moment), -1, dtype=np.int64)
    lanes, codes = np.unique(np.concatenate((lane, asked)), return_inverse=True)
    own, wanted = codes[: len(lane)], codes[len(lane) :]
    (begin, at), span = _compact(len(lanes), start, moment)
    found = np.searchsorted(own * span + begin, wanted * span + at, side="right") - 1
    same = (found >= 0) & (own[found] == wanted)
    return np.where(same, found, -1)


def exposed(start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """For intervals sorted by start: (what each adds to the union, the gap before it). The gaps and parts sum to the span."""
    if not len(start):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    reach = np.maximum.accumulate(end)
    before = np.concatenate(([start[0]], reach[:-1]))
    return np.maximum(0, end - np.maximum(start, before)), np.maximum(0, start - before)


def exposed_by(group: IntArray, start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """`exposed` within each group of intervals, in the order given; the first of a group has no gap."""
    part, gap = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
    if not len(start):
        return part, gap
    order = np.lexsort((start, group))
    g, s, e = group[order], start[order], end[order]
    low, span = int(s.min()), int(e.max()) - int(s.min()) + 1
    rank = np.concatenate(([0], np.cumsum(np.diff(g) != 0)))
    if (int(rank[-1]) + 1) * span >= _LIFT:  # one stray time far from all others
        for rows in np.split(order, np.flatnonzero(np.diff(g)) + 1):
            part[rows], gap[rows] = exposed(start[rows], end[rows])
        return part, gap
    lift = rank * span - low  # groups are lifted apart so that one running maximum serves them all
    reach = np.maximum.accumulate(e + lift)
    first = np.concatenate(([True], np.diff(g) != 0))
    before = np.where(first, s + lift, np.concatenate(([0], reach[:-1])))
    part[order] = np.maximum(0, e + lift - np.maximum(s + lift, before))
    gap[order] = np.maximum(0, s + lift - before)
    return part, gap
