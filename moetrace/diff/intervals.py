"""How far a difference of means may be chance: Student's t intervals over steps, in pairs or after Welch.

Steps that follow each other are alike (a machine that throttles, a context that grows), so the variance of a mean is taken at
n (1 - r) / (1 + r) steps, r their correlation at lag one where it is above 0. Figures that move in one direction over
the whole run are held for almost one sample by that; runs whose steps do the same work are compared in pairs instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
LEAST = 2  # steps below which nothing is said of chance
_LAG_FROM = 8  # steps from which a correlation can be told


@dataclass(frozen=True, slots=True)
class Mean:
    """Means of columns, the variances of these means, and their degrees of freedom."""

    mean: FloatArray
    variance: FloatArray
    freedom: FloatArray

    @classmethod
    def of(cls, samples: FloatArray) -> Mean:
        """Of a row per step and a column per figure; variance is infinite for fewer than two steps."""
        n, columns = samples.shape
        mean = samples.mean(axis=0) if n else np.zeros(columns)
        if n < LEAST:
            return cls(mean, np.full(columns, np.inf), np.ones(columns))
        off = samples - mean
        square = (off**2).sum(axis=0)
        lag = np.zeros(columns)
        if n >= _LAG_FROM:
            np.divide((off[1:] * off[:-1]).sum(axis=0), square, out=lag, where=square > 0)
        lag = np.clip(lag, 0.0, 0.95)
        size = np.maximum(LEAST, n * (1 - lag) / (1 + lag))
        return cls(mean, square / (n - 1) / size, size - 1)

    def minus(self, other: Mean, factor: float = 1.0) -> Mean:
        """This less `factor` times another of other steps (Welch 1947, with Satterthwaite's degrees of freedom)."""
        theirs = other.variance * factor**2
        variance = self.variance + theirs
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = variance**2 / (self.variance**2 / self.freedom + theirs**2 / other.freedom)
        return Mean(
            self.mean - factor * other.mean,
            variance,
            np.where(np.isfinite(freedom), np.maximum(1.0, freedom), 1.0),
        )

    def half_width(self, tail: float) -> FloatArray:
        """How far from the mean an end of the interval lies, with a chance of `tail` beyond it."""
        factor = np.array([t_quantile(tail, int(f)) for f in self.freedom.tolist()])
        return np.where(self.variance > 0, factor * np.sqrt(self.variance), 0.0)


def difference(before: FloatArray, after: FloatArray, paired: bool, factor: float = 1.0) -> Mean:
    """Mean of `after` less `factor` times the mean of `before`, by column."""
    if paired:
        return Mean.of(after - factor * before)
    return Mean.of(after).minus(Mean.of(before), factor)


@lru_cache(maxsize=4096)
def t_quantile(tail: float, freedom: int) -> float:
    """The value that Student's t exceeds with a chance of `tail` (below a half). G. W. Hill, Algorithm 396, CACM 13 (1970)."""
    p, n = 2 * tail, float(freedom)
    if freedom == 1:
        return 1 / math.tan(p * math.pi / 2)
    if freedom == 2:
        return math.sqrt(2 / (p * (2 - p)) - 2)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * p) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tail)
        y = x * x
        if freedom < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        head = ((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3
        y = ((1 / head + 0.5 / (n + 4)) * y - 1) * (n + 1) / (n + 2) + 1 / y
    return math.sqrt(n * y)
