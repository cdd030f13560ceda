"""The 80 % interval of a fitted family, drawn from held-out errors, and how well it holds on shapes that it was not drawn from.

Within a decade of tokens the error is a line in the share of the time that is memory's: streaming is better known than what
is fixed. Tried and left out, for they narrowed nothing on halves of the shapes (NVIDIA AIConfigurator tables, H100): a scale
model of all dims, shares and the time itself, boosted trees of the same, and ends of their own above and below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.hardware import Family
from moetrace.machines.gpu import apart, decade_of, errors, tokens_of
from moetrace.op import FloatArray, Works

MIN_ROWS = 30
WITHIN = 0.8
BoolArray = npt.NDArray[np.bool_]
DRAWS = 4  # times that the shapes are halved


@dataclass(frozen=True, slots=True)
class Interval:
    """What a Family says of its error, so that it holds 80 % of the held-out rows."""

    error: float
    error_decades: tuple[float, ...]
    error_memory: tuple[float, ...]
    error_apart: tuple[float, ...]

    def of(self, works: Works, memory: FloatArray) -> FloatArray:
        """The error of each op, as a profile that says this gives it."""
        said = Family("", {}, self.error, "", "", self.error_decades, self.error_memory, self.error_apart)
        return errors(said, works, memory)


def interval(errors: FloatArray, works: Works, memory: FloatArray, shape: npt.NDArray[np.str_]) -> Interval:
    """The interval that holds 80 % of the held-out `errors` (logarithms), overall and by size.

    Within a decade of tokens the line is the one of the least loss of an 80 % quantile; a decade of few rows takes the nearest
    rows of its neighbours to itself. Ops that run another way (`apart`) have errors of their own, without a line; they are of
    few shapes, whose rows err alike, so that of n shapes the (n + 1) / n-fold of 80 % is taken, as a further one asks for
    (split conformal prediction: arXiv 2107.07511, section 1).
    """
    size, other = np.abs(errors), apart(works)
    tokens = np.log10(np.maximum(np.nan_to_num(tokens_of(works), nan=1.0), 1.0))
    decade = decade_of(tokens_of(works))
    if min(other.sum(), (~other).sum()) < MIN_ROWS:  # all run the same way
        other = np.zeros_like(other)
    lines, own = list[tuple[float, float]](), list[float]()
    for i in range(int(decade.max()) + 1):
        usual, those = (_rows(mask, decade == i, np.abs(tokens - (i + 0.5))) for mask in (~other, other))
        lines.append(_line(size[usual], memory[usual]))
        own += [_of_few(size[those], shape[those])] if those.any() else []
    fixed, streaming = (tuple(np.expm1(side).tolist()) for side in zip(*lines, strict=True))
    return Interval(float(np.expm1(np.quantile(size, WITHIN))), fixed, streaming, tuple(own))


def _of_few(size: FloatArray, shape: npt.NDArray[np.str_]) -> float:
    """The error that a further shape stays within four times out of five."""
    return float(np.expm1(np.quantile(size, min(1.0, WITHIN * (1.0 + 1.0 / np.unique(shape).size)))))


def _rows(mask: BoolArray, inside: BoolArray, distance: FloatArray) -> BoolArray:
    """The rows of the mask that lie inside; of few, the MIN_ROWS of the least distance and those as near."""
    if (mask & inside).sum() >= MIN_ROWS or not mask.any():
        return mask & inside
    return np.asarray(mask & (distance <= np.sort(distance[mask])[:MIN_ROWS].max()))


def _line(size: FloatArray, memory: FloatArray) -> tuple[float, float]:
    """(at memory 0, at memory 1) of the 80 % quantile of `size` as a line in `memory`, neither below a tenth of it."""
    from scipy.optimize import minimize

    middle = float(np.quantile(size, WITHIN))

    def loss(ends: FloatArray) -> float:
        over = size - ((1 - memory) * abs(ends[0]) + memory * abs(ends[1]))
        return float(np.mean(np.maximum(WITHIN * over, (WITHIN - 1) * over)))

    found = minimize(loss, np.array([middle, middle]), method="Nelder-Mead", options={"maxiter": 300}).x
    low, high = (max(abs(float(end)), middle / 10) for end in found)
    # Rescaled so that exactly 80 % lie within.
    scale = float(np.quantile(size / ((1 - memory) * low + memory * high), WITHIN))
    return low * scale, high * scale


@dataclass(frozen=True, slots=True)
class Coverage:
    """How an interval does in one decade of tokens (None: all of them).

    `covered` is the share of rows within, `width` the median half-width and `spread` the 80 % quantile of the error, both over
    the median error. An interval of one width for all of the decade has `spread` for its `width`: 1.9 if errors are normal,
    2.3 if they are Laplace's; to be narrower and still hold 80 % it would have to know beforehand which rows are off.
    """

    decade: int | None
    rows: int
    covered: float
    width: float
    spread: float
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
        covered = float(inside[rows].mean())
        out.append(
            Coverage(which, int(rows.sum()) // times, covered, width / median, spread / median, median)
        )
    return tuple(out)


def on_other_half(
    off: FloatArray, works: Works, memory: FloatArray, shape: npt.NDArray[np.str_]
) -> tuple[Coverage, ...]:
    """Coverage of rows whose intervals were drawn from the held-out errors `off` of the other half of the shapes."""
    at, stated = stated_by_other_half(off, works, memory, shape)
    return coverage(decade_of(tokens_of(works))[at], off[at], stated, DRAWS)


def stated_by_other_half(
    off: FloatArray, works: Works, memory: FloatArray, shape: npt.NDArray[np.str_]
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """(rows, the error that the other half of the shapes states for each): every row DRAWS times."""
    stated = [
        interval(off[here], works.take(here), memory[here], shape[here]).of(works.take(there), memory[there])
        for here, there in _split(shape)
    ]
    return np.concatenate([there for _, there in _split(shape)]), np.concatenate(stated)


def _split(shape: npt.NDArray[np.str_]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    shapes = np.unique(shape)
    for draw in range(DRAWS):
        half = np.isin(shape, np.random.default_rng(draw).permutation(shapes)[: (shapes.size + 1) // 2])
        yield np.flatnonzero(half), np.flatnonzero(~half)
        yield np.flatnonzero(~half), np.flatnonzero(half)
