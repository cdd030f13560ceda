"""Layers by repetition: where no attention is recognised, a step's ops still repeat once per layer, or per few layers.

A step of n ops a layer is a head, layers that repeat, and a rest. Layers of several kinds in turn (sliding and full attention)
repeat as a pattern of as many layers; the model's depth says how many.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from moetrace.parse.nesting import IntArray

_LEAST_REPEATS, _LEAST_SHARE = 4, 0.5  # of a pattern, and of the step's ops that its repeats take
_SHORTEST, _LONGEST = 4, 4096  # ops of a pattern


def layers_by_period(kinds: IntArray, depth: int = 0, norm: int = -1, once: int = -1) -> IntArray:
    """The layer of each op of a step, -1 for those outside; all -1 where nothing repeats.

    `kinds` are codes that are equal for ops of one kind, `depth` the model's layers (0: not known), `norm` the code of norms,
    with one of which a layer begins, `once` that of ops of which a layer has one: without a depth they tell the layers of a
    repeat, which is one layer otherwise.
    """
    layer = np.full(len(kinds), -1, dtype=np.int64)
    found = _pattern(kinds, norm, once)
    if found is None:
        return layer
    begin, period, repeats = found
    each = _layers_in(kinds[begin : begin + period], depth, repeats, norm, once)
    if not each or 0 < depth < repeats * len(each):
        return layer
    spans = [
        (begin + i * period + low, begin + i * period + high) for i in range(repeats) for low, high in each
    ]
    spans = _with_ends(kinds, spans, len(each), depth, norm)
    first = max(0, depth - len(spans)) if depth else 0  # layers of another kind in front, which do not repeat
    for i, (low, high) in enumerate(spans):
        layer[low:high] = first + i
    return layer


def _with_ends(
    kinds: IntArray, spans: list[tuple[int, int]], turn: int, depth: int, norm: int
) -> list[tuple[int, int]]:
    """The layers, with those at both ends that the repeats leave out: the first and the last often have an op of their own.

    Such a layer shares at least half of its ops with the one that has its place in the pattern, on the side of the repeats.
    """
    room = (depth or len(kinds)) - len(spans)
    while room > 0:
        end, (low, high) = spans[-1][1], spans[-turn]
        alike = _alike(kinds[low:high], kinds[end : end + high - low])
        if 2 * alike < high - low:
            break
        spans, room = [*spans, (end, end + alike)], room - 1
        if alike < high - low:
            break
    while room > 0:
        begin, (low, high) = spans[0][0], spans[turn - 1]
        size = high - low
        alike = _alike(kinds[low:high][::-1], kinds[max(0, begin - size) : begin][::-1])
        if 2 * alike < size:
            break
        start = begin - alike
        norms = np.flatnonzero(kinds[max(0, begin - size) : start] == norm)
        start = max(0, begin - size) + int(norms[0]) if len(norms) else start
        spans, room = [(start, begin), *spans], room - 1
        if alike < size:
            break
    return spans


def _alike(pattern: IntArray, other: IntArray) -> int:
    """How many ops are equal from the begin on."""
    short = min(len(pattern), len(other))
    return int(np.append(pattern[:short] != other[:short], True).argmax())


def _pattern(kinds: IntArray, norm: int, once: int) -> tuple[int, int, int] | None:
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
        # A pattern of two periods explains no more than one: only clearly more does.
        if repeats >= _LEAST_REPEATS and taken > 1.05 * most:
            best, most = (start, period, start + int(lengths[longest]) + period), taken
    if best is None:
        return None
    start, period, end = best
    moved = start + _first_op(kinds[start : start + period], norm, once)
    whole, left = (end - start) // period, (end - moved) // period
    if left == whole or (left and once in kinds[start : start + period]):
        return moved, period, left
    return start, period, whole


def _first_op(pattern: IntArray, norm: int, once: int) -> int:
    """Where in a pattern, which may begin anywhere in a layer, a layer begins: at the first norm behind a layer's block."""
    norms, blocks = np.flatnonzero(pattern == norm), np.flatnonzero(pattern == once)
    if not len(norms) or not len(blocks):
        return int(norms[0]) if len(norms) else 0
    turn = len(pattern)
    found = [int(norms[np.argmin((norms - block) % turn)]) for block in blocks.tolist()]
    return min(found)


def _layers_in(pattern: IntArray, depth: int, repeats: int, norm: int, once: int) -> list[tuple[int, int]]:
    """Where each layer of a pattern begins and ends: one, or as many as are told, cut where their ops begin alike."""
    whole, blocks = len(pattern), np.flatnonzero(pattern == once)
    count = depth // repeats if depth and depth % repeats == 0 else max(1, len(blocks))
    if count == 1:
        return [(0, whole)]
    starts = np.flatnonzero(pattern == norm)
    if (
        len(blocks) == count and len(starts) and starts[0] == 0
    ):  # a layer ends where the norm behind its block stands
        behind = np.searchsorted(starts, blocks[:-1])
        if (behind < len(starts)).all():
            edges = [0, *starts[behind].tolist(), whole]
            if all(low < high for low, high in pairwise(edges)):
                return list(pairwise(edges))
    for each in range(1, len(starts) + 1):  # norms of one layer
        cuts = starts[::each]
        if len(cuts) == count and cuts[0] == 0:
            return list(zip(cuts.tolist(), [*cuts[1:].tolist(), whole], strict=True))
    if whole % count == 0:
        part = whole // count
        return [(i * part, (i + 1) * part) for i in range(count)]
    return []
