"""The 80 % interval of a fitted family, drawn from held-out errors, and how well it holds on shapes that it was not drawn from.

Within a decade of tokens each term of the form has an error, that of an op whose time is all that term's: streaming is better
known than what is fixed. An op's error is the geometric mean of its terms', weighed by their seconds, and rises or falls evenly
over the decade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.hardware import Family
from moetrace.machines.forms import Parts
from moetrace.machines.gpu import apart, decade_of, errors, place_in_decade, tokens_of
from moetrace.op import FloatArray, Works

MIN_ROWS = 30
WITHIN = 0.8
BoolArray = npt.NDArray[np.bool_]
DRAWS = 4  # times that the shapes are halved
_LEAST = 1e-3  # below this an error's logarithm is the least there is
_SMOOTH = 0.05  # over which the loss of a quantile turns
_TOGETHER = 0.25  # rows that what draws the levels of terms to each other is worth
# Least and most error (its logarithm) of an op that is all one term: no row's time may be.
_LEVELS = (0.01, 1.0)
_RISES = float(np.log(4.0))  # the most that an error grows or falls by over a decade
_NOTHING = 1e-30  # seconds


@dataclass(frozen=True, slots=True)
class Interval:
    """What a Family says of its error, so that it holds 80 % of the held-out rows."""

    error: float
    error_decades: tuple[float, ...]
    error_terms: Mapping[str, tuple[float, ...]]
    error_rises: tuple[float, ...]
    error_apart: tuple[float, ...]

    def of(self, works: Works, parts: Parts) -> FloatArray:
        """The error of each op, as a profile that says this gives it."""
        said = Family(
            "",
            {},
            self.error,
            "",
            "",
            self.error_decades,
            self.error_terms,
            self.error_rises,
            self.error_apart,
        )
        return errors(said, works, parts)


def interval(errors: FloatArray, works: Works, parts: Parts, shape: npt.NDArray[np.str_]) -> Interval:
    """The interval that holds 80 % of the held-out `errors` (logarithms), overall, by size and by what the time is made of.

    A decade of few rows takes the nearest rows of its neighbours to itself. Ops that run another way (`apart`) have errors of
    their own, whatever their time is made of; they are of few shapes, whose rows err alike, so that it is held as a further
    shape asks for, that of the others as a further row does (`_for_a_further`).
    """
    size, other = np.abs(errors), apart(works)
    tokens = np.log10(np.maximum(np.nan_to_num(tokens_of(works), nan=1.0), 1.0))
    decade = decade_of(tokens_of(works))
    if min(other.sum(), (~other).sum()) < MIN_ROWS:  # all run the same way
        other = np.zeros_like(other)
    total = np.maximum(sum(parts.terms.values(), np.zeros_like(size)), _NOTHING)
    shares = np.column_stack([term / total for term in parts.terms.values()] or [np.ones_like(size)])
    middle, levels, rises, own = list[float](), list[FloatArray](), list[float](), list[float]()
    for i in range(int(decade.max()) + 1):
        usual, those = (_rows(mask, decade == i, np.abs(tokens - (i + 0.5))) for mask in (~other, other))
        middle.append(float(np.expm1(np.quantile(size[usual], WITHIN))))
        found, rise = _levels(size[usual], shares[usual], place_in_decade(tokens_of(works)[usual], i))
        levels.append(np.expm1(np.exp(found)))
        rises.append(float(np.exp(rise)))
        own += [_of_few(size[those], shape[those])] if those.any() else []
    terms = {name: tuple(level[at] for level in levels) for at, name in enumerate(parts.terms)}
    every = float(np.expm1(np.quantile(size, WITHIN)))
    return Interval(every, tuple(middle), terms, tuple(rises), tuple(own))


def _of_few(size: FloatArray, shape: npt.NDArray[np.str_]) -> float:
    """The error that a further shape stays within four times out of five."""
    return float(np.expm1(np.quantile(size, _for_a_further(np.unique(shape).size))))


def _for_a_further(n: int) -> float:
    """The share of n that an interval must hold so that one more would be in it four times out of five.

    (n + 1) / n-fold of 80 %: split conformal prediction, arXiv 2107.07511, section 1.
    """
    return min(1.0, WITHIN * (1.0 + 1.0 / n))


def _rows(mask: BoolArray, inside: BoolArray, distance: FloatArray) -> BoolArray:
    """The rows of the mask that lie inside; of few, the MIN_ROWS of the least distance and those as near."""
    if (mask & inside).sum() >= MIN_ROWS or not mask.any():
        return mask & inside
    return np.asarray(mask & (distance <= np.sort(distance[mask])[:MIN_ROWS].max()))


def _levels(size: FloatArray, shares: FloatArray, place: FloatArray) -> tuple[FloatArray, float]:
    """(logarithms of the 80 % quantile of `size` where the time is all one term, [terms], and by how much they rise over the
    decade); by `shares`, [rows, terms], and `place` in the decade, -0.5 to 0.5, between.

    Quantile regression of the logarithm, the levels drawn weakly to the quantile of all rows, which a term that no row has
    keeps. Shifted so that as many rows lie within as a further one asks for (`_for_a_further`).
    """
    from scipy.optimize import minimize

    log = np.log(np.maximum(size, _LEAST))
    design = np.column_stack([shares, place])
    drawn = _TOGETHER / size.size
    middle = np.append(np.full(shares.shape[1], np.quantile(log, WITHIN)), 0.0)

    def loss(found: FloatArray) -> tuple[float, FloatArray]:
        over, away = log - design @ found, found - middle
        beyond = np.logaddexp(0.0, over / _SMOOTH) * _SMOOTH
        slope = WITHIN - 1.0 + 1.0 / (1.0 + np.exp(-over / _SMOOTH))
        value = np.mean((WITHIN - 1.0) * over + beyond) + drawn * np.sum(away**2)
        return float(value), 2.0 * drawn * away - design.T @ slope / size.size

    bounds = [(float(np.log(_LEVELS[0])), float(np.log(_LEVELS[1])))] * shares.shape[1] + [(-_RISES, _RISES)]
    begin = np.clip(middle, *np.array(bounds).T)
    found = np.asarray(minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x)
    return found[:-1] + np.quantile(log - design @ found, _for_a_further(size.size)), float(found[-1])


@dataclass(frozen=True, slots=True)
class Coverage:
    """How an interval does in one decade of tokens (None: all of them).

    `covered` is the share of rows within, `width` the median half-width and `spread` the 80 % quantile of the error, both over
    the median error. An interval of one width for all of the decade has `spread` for its `width`: 1.9 if errors are normal,
    2.3 if they are Laplace's; to be narrower and still hold 80 % it would have to know beforehand which rows are off.
    `normal` is what `width` would be if each row's error were normal and its interval exactly right: 1.9 where rows are alike,
    up to 2.4 where some are better known than others.
    """

    decade: int | None
    rows: int
    covered: float
    width: float
    spread: float
    normal: float
    median: float


def coverage(
    decade: npt.NDArray[np.int64], off: FloatArray, error: FloatArray, times: int = 1
) -> tuple[Coverage, ...]:
    """Coverage of intervals ``/ (1 + error)``, ``x (1 + error)`` by decade, all first; `off` is log(predicted / measured).

    Each row is given `times` times.
    """
    inside = np.abs(off) <= np.log1p(error)
    half = (1.0 + error - 1.0 / (1.0 + error)) / 2.0
    miss = np.abs(np.expm1(off))
    out = []
    for which in (None, *np.unique(decade).tolist()):
        rows = np.ones(off.size, dtype=bool) if which is None else decade == which
        median = max(float(np.median(miss[rows])), 1e-9)
        width, spread = float(np.median(half[rows])), float(np.quantile(miss[rows], WITHIN))
        normal = width / max(_normal_median(half[rows]), 1e-9)
        covered, count = float(inside[rows].mean()), int(rows.sum()) // times
        out.append(Coverage(which, count, covered, width / median, spread / median, normal, median))
    return tuple(out)


def _normal_median(half: FloatArray) -> float:
    """The median size of normal errors, one for each interval, 80 % of which lie within its half-width."""
    from scipy.special import ndtri

    sizes = ndtri(0.5 + np.arange(0.5, 100.0) / 200.0) / ndtri(0.5 + WITHIN / 2.0)
    some = np.sort(half)[:: max(1, half.size // 1000)]
    return float(np.median(np.outer(some, sizes)))


def on_other_half(
    off: FloatArray, works: Works, parts: Parts, shape: npt.NDArray[np.str_]
) -> tuple[Coverage, ...]:
    """Coverage of rows whose intervals were drawn from the held-out errors `off` of the other half of the shapes."""
    at, stated = stated_by_other_half(off, works, parts, shape)
    return coverage(decade_of(tokens_of(works))[at], off[at], stated, DRAWS)


def stated_by_other_half(
    off: FloatArray, works: Works, parts: Parts, shape: npt.NDArray[np.str_]
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """(rows, the error that the other half of the shapes states for each): every row DRAWS times."""
    stated = [
        interval(off[here], works.take(here), parts.take(here), shape[here]).of(
            works.take(there), parts.take(there)
        )
        for here, there in _split(shape)
    ]
    return np.concatenate([there for _, there in _split(shape)]), np.concatenate(stated)


def _split(shape: npt.NDArray[np.str_]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    shapes = np.unique(shape)
    for draw in range(DRAWS):
        half = np.isin(shape, np.random.default_rng(draw).permutation(shapes)[: (shapes.size + 1) // 2])
        yield np.flatnonzero(half), np.flatnonzero(~half)
        yield np.flatnonzero(~half), np.flatnonzero(half)
