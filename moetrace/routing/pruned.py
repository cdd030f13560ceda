"""Distinct experts after pruning, from the router's further choices: counted token by token where those were kept.

Where counts alone were kept, whose token a choice is is not known, and it is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.errors import RunError
from moetrace.routing.distinct import FloatArray, IntArray
from moetrace.routing.recorded import Routing
from moetrace.routing.tokens import TokenRouting


@dataclass(frozen=True, slots=True)
class Pruned:
    """Expected distinct experts of a step's layer, and their standard deviation.

    `lacking`: the share of choices that lay beyond the recorded ones, and are estimated; None: nothing was counted by token.
    """

    distinct: float
    spread: float
    lacking: float | None = None


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
    layer, and of choices drawn anew in later ones, whose inputs would change. Where the choices were kept by token each is
    followed, so that only what lies beyond its recorded choices is estimated. Raises RunError if fewer choices were recorded.
    """
    kept = {}
    for layer in routing.layers:
        held = np.zeros(routing.experts, dtype=bool)
        held[kept_experts(routing.popularity(layer, n_a), experts, popular)] = True
        kept[layer] = held
    if routing.by_token is not None:
        return _followed(routing, routing.by_token, kept, n_a)
    found = {}
    new = np.flatnonzero((np.diff(routing.step, prepend=-1) != 0) | (np.diff(routing.layer, prepend=-1) != 0))
    for low, high in zip(new.tolist(), [*new[1:].tolist(), len(routing)], strict=True):
        step, layer = int(routing.step[low]), int(routing.layer[low])
        counts = np.zeros((routing.experts, routing.topk))
        counts[routing.expert[low:high], routing.rank_of_choice[low:high] - 1] = routing.count[low:high]
        found[step, layer] = _pruned(counts, kept[layer], n_a, layer == routing.layers[0])
    return found


@dataclass(slots=True)
class _Cell:
    """What the tokens of one step and layer take: choices by kept expert, and how many they lack."""

    hits: FloatArray
    tokens: int = 0
    lacking: int = 0


def _followed(
    routing: Routing, by_token: TokenRouting, kept: dict[int, npt.NDArray[np.bool_]], n_a: int
) -> dict[tuple[int, int], Pruned]:
    """Each token takes its first `n_a` kept choices. Raises RunError if these are the tokens of another routing."""
    cells = {key: _Cell(np.zeros(routing.experts)) for key in routing.token_counts()}
    stays = np.zeros((max(kept, default=0) + 1, routing.experts), dtype=bool)
    for at, held in kept.items():
        stays[at] = held
    for step, layer, _, rank, expert in by_token.parts():
        if int(layer.max()) >= len(stays) or by_token.experts != routing.experts:
            raise _others(by_token)
        chosen = stays[layer, expert]
        first = np.flatnonzero(rank == 1)
        sizes = np.diff(first, append=len(rank))
        so_far = np.cumsum(chosen)
        within = so_far - np.repeat(so_far[first] - chosen[first], sizes)
        taken = chosen & (within <= n_a)
        lacking = n_a - np.minimum(np.add.reduceat(chosen.astype(np.int64), first), n_a)
        places, cell = np.unique(np.stack([step, layer]), axis=1, return_inverse=True)
        cell = cell.reshape(-1)
        for i, key in enumerate(zip(*places.tolist(), strict=True)):
            if key not in cells:
                raise _others(by_token)
            cells[key].hits += np.bincount(expert[taken & (cell == i)], minlength=routing.experts)
            cells[key].tokens += int((cell[first] == i).sum())
            cells[key].lacking += int(lacking[cell[first] == i].sum())
    if {key: one.tokens for key, one in cells.items()} != routing.token_counts():
        raise _others(by_token)
    # An expert that was not seen may be next.
    often = {layer: np.full(routing.experts, 0.5) for layer in kept}
    for (_, at), one in cells.items():
        often[at] += one.hits
    return {
        (number, at): _of_cell(one, kept[at], often[at], n_a, at == routing.layers[0])
        for (number, at), one in cells.items()
    }


def _others(by_token: TokenRouting) -> RunError:
    return RunError(f"{by_token.place}: holds other tokens than the counts beside it: record or parse again")


def _of_cell(cell: _Cell, kept: npt.NDArray[np.bool_], often: FloatArray, n_a: int, first: bool) -> Pruned:
    """What tokens lack goes to kept experts as `often` as they are taken in the layer."""
    taken, share = cell.hits[kept], often[kept] / often[kept].sum()
    missed = np.where(taken > 0, 0.0, (1.0 - share) ** cell.lacking)
    if not first:
        spread = _redrawn(np.minimum((taken + share * cell.lacking) / cell.tokens, 1.0), cell.tokens)
    else:
        spread = float(np.sqrt(np.sum(missed * (1.0 - missed))))
    return Pruned(float(np.sum(1.0 - missed)), spread, cell.lacking / (cell.tokens * n_a))


def _redrawn(q: FloatArray, tokens: float) -> float:
    """Standard deviation of the distinct experts of choices drawn anew, each with probability `q` [experts]."""
    again = (1.0 - q) ** tokens
    return float(np.sqrt(np.sum(again * (1.0 - again))))


def _pruned(counts: FloatArray, kept: npt.NDArray[np.bool_], n_a: int, first: bool) -> Pruned:
    """Of `counts` [experts, ranks of choice] of one step and layer."""
    tokens = max(1.0, counts.sum(axis=0).max())
    mine = counts[kept]
    moves_up = _taken(mine.sum(axis=0) / tokens, n_a)
    taken = mine @ moves_up
    lacking = max(0.0, tokens * n_a - taken.sum())
    share = taken / taken.sum() if taken.any() else np.full(len(mine), 1.0 / len(mine))
    missed = np.prod((1.0 - moves_up) ** mine, axis=1) * (1.0 - np.minimum(share, 1.0)) ** lacking
    if not first:
        spread = _redrawn(np.minimum((taken + share * lacking) / tokens, 1.0), tokens)
    else:
        spread = float(np.sqrt(np.sum(missed * (1.0 - missed))))
    return Pruned(float(np.sum(1.0 - missed)), spread)


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
