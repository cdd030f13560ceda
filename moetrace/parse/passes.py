"""Several forward passes in what counts as one step: an annotation around a whole generation, or a piece of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetrace.model import ModelSpec
from moetrace.parse.nesting import IntArray

MOST_LAYERS = 1024  # of a forward pass: the deepest public models have some 130


def starts_of_passes(layers: Sequence[int], kinds: Sequence[str], depth: int) -> list[int]:
    """Where each pass but the first begins, by the layer (-1: none) and kind of each op; empty where that is not told.

    It is where layers come as a multiple of the model's `depth`, and their numbers of ops repeat with it and with nothing
    shorter: what lies between two passes (head, sampling, embedding) counts to the layer behind it, whose last ops are as
    those with which the first pass begins.
    """
    layer = np.array(layers, dtype=np.int64)
    count = int(layer.max(initial=-1)) + 1
    if depth < 2 or count < 2 * depth or count % depth:
        return []
    begin = np.flatnonzero((layer >= 0) & (np.diff(layer, prepend=-1) != 0))
    if len(begin) != count:
        return []
    # Nothing lies between passes in front of the first layer, and what does behind the last.
    sizes = np.diff(begin)[1:]
    if [n for n in range(1, depth + 1) if not depth % n and _repeats(sizes, n)] != [depth]:
        return []
    head = list(kinds[: begin[1]])
    found = [int(end) - len(head) for end in begin[depth + 1 :: depth].tolist()]
    alike = all(list(kinds[at : at + len(head)]) == head for at in found)
    return found if alike and found[0] >= begin[depth] else []


def _repeats(values: IntArray, period: int) -> bool:
    return bool((values[period:] == values[:-period]).all())


def remarks(passes: int, most: int, model: ModelSpec | None) -> list[str]:
    """What to say where a step holds so many passes, and where the order of ops shows `most` layers in a step."""
    said = []
    if passes > 1 and model is not None:
        said.append(
            f"a step holds up to {passes:,} forward passes of {model.name}, by the order of ops: a layer is that of its pass"
        )
    if most > MOST_LAYERS:
        said.append(
            f"the order of ops shows {most:,} layers in a step, which no forward pass has: its ops are given none (annotate "
            "each forward pass by itself)"
        )
    return said
