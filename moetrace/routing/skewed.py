"""Popularity of experts where none was recorded but routing is known to be skewed: log-normal over the experts."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@lru_cache(maxsize=256)
def lognormal_popularity(experts: int, topk: int, sigma: float) -> FloatArray:
    """Share of tokens that choose each expert, [experts]: ``exp(sigma z)`` at evenly spaced quantiles z, sum `topk`, at most 1.

    In a fixed scrambled order, so that blocks of experts differ about as they do where experts are placed at random.
    """
    normal = NormalDist()
    z = np.array([normal.inv_cdf((i + 0.5) / experts) for i in range(experts)])
    stride = next(s for s in range(int(experts * 0.618) | 1, 2 * experts + 2) if np.gcd(s, experts) == 1)
    return shares(np.exp(sigma * z), topk)[np.arange(experts) * stride % experts]


def shares(weight: FloatArray, topk: float) -> FloatArray:
    """`weight` in proportion as shares that sum to `topk`; what would go above 1 is shared out among the others."""
    share = np.zeros(weight.size)
    for _ in range(weight.size):
        left, free = topk - np.minimum(share, 1.0).sum(), share < 1.0
        if left < 1e-9 or not free.any():
            break
        part = np.where(free, np.maximum(weight, 1e-12), 0.0)
        share = np.where(free, share + left * part / part.sum(), 1.0)
    return np.minimum(share, 1.0)
