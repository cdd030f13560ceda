"""Popularity of experts held against what steps really touched: few tokens make it look more uneven than it is.

The share of each expert among so many tokens has their chance in it, and sequences that choose alike step after step hold
less of it than they seem to. Taken as it is, tokens drawn from it touch fewer experts than those it was taken from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.routing.distinct import FloatArray, popularity_distinct

_CLOSE = 1e-3  # of the counted experts: how near they must come, so that steps which touched all say nothing
_HALVINGS = 30


@dataclass(frozen=True, slots=True)
class Evened:
    """Popularity so far on the way to uniform (`share`) that independent tokens touch as many experts as were counted.

    `factor`: counted over that, where no mixture reaches it: tokens of one step that choose more alike, or less, than chance.
    `tokens`: of a step.
    """

    share: float = 0.0
    factor: float = 1.0
    tokens: float = 1.0

    def popularity(self, q: FloatArray) -> FloatArray:
        """`q` [experts], evened out; of the same sum."""
        return np.asarray(q + self.share * (q.mean() - q), dtype=np.float64)

    def scaled(self, distinct: float, q: FloatArray, tokens: float, most: float) -> float:
        """The distinct experts of so many tokens, given those of the evened popularity `q` [experts], or those of one of the
        ranks that share them: at most `most`, at least one token's.

        What tokens have to do with each other grows from none, of one token, to what was counted: more alike than chance,
        fewer tokens touch what a share of the others would, the same for all numbers of them, so that more never touch less.
        """
        if self.tokens <= 1 or tokens <= 1:
            factor = 1.0
        elif self.factor < 1 and tokens < self.tokens:
            alone = 1.0 + (tokens - 1.0) * (self._independent(q) - 1.0) / (self.tokens - 1.0)
            factor = popularity_distinct(q, alone) / popularity_distinct(q, tokens)
        else:
            factor = 1.0 + (self.factor - 1.0) * min(1.0, (tokens - 1.0) / (self.tokens - 1.0))
        topk = float(q.sum())
        return float(np.clip(distinct * factor, min(topk, distinct, most), min(most, tokens * topk)))

    def _independent(self, q: FloatArray) -> float:
        """How many tokens that have nothing to do with each other touch as many experts as a step's do, where these are fewer
        than so many independent ones touch."""
        low, high = 1.0, self.tokens
        enough = self.factor * popularity_distinct(q, self.tokens)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if popularity_distinct(q, middle) >= enough else (middle, high)
        return low


def evened(q: FloatArray, tokens: npt.NDArray[np.int64], counted: float) -> Evened:
    """How `q` [experts] is to be evened out for steps of so many `tokens` [steps] that touched `counted` experts on average."""
    sizes, times = np.unique(tokens, return_counts=True)

    def touched(share: float) -> float:
        return float(np.average(popularity_distinct(Evened(share).popularity(q), sizes), weights=times))

    low, high = 0.0, 1.0
    enough = counted * (1.0 - _CLOSE)
    if touched(low) >= enough:
        high = low
    elif touched(high) >= enough:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if touched(middle) >= enough else (middle, high)
    return Evened(high, counted / touched(high), float(np.mean(tokens)))
