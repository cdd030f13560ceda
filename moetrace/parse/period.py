"""Layers by repetition: where no attention is recognised, a step's ops still repeat once per layer, or per few layers.

A step of n ops a layer is a head, layers that repeat, and a rest. Layers of several kinds in turn (sliding and full attention)
repeat as a pattern of as many layers; the model's depth says how many.
"""

from __future__ import annotations

import numpy as np

from moetrace.parse.nesting import IntArray

_LEAST_REPEATS, _LEAST_SHARE = 4, 0.5  # of a pattern, and of the step's ops that its repeats take
_SHORTEST, _LONGEST = 4, 4096  # ops of a pattern


def layers_by_period(kinds: IntArray, depth: int = 0, norm: int = -1) -> IntArray:
    """The layer of each op of a step, -1 for those outside; all -1 where nothing repeats.

    `kinds` are codes that are equal for ops of one kind, `depth` the model's layers (0: not known; then each repeat is one
    layer), `norm` the code of norms, with one of which a layer begins.
    """
    layer = np.full(len(kinds), -1, dtype=np.int64)
    found = _pattern(kinds, norm)
    if found is None:
        return layer
    begin, period, repeats = found
    if 0 < depth < repeats:
        return layer
    each = _layers_in(kinds[begin : begin + period], depth, repeats, norm)
    if not each:
        return layer
    first = (
        max(0, depth - repeats * len(each)) if depth else 0
    )  # layers of another kind in front, which do not repeat
    for i in range(repeats):
        for k, (low, high) in enumerate(each):
            at = begin + i * period
            layer[at + low : at + high] = first + i * len(each) + k
    return layer


def _pattern(kinds: IntArray, norm: int) -> tuple[int, int, int] | None:
    """(where repeats begin, ops of one, their number) of the shortest pattern that explains the most; None for none."""
    best: tuple[int, int, int] | None = None
    most = int(_LEAST_SHARE * len(kinds))
    for period in range(_SHORTEST, min(_LONGEST, len(kinds) // _LEAST_REPEATS) + 1):
        same = np.concatenate([[False], kinds[:-period] == kinds[period:], [False]])
        edges = np.flatnonzero(np.diff(same))
        if not len(edges):
            continue
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        repeats = int(lengths[longest]) // period + 1
        taken, start = repeats * period, int(starts[longest])
        norms = np.flatnonzero(kinds[start : start + period] == norm)
        if len(norms) and (int(lengths[longest]) - int(norms[0])) // period + 1 == repeats:
            start += int(norms[0])
        # A pattern of two periods explains no more than one: only clearly more does.
        if repeats >= _LEAST_REPEATS and taken > 1.05 * most:
            best, most = (start, period, repeats), taken
    return best


def _layers_in(pattern: IntArray, depth: int, repeats: int, norm: int) -> list[tuple[int, int]]:
    """Where each layer of a pattern begins and ends: one, or as many as the depth says, cut where their ops begin alike."""
    whole = len(pattern)
    count = depth // repeats if depth and depth % repeats == 0 else 1
    if count == 1:
        return [(0, whole)]
    starts = np.flatnonzero(pattern == norm)
    for each in range(1, len(starts) + 1):  # norms of one layer
        cuts = starts[::each]
        if len(cuts) == count and cuts[0] == 0:
            return list(zip(cuts.tolist(), [*cuts[1:].tolist(), whole], strict=True))
    if whole % count == 0:
        part = whole // count
        return [(i * part, (i + 1) * part) for i in range(count)]
    return []
