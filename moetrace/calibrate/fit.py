"""Fits the coefficients of one form to measured ops, and scores them on shapes that the fit did not see.

The function fitted is the one that prices (machines/forms): nothing is fitted twice over. Residuals are differences of
logarithms under a loss that outliers bend little; each coefficient has physical bounds and a weak prior, worth one row in a
hundred, around where it starts. A coefficient about which the rows say next to nothing stays there and is named; neither
that nor the covariance counts the prior as a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.calibrate.interval import MIN_ROWS
from moetrace.calibrate.measured import Measured
from moetrace.errors import CalibrationError
from moetrace.hardware import ANY_ENGINE, Hardware, Parameter
from moetrace.machines.forms import FORMS, Cache, Form, Setting
from moetrace.machines.gpu import peaks
from moetrace.op import FloatArray, Works

MIN_SHAPES = 3
_FOLDS = 10  # more shapes than that are left out in groups
_SCALE = 0.05  # error at which the loss turns from square to linear
_PRIOR_SHARE = 0.01  # of the rows that the prior is worth, at an error of _SCALE each
# Of its prior's spread: a coefficient that the rows alone leave wider stays where it started.
_UNDETERMINED = 3.0
# Of where it started: what the rows drove below it and do not determine is the least that it may be.
_GONE = 0.4
_NOTHING = 1e-9  # information about a logarithm: none
_TOGETHER = 10.0  # rows of one shape that count as one, at most
_EVALUATIONS = 60


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of one form for one group of rows. `covariance` is of the logarithms of those in `fitted`, in order.

    `kept` are the coefficients that the rows do not determine: they stay at the value they started from, or at the least that
    they may be where the rows drove them there.
    """

    value: Mapping[str, float]
    fitted: tuple[str, ...]
    kept: tuple[str, ...]
    covariance: FloatArray


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows to fit: their works, datasheet peaks, measured seconds and weights, on one machine."""

    form: Form
    works: Works
    at: Setting
    seconds: FloatArray
    weight: FloatArray
    shape: npt.NDArray[np.str_]

    @classmethod
    def of(cls, form: str, rows: Measured, hw: Hardware, cache: Cache) -> Problem:
        """Raises CalibrationError if the dims of a row do not suffice for its work."""
        works = work_of.works(rows.ops)
        if not works.known.all():
            bad = int(np.flatnonzero(~works.known)[0])
            raise CalibrationError(
                f"{rows.source}: the dims of {str(rows.ops[bad])!r} do not suffice to tell its work"
            )
        peak = peaks(works, hw, [""] * len(rows.ops.types))
        if np.isnan(peak).any():
            raise CalibrationError(
                f"{hw.name} has no peak for {rows.ops[int(np.flatnonzero(np.isnan(peak))[0])].dtype}"
            )
        engines = np.unique(rows.engine).tolist()
        return cls(
            FORMS[form],
            works,
            Setting(hw, peak, cache, engines[0] if len(engines) == 1 else ANY_ENGINE),
            rows.seconds,
            rows.weight,
            rows.shape,
        )

    def take(self, index: npt.NDArray[np.int64]) -> Problem:
        at = replace(self.at, peak=self.at.peak[index])
        return Problem(
            self.form, self.works.take(index), at, self.seconds[index], self.weight[index], self.shape[index]
        )

    def log_error(self, value: Mapping[str, float]) -> FloatArray:
        """log(predicted / measured) of each row."""
        expected = self.form.seconds(value, self.works, self.at).expected_s
        return np.asarray(np.log(expected / self.seconds))

    def __len__(self) -> int:
        return self.seconds.size


def fit(problem: Problem, start: Mapping[str, float]) -> Fit:
    """Coefficients that minimise the loss, starting from (and weakly drawn to) `start`, else each parameter's own start.

    The prior draws what the rows leave open; it is no evidence. What is determined, and how well, is told from the rows alone.
    """
    parameters = problem.form.schema.parameters
    free = [name for name, parameter in parameters.items() if not parameter.given]
    kept, start = [name for name in parameters if name not in free], dict(start)
    # Rows of one shape err together, so that each counts for less than one.
    together = min(_TOGETHER, np.sqrt(len(problem) / np.unique(problem.shape).size))
    while True:
        value, information = _solve(problem, free, start)
        spread = np.array([parameters[name].spread for name in free])
        covariance = _inverse(information / together)
        wide = np.sqrt(np.diag(covariance)) / spread
        if wide.max() <= _UNDETERMINED:
            return Fit(value, tuple(free), tuple(kept), covariance)
        # All that would stay open even with the others known; else one, since of two that the rows cannot tell apart, one is
        # known once the other is given.
        alone = np.sqrt(together / np.maximum(np.diag(information), _NOTHING)) / spread
        loose = np.flatnonzero(alone > _UNDETERMINED).tolist() or [int(np.argmax(wide))]
        kept += [free[at] for at in loose]
        # The logarithm of what the rows drive towards nothing is open too: then it is the least that it may be, not the start.
        begun = {name: start.get(name, 0.0) or parameters[name].start for name in kept}
        start |= {name: parameters[name].low for name in kept if value[name] < _GONE * begun[name]}
        free = [name for name in free if name not in kept]
        if not free:
            raise CalibrationError("the rows determine none of the coefficients")


def _inverse(information: FloatArray) -> FloatArray:
    """The covariance of what has this information; a direction of which nothing is known gets a vast variance, not none."""
    values, vectors = np.linalg.eigh(information)
    return np.asarray((vectors / np.maximum(values, _NOTHING)) @ vectors.T, dtype=np.float64)


def held_out(
    problem: Problem, start: Mapping[str, float], most: int | None = None, fitted: int | None = None
) -> FloatArray:
    """log(predicted / measured) of each row by a fit that has not seen its shape, to at most `most` rows of the others, and to
    none but the first `fitted`.

    Raises CalibrationError below 3 shapes.
    """
    usable = np.arange(len(problem)) < (len(problem) if fitted is None else fitted)
    shapes = np.unique(problem.shape[usable])
    if usable.sum() < MIN_ROWS or shapes.size < MIN_SHAPES:
        raise CalibrationError(
            f"{usable.sum()} rows of {shapes.size} shapes: expected at least {MIN_ROWS} rows of {MIN_SHAPES} shapes, since a "
            "fit is scored on shapes left out of it"
        )
    order = np.random.default_rng(0).permutation(shapes)
    out = np.full(len(problem), np.nan)
    for fold in np.array_split(order, min(_FOLDS, shapes.size)):
        # Of no shape that is fitted: any fold.
        inside = np.isin(problem.shape, fold) | ~np.isin(problem.shape, shapes)
        others = np.random.default_rng(0).permutation(np.flatnonzero(~inside & usable))[:most]
        value = fit(problem.take(np.sort(others)), start).value
        out[inside] = problem.take(np.flatnonzero(inside)).log_error(value)
    return out


def _solve(
    problem: Problem, names: list[str], start: Mapping[str, float]
) -> tuple[dict[str, float], FloatArray]:
    """(all coefficients, what the rows tell of the logarithms of `names`: their information matrix)."""
    from scipy.optimize import least_squares

    parameters = problem.form.schema.parameters
    low, begin, high = np.array([_range(parameters[name], start) for name in names]).T
    others = {name: start.get(name, p.start) for name, p in parameters.items() if name not in names}
    prior = (
        np.sqrt(_PRIOR_SHARE * len(problem)) * _SCALE / np.array([parameters[name].spread for name in names])
    )
    root = np.sqrt(problem.weight / problem.weight.mean())

    def coefficients(x: FloatArray) -> dict[str, float]:
        return {**others, **dict(zip(names, np.exp(x).tolist(), strict=True))}

    def residuals(x: FloatArray) -> FloatArray:
        return np.concatenate([root * problem.log_error(coefficients(x)), prior * (x - begin)])

    found = least_squares(
        residuals,
        begin,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=_SCALE,
        x_scale="jac",
        max_nfev=_EVALUATIONS,
    )
    noise = np.median(np.abs(residuals(found.x)[: len(problem)])) / 0.6745
    slope = np.asarray(found.jac, dtype=np.float64)[: len(problem)]
    return coefficients(found.x), np.asarray(slope.T @ slope / max(noise, 1e-6) ** 2)


def _range(parameter: Parameter, start: Mapping[str, float]) -> tuple[float, float, float]:
    """(low, start, high) of a coefficient's logarithm; where 0 is allowed, low is small enough to be none."""
    # No small step leaves 0. Any other value that a profile says is where its fit ended, what switches a part off included.
    begin = start.get(parameter.name, 0.0) or parameter.start
    least = parameter.low or parameter.start * 1e-3
    begin = float(np.clip(begin, least * 1.001, parameter.high * 0.999))
    return float(np.log(least)), float(np.log(begin)), float(np.log(parameter.high))
