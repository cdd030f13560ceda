"""Distinct experts after pruning, from the router's further choices: whose token they are is not kept, so it is an estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.routing.distinct import FloatArray, IntArray
from moetrace.routing.recorded import Routing


@dataclass(frozen=True, slots=True)
class Pruned:
    """Expected distinct experts of a step's layer, and their standard deviation."""

    distinct: float
    spread: float


def kept_experts(q: FloatArray, experts: int, popular: bool) -> IntArray:
    """The experts that stay of those with popularity `q` [all], [experts], most popular first.

    The most popular ones, or else one of each of `experts` equal parts of the order by popularity, which stands for a choice
    at random.
    """
    order = np.argsort(-q, kind="stable")
    return (
        order[:experts] if popular else order[(np.arange(experts) * 2 + 1) * q.size // (2 * experts)]
    ).astype(np.int64)


def pruned_distinct(routing: Routing, n_a: int, experts: int, popular: bool) -> dict[tuple[int, int], Pruned]:
    """What each (step, layer) touches if `experts` are kept and each token takes its first `n_a` recorded choices among them.

    A kept expert among a token's first n_a choices is taken for sure. One at rank r behind them is taken if fewer than n_a of
    the r - 1 before it are kept, ranks taken as independent with the shares that the step and layer show. What
    tokens still lack then goes to the kept ones by popularity. The spread is that of this estimate in the first recorded
    layer, and of choices drawn anew in later ones, whose inputs would change. Raises RunError if fewer choices were recorded.
    """
    kept = {}
    for layer in routing.layers:
        held = np.zeros(routing.experts, dtype=bool)
        held[kept_experts(routing.popularity(layer, n_a), experts, popular)] = True
        kept[layer] = held
    found = {}
    new = np.flatnonzero((np.diff(routing.step, prepend=-1) != 0) | (np.diff(routing.layer, prepend=-1) != 0))
    for low, high in zip(new.tolist(), [*new[1:].tolist(), len(routing)], strict=True):
        step, layer = int(routing.step[low]), int(routing.layer[low])
        counts = np.zeros((routing.experts, routing.topk))
        counts[routing.expert[low:high], routing.rank_of_choice[low:high] - 1] = routing.count[low:high]
        found[step, layer] = _pruned(counts, kept[layer], n_a, layer == routing.layers[0])
    return found


def _pruned(counts: FloatArray, kept: npt.NDArray[np.bool_], n_a: int, first: bool) -> Pruned:
    """Of `counts` [experts, ranks of choice] of one step and layer."""
    tokens = max(1.0, counts.sum(axis=0).max())
    mine = counts[kept]
    moves_up = _taken(mine.sum(axis=0) / tokens, n_a)
    taken = mine @ moves_up
    lacking = max(0.0, tokens * n_a - taken.sum())
    share = taken / taken.sum() if taken.any() else np.full(len(mine), 1.0 / len(mine))
    missed = np.prod((1.0 - moves_up) ** mine, axis=1) * (1.0 - np.minimum(share, 1.0)) ** lacking
    spread = missed * (1.0 - missed)
    if not first:
        q = np.minimum((taken + share * lacking) / tokens, 1.0)
        again = (1.0 - q) ** tokens
        spread = again * (1.0 - again)
    return Pruned(float(np.sum(1.0 - missed)), float(np.sqrt(spread.sum())))


def _taken(survive: FloatArray, n_a: int) -> FloatArray:
    """Chance that a kept choice at each rank is taken: fewer than `n_a` of those before it survive; 1 for the first n_a."""
    chance = np.ones(len(survive))
    before = np.zeros(n_a + 1)  # chance of so many survivors; the last: n_a and more
    before[0] = 1.0
    for rank, p in enumerate(np.clip(survive, 0.0, 1.0).tolist()):
        chance[rank] = min(1.0, float(before[:n_a].sum())) if rank >= n_a else 1.0
        moved = before[:-1] * p
        before[:-1] -= moved
        before[1:] += moved
    return chance
