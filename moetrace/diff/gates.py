"""Gates: a limit on how much worse a run may be than the one before, and whether its steps show that it is beyond."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.diff.intervals import LEAST, Mean, difference
from moetrace.errors import RunError, ScenarioError, unknown

FloatArray = npt.NDArray[np.float64]
_FORM = re.compile(r"\s*([a-z_]+)\s*<\s*([+-]?)(\d+(?:\.\d+)?)\s*(%|ns|us|ms|s)\s*")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}

# metric -> what it is the mean of; the name of an op family is one too.
METRICS: Mapping[str, str] = {
    "tpot": "time from the end of the step before to the end of a decode step: what a token costs each sequence",
    "step": "time from the start to the end of a decode step",
    "busy": "time of a decode step in which the device runs an op",
    "idle": "time of a decode step in which it runs none",
    "prefill": "time from the start to the end of a prefill step",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric and its limit: `relative` (a share of what it was), `change` (seconds more than it was) or `level` (seconds)."""

    text: str
    metric: str
    form: str
    limit: float

    @classmethod
    def of(cls, text: str) -> Gate:
        """From ``tpot<+3%``, ``experts<+200us`` or ``step<6ms``. Raises ScenarioError naming what is wrong."""
        found = _FORM.fullmatch(text)
        if not found:
            raise ScenarioError(
                f"--gate {text[:60]}: expected METRIC<LIMIT such as tpot<+3%, experts<+200us or step<6ms"
            )
        metric, sign, number, unit = found.groups()
        value = float(number) * (-1 if sign == "-" else 1)
        if not math.isfinite(value):
            raise ScenarioError(f"--gate {text[:60]}: the limit is not a number that can be compared with")
        if unit == "%":
            return cls(text, metric, "relative", value / 100)
        return cls(text, metric, "change" if sign else "level", value * _UNITS[unit])

    def judge(self, before: FloatArray, after: FloatArray, paired: bool, confidence: float) -> dict[str, Any]:
        """`failed` where the steps show, at that confidence, that the limit is passed; `passed` where they show that it is
        not; `open` where they show neither. Raises RunError where there are too few steps to say anything."""
        for name, samples in (("before", before), ("after", after)):
            if len(samples) < LEAST and not (name == "before" and self.form == "level"):
                raise RunError(
                    f"--gate {self.text}: {len(samples)} steps of the run {name} count; a gate needs {LEAST} or more "
                    "to tell a change from noise"
                )
        over = self._over(before[:, None], after[:, None], paired)
        excess, half = float(over.mean[0]), float(over.half_width(1 - confidence)[0])
        result = "failed" if excess - half > 0 else "passed" if excess + half <= 0 else "open"
        return {
            "gate": self.text,
            "metric": self.metric,
            "form": self.form,
            "limit": self.limit,
            "result": result,
            "before_s": float(before.mean()) if len(before) else None,
            "after_s": float(after.mean()),
            "over_by_s": excess,
            "low_s": excess - half,
            "high_s": excess + half,
        }

    def _over(self, before: FloatArray, after: FloatArray, paired: bool) -> Mean:
        """By how many seconds the limit is passed."""
        if self.form == "relative":
            return difference(before, after, paired, 1 + self.limit)
        over = Mean.of(after) if self.form == "level" else difference(before, after, paired)
        return Mean(over.mean - self.limit, over.variance, over.freedom)


def check_metrics(gates: Iterable[Gate], families: Iterable[str]) -> None:
    """Raises ScenarioError for a gate on what is neither a metric nor a family of either run."""
    known = {*METRICS, *families}
    for gate in gates:
        if gate.metric not in known:
            raise ScenarioError(f"--gate {gate.text}: {unknown('metric', gate.metric, known)}")
