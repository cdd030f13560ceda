"""Distinct experts by recorded popularity: how often each expert was chosen, of tokens drawn anew."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.op import Op
from moetrace.replay.draft import At, Draft
from moetrace.replay.grammar import Kept
from moetrace.routing import Routing, ep_max_distinct, popularity_distinct
from moetrace.routing.pruned import kept_experts
from moetrace.routing.skewed import shares

_SAMPLE = 4
_KEPT = 1 << 18  # answers that are kept: scenarios of one run ask for the same ones


class Popularity:
    """What a draft's run recorded of how often each expert is chosen."""

    def __init__(self, draft: Draft) -> None:
        self.steps = draft.steps
        self.known = _recorded(draft.run.routing, tuple((step.index, step.phase) for step in draft.steps))
        kept = draft.scenario.get("n_e")
        self.popular = isinstance(kept, Kept) and kept.popular

    def __call__(self, op: Op, at: At, topk: float, ranks: int) -> float | None:
        """Distinct experts (of the worst rank, if several) of the op's tokens at an n_a; None where it was not recorded."""
        if not self.known.routing:
            return None
        phase = self.steps[at.step].phase
        counts = int(topk), int(op["tokens"]), int(op["experts"])
        return self.known.distinct(at.source_layer, phase, *counts, ranks, self.popular)


@lru_cache(maxsize=4)
def _recorded(routing: Routing | None, phases: tuple[tuple[int, str | None], ...]) -> _Recorded:
    return _Recorded(routing, phases)


class _Recorded:
    """Recorded popularity of experts, each asked of the routing once. `phases` are the steps' own and their phases."""

    def __init__(self, routing: Routing | None, phases: tuple[tuple[int, str | None], ...]) -> None:
        self.routing = routing
        self.known: dict[tuple[int, int, str | None], npt.NDArray[np.float64]] = {}
        self.answers: dict[tuple[Any, ...], float | None] = {}
        self.phase_of = dict(phases)
        self.held: Counter[tuple[int, str | None]] = Counter()  # tokens by (layer, phase)
        if self.routing is not None:
            for (step, layer), tokens in self.routing.token_counts().items():
                self.held[layer, self.phase_of.get(step)] += tokens
        self.layers = {layer for layer, _ in self.held}

    def distinct(
        self, layer: int, phase: str | None, topk: int, tokens: int, experts: int, ranks: int, popular: bool
    ) -> float | None:
        """Distinct experts (of the worst rank, if several) of so many tokens; None where popularity was not recorded."""
        asked = layer, phase, topk, tokens, experts, ranks, popular
        if asked not in self.answers:
            if len(self.answers) >= _KEPT:
                self.answers.clear()
            q = self._of(layer, phase, topk, tokens, experts, popular)
            self.answers[asked] = (
                None
                if q is None
                else popularity_distinct(q, tokens)
                if ranks == 1
                else ep_max_distinct(experts, topk, tokens, ranks, q)
            )
        return self.answers[asked]

    def _of(
        self, layer: int, phase: str | None, topk: int, tokens: int, experts: int, popular: bool
    ) -> npt.NDArray[np.float64] | None:
        """Popularity of a layer's experts at this n_a; None if it was not recorded. Of fewer `experts`, those that are kept.

        Over steps of the same phase where they hold _SAMPLE times the tokens asked for (few tokens miss experts that
        more would reach), else over all steps.
        """
        if self.routing is None or topk > self.routing.topk or layer not in self.layers:
            return None
        enough = self.held[layer, phase] >= _SAMPLE * tokens
        key = (layer, topk, phase if enough else "")
        if key not in self.known:
            had = set(self.routing.steps) if enough else set()
            steps = sorted(step for step in had if self.phase_of.get(step) == phase)
            self.known[key] = _popularity(self.routing, layer, topk, steps)
        found = self.known[key]
        return found if experts == found.size else kept_popularity(found, experts, topk, popular)


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
