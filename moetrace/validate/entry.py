"""What becomes of a figure: an Entry of the ledger, with a prediction, a verdict, or why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from moetrace.errors import MoetraceError
from moetrace.validate.figure import Figure

PREDICTED, NOT_SIMULATED, CARRIED = "predicted", "not simulated", "carried"
REPRODUCED, PARTLY, CONTRADICTED = "reproduced", "partly", "contradicted"
STATEMENTS = (REPRODUCED, PARTLY, CONTRADICTED)
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_ABOUT = 0.25  # how far from a value that is printed with "~", or to be read off a text, counts as that value


class RefusalError(MoetraceError):
    """A figure that cannot be recomputed; the text says why."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value with its 80 % interval (None where none is worked out), its machine and its setting in words."""

    value: float
    low: float | None
    high: float | None
    hardware: str
    setting: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger. `error` is predicted / measured - 1; `note`: what was assumed, or why nothing is predicted.

    `unit` is that of a metric which is not the figure's own; empty for a ratio.
    """

    figure: Figure
    verdict: str
    metric: str
    measured: float | None = None
    estimate: Estimate | None = None
    note: str = ""
    unit: str = ""

    @property
    def error(self) -> float | None:
        if self.verdict != PREDICTED or not self.measured or self.estimate is None:
            return None
        return self.estimate.value / self.measured - 1

    @property
    def within(self) -> bool | None:
        """Whether the measured value lies in the 80 % interval; None where there is none."""
        e = self.estimate
        if self.error is None or e is None or e.low is None or e.high is None or self.measured is None:
            return None
        return e.low <= self.measured <= e.high


def scored(figure: Figure, estimate: Estimate, note: str = "", *, per: float = 1.0) -> Entry:
    """The entry of a figure with a number: `estimate` is in the figure's unit times `per`."""
    measured = figure.measured
    if measured is None:
        raise RefusalError(f"the value {figure.value!r} is not a number")
    e = estimate
    scaled = Estimate(
        e.value / per,
        None if e.low is None else e.low / per,
        None if e.high is None else e.high / per,
        e.hardware,
        e.setting,
    )
    return Entry(figure, PREDICTED, figure.metric, measured, scaled, note)


def refused(figure: Figure, why: str) -> Entry:
    """The entry of a figure that is not recomputed."""
    return Entry(figure, NOT_SIMULATED, figure.metric, figure.measured, note=why)


def stated(figure: Figure, values: Sequence[float], estimate: Estimate, note: str = "") -> Entry:
    """The entry of a statement (a range, a bound, a direction) held against predictions for its settings.

    reproduced: all of `values` lie in what is printed (a single value means within a quarter of it); partly: some do, or the
    middle one has the sign and between half and twice the size; contradicted: anything else.
    """
    low, high = printed_range(figure.value)
    inside = [low <= v <= high for v in values]
    middle = sorted(values)[len(values) // 2]
    near = [edge for edge in (low, high) if math.isfinite(edge) and edge != 0]
    close = any(0.5 <= middle / edge <= 2.0 for edge in near)
    verdict = REPRODUCED if all(inside) else PARTLY if any(inside) or close else CONTRADICTED
    said = f"predicted {min(values):.3g} to {max(values):.3g}" if len(values) > 1 else ""
    return Entry(figure, verdict, figure.metric, None, estimate, "; ".join(t for t in (said, note) if t))


def printed_range(text: str) -> tuple[float, float]:
    """(least, most) that a printed text allows: ``-15..-20``, ``<=30``, ``>2``, ``~70``, ``20``, ``increase``.

    Raises RefusalError where it is neither.
    """
    words = {"increase": (1e-9, math.inf), "lower": (-math.inf, 0.0), "may decrease": (-math.inf, 0.0)}
    words |= {"sharp rise": (2.1, math.inf), "monotone decrease": (-math.inf, 0.0), "flat": (-5.0, 5.0)}
    if text in words:
        return words[text]
    if found := re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", text):
        ends = sorted(map(float, found.groups()))
        return ends[0], ends[1]
    if found := re.fullmatch(rf"(<=|>=|<|>)({_NUMBER})", text):
        value = float(found[2])
        # "at most 30 % more" is said of a gain
        return (0.0, value) if found[1].startswith("<") else (value, math.inf)
    if found := re.fullmatch(rf"~?({_NUMBER})", text):
        value = float(found[1])
        ends = sorted((value * (1 - _ABOUT), value * (1 + _ABOUT)))
        return ends[0], ends[1]
    raise RefusalError(f"what is printed, {text!r}, is not a number or a range")
