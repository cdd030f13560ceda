"""Distinct experts by recorded popularity: how often each expert was chosen, held against what the recorded steps touched."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moetrace.op import Op
from moetrace.replay.draft import At, Draft
from moetrace.replay.grammar import Kept
from moetrace.routing import Routing, ep_max_distinct, popularity_distinct
from moetrace.routing.evened import Evened, evened
from moetrace.routing.pruned import kept_experts
from moetrace.routing.skewed import shares

_SAMPLE = 4
_KEPT = 1 << 18  # answers that are kept: scenarios of one run ask for the same ones
_ALL = ""  # steps of whatever phase


class _Asked(NamedTuple):
    """Whose distinct experts are asked for: so many tokens of a layer in a phase, on the worst of `ranks`.

    `drawn`: of tokens drawn anew, not held against what the recorded steps touched.
    """

    layer: int
    phase: str | None
    topk: int
    tokens: int
    experts: int
    ranks: int
    popular: bool
    drawn: bool


class Popularity:
    """What a draft's run recorded of how often each expert is chosen."""

    def __init__(self, draft: Draft) -> None:
        self.steps = draft.steps
        routing = draft.run.routing
        phases = tuple((step.index, step.phase) for step in draft.steps)
        self.known = None if routing is None else _recorded(routing, phases)
        kept = draft.scenario.get("n_e")
        self.popular = isinstance(kept, Kept) and kept.popular

    def __call__(self, op: Op, at: At, topk: float, ranks: int, drawn: bool = False) -> float | None:
        """Distinct experts (of the worst rank, if several) of the op's tokens at an n_a; None where it was not recorded.

        Of as many tokens as the recorded steps have they are as many as these touched, in the mean; with `drawn` those of
        tokens drawn anew.
        """
        if self.known is None:
            return None
        sizes = int(topk), int(op["tokens"]), int(op["experts"]), ranks
        return self.known.distinct(
            _Asked(at.source_layer, self.steps[at.step].phase, *sizes, self.popular, drawn)
        )


@lru_cache(maxsize=4)
def _recorded(routing: Routing, phases: tuple[tuple[int, str | None], ...]) -> _Recorded:
    return _Recorded(routing, phases)


class _Recorded:
    """Recorded popularity of experts, each asked of the routing once. `phases` are the steps' own and their phases."""

    def __init__(self, routing: Routing, phases: tuple[tuple[int, str | None], ...]) -> None:
        self.routing = routing
        self.phase_of = dict(phases)
        self.tokens = routing.token_counts()
        self.held: Counter[tuple[int, str | None]] = Counter()  # tokens by (layer, phase)
        for (step, layer), tokens in self.tokens.items():
            self.held[layer, self.phase_of.get(step)] += tokens
        self.layers = {layer for layer, _ in self.held}
        self.known: dict[tuple[int, int, str | None], npt.NDArray[np.float64]] = {}
        self.touched: dict[int, dict[tuple[int, str | None], tuple[npt.NDArray[np.int64], float]]] = {}
        self.even: dict[tuple[Any, ...], Evened] = {}
        self.answers: dict[_Asked, float | None] = {}

    def distinct(self, asked: _Asked) -> float | None:
        """Distinct experts (of the worst rank, if several) of so many tokens; None where popularity was not recorded."""
        if asked not in self.answers:
            if len(self.answers) >= _KEPT:
                self.answers.clear()
            known = asked.topk <= self.routing.topk and asked.layer in self.layers
            self.answers[asked] = self._distinct(asked) if known else None
        return self.answers[asked]

    def _distinct(self, asked: _Asked) -> float:
        """Popularity is of steps of the same phase where they hold _SAMPLE times the tokens asked for (few tokens miss experts
        that more would reach), else of all steps. Of fewer experts it is that of those that are kept."""
        _, phase, topk, tokens, experts, ranks, popular, drawn = asked
        sample = phase if self.held[asked.layer, phase] >= _SAMPLE * tokens else _ALL
        even = Evened() if drawn else self._evened(asked, sample)
        q = even.popularity(self._of(asked.layer, topk, sample))
        if experts != q.size:
            q = kept_popularity(q, experts, topk, popular)
        found = (
            popularity_distinct(q, tokens) if ranks == 1 else ep_max_distinct(experts, topk, tokens, ranks, q)
        )
        return even.scaled(found, q, tokens, -(-experts // ranks))

    def _evened(self, asked: _Asked, sample: str | None) -> Evened:
        """How a sample's popularity is evened out, held against what the steps of the phase touched of this layer."""
        n_a = asked.topk if self.routing.ordered else self.routing.topk
        key = asked.layer, asked.phase, n_a, sample
        if key not in self.even:
            if n_a not in self.touched:
                self.touched[n_a] = self._touched(n_a)
            mine = self.touched[n_a].get((asked.layer, asked.phase))
            q = self._of(asked.layer, n_a, sample)
            self.even[key] = evened(q, *mine) if mine else Evened()
        return self.even[key]

    def _touched(self, n_a: int) -> dict[tuple[int, str | None], tuple[npt.NDArray[np.int64], float]]:
        """(tokens of each step, mean distinct experts of the steps) by layer and phase."""
        cells: dict[tuple[int, str | None], list[tuple[int, int]]] = {}
        for (step, layer), count in self.routing.distinct(n_a).items():
            cells.setdefault((layer, self.phase_of.get(step)), []).append((self.tokens[step, layer], count))
        return {
            place: (np.array([tokens for tokens, _ in own]), float(np.mean([count for _, count in own])))
            for place, own in cells.items()
        }

    def _of(self, layer: int, topk: int, sample: str | None) -> npt.NDArray[np.float64]:
        """Popularity of a layer's experts at this n_a in the steps of a phase, or in all."""
        key = layer, topk, sample
        if key not in self.known:
            had = self.routing.steps if sample != _ALL else ()
            steps = sorted(step for step in had if self.phase_of.get(step) == sample)
            self.known[key] = _popularity(self.routing, layer, topk, steps)
        return self.known[key]


def kept_popularity(
    q: npt.NDArray[np.float64], experts: int, topk: int, popular: bool
) -> npt.NDArray[np.float64]:
    """Popularity of the `experts` that are kept, [experts], most popular first; it sums to `topk` again.

    The most popular ones, or else one of each of `experts` equal parts of the order by popularity, which stands for a choice
    at random. What their tokens chose before goes to the kept ones in proportion; none is chosen by more than all.
    """
    kept = q[kept_experts(q, experts, popular)]
    if kept.sum() <= 0:
        return np.full(experts, topk / experts)
    return shares(kept, topk)


def _popularity(routing: Routing, layer: int, topk: int, steps: list[int]) -> npt.NDArray[np.float64]:
    """At this n_a; where the order of choice is not known, the popularity at the recorded one in proportion."""
    if routing.ordered or topk == routing.topk:
        return routing.popularity(layer, topk, steps or None)
    q = routing.popularity(layer, None, steps or None)
    return np.asarray(q * (topk / routing.topk), dtype=np.float64)
