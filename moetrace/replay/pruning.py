"""Distinct experts of pruned layers by step and layer, where the router's further choices were recorded."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moetrace.replay.draft import Draft
from moetrace.replay.grammar import Kept
from moetrace.routing import Routing
from moetrace.routing.pruned import Pruned, pruned_distinct

IntArray = npt.NDArray[np.int64]


def further_choices(routing: Routing) -> bool:
    """Whether choices beyond those that tokens got were recorded, in their order."""
    return routing.ordered and 0 < routing.chosen < routing.topk


def put_pruned(
    out: IntArray, draft: Draft, routing: Routing, pruned: npt.NDArray[np.bool_], where: tuple[IntArray, IntArray], parts: int
) -> None:  # fmt: skip
    """Fills in `out` the distinct experts of rows whose op is in `pruned` [ops], in `parts` of an expert.

    `where` is the step's index and the recorded layer of each row.
    """
    if not pruned.any() or not further_choices(routing):
        return
    sizes = np.array(
        [(int(op["topk"]), int(op["experts"])) if mine else (0, 0)
         for op, mine in zip(draft.ops, pruned.tolist(), strict=True)]
    )  # fmt: skip
    index, layer = where
    for n_a, experts in np.unique(sizes[pruned], axis=0).tolist():
        if n_a > routing.chosen:
            continue
        cells = _cells(routing, n_a, experts, _popular(draft))
        shape = max(s for s, _ in cells) + 1, max(k for _, k in cells) + 1
        table = np.full(shape, -1, dtype=np.int64)
        for place, found in cells.items():
            table[place] = round(found.distinct * parts)
        here = (pruned & (sizes == (n_a, experts)).all(axis=1))[draft.cell]
        here &= (layer >= 0) & (layer < shape[1]) & (index < shape[0])
        out[here] = table[index[here], layer[here]]


def pruned_spread(draft: Draft, routing: Routing, sizes: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """Median standard deviation of what `put_pruned` filled in for these (n_a, experts): first layer, and later ones."""
    first, later = [0.0], [0.0]
    for n_a, experts in sizes:
        cells = _cells(routing, n_a, experts, _popular(draft))
        lowest = routing.layers[0]
        first.append(_median(found.spread for (_, layer), found in cells.items() if layer == lowest))
        later.append(_median(found.spread for (_, layer), found in cells.items() if layer != lowest))
    return max(first), max(later)


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.median(found)) if found else 0.0


def _popular(draft: Draft) -> bool:
    kept = draft.scenario.get("n_e")
    return isinstance(kept, Kept) and kept.popular


@lru_cache(maxsize=4)
def _cells(routing: Routing, n_a: int, experts: int, popular: bool) -> dict[tuple[int, int], Pruned]:
    return pruned_distinct(routing, n_a, experts, popular)
