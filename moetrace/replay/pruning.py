"""Distinct experts of pruned layers by step and layer, where the router's further choices or its tokens' were recorded."""

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
_BY_RANK = (
    "distinct experts after pruning: kept ones among a token's first n_a choices are counted, those that it would "
    "move up to are estimated from the router's recorded further choices, by rank and not by token: standard deviation "
    "{first:.1f} experts in the first layer, {later:.1f} in later ones, were choices there drawn anew"
)
_FOLLOWED = (
    "distinct experts after pruning are exact for the hidden states recorded: each token's first n_a kept choices were "
    "counted; an estimate in layers after the first, whose inputs would change: were the choices there drawn anew, the "
    "standard deviation would be {later:.1f} experts"
)
_LACKING = (
    "distinct experts after pruning are counted token by token but for the {lacking:.2%} of choices that lie beyond the "
    "recorded ones (record --router-extra), which go to kept experts by popularity: standard deviation {first:.1f} experts in "
    "the first layer, {later:.1f} in later ones, were choices there drawn anew"
)


def _can_follow(routing: Routing, n_a: int) -> bool:
    """Whether what tokens would move up to was recorded: token by token, or as counts of choices beyond the first n_a."""
    return routing.ordered and n_a <= routing.chosen and (routing.by_token is not None or n_a < routing.topk)


def put_pruned(
    out: IntArray, draft: Draft, routing: Routing, pruned: npt.NDArray[np.bool_], where: tuple[IntArray, IntArray], parts: int
) -> None:  # fmt: skip
    """Fills in `out` the distinct experts of rows whose op is in `pruned` [ops], in `parts` of an expert.

    `where` is the step's index and the recorded layer of each row.
    """
    if not pruned.any():
        return
    sizes = np.array(
        [(int(op["topk"]), int(op["experts"])) if mine else (0, 0)
         for op, mine in zip(draft.ops, pruned.tolist(), strict=True)]
    )  # fmt: skip
    index, layer = where
    for n_a, experts in np.unique(sizes[pruned], axis=0).tolist():
        if not _can_follow(routing, n_a):
            continue
        cells = _cells(routing, n_a, experts, _popular(draft))
        shape = max(s for s, _ in cells) + 1, max(k for _, k in cells) + 1
        table = np.full(shape, -1, dtype=np.int64)
        for place, found in cells.items():
            table[place] = round(found.distinct * parts)
        here = (pruned & (sizes == (n_a, experts)).all(axis=1))[draft.cell]
        here &= (layer >= 0) & (layer < shape[1]) & (index < shape[0])
        out[here] = table[index[here], layer[here]]


def pruned_note(draft: Draft, routing: Routing, sizes: Iterable[tuple[int, int]]) -> str:
    """How `put_pruned` knows what it filled in for these (n_a, experts), and the median standard deviation of it."""
    first, later, lacking = [0.0], [0.0], [0.0]
    for n_a, experts in sizes:
        cells = _cells(routing, n_a, experts, _popular(draft))
        lowest = routing.layers[0]
        first.append(_median(found.spread for (_, layer), found in cells.items() if layer == lowest))
        later.append(_median(found.spread for (_, layer), found in cells.items() if layer != lowest))
        lacking += [found.lacking or 0.0 for found in cells.values()]
    text = _BY_RANK if routing.by_token is None else _LACKING if max(lacking) else _FOLLOWED
    return text.format(first=max(first), later=max(later), lacking=max(lacking))


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.median(found)) if found else 0.0


def _popular(draft: Draft) -> bool:
    kept = draft.scenario.get("n_e")
    return isinstance(kept, Kept) and kept.popular


@lru_cache(maxsize=4)
def _cells(routing: Routing, n_a: int, experts: int, popular: bool) -> dict[tuple[int, int], Pruned]:
    return pruned_distinct(routing, n_a, experts, popular)
