"""The metrics of a comparison: what a token and a step cost before and after, and what becomes of a gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.diff.gates import METRICS, Gate
from moetrace.diff.intervals import difference
from moetrace.diff.samples import BETWEEN, IDLE, Samples, collect
from moetrace.errors import RunError
from moetrace.run import Run

FloatArray = npt.NDArray[np.float64]


def metrics_of(
    before: Run, after: Run, a: Samples, b: Samples, of: str, paired: bool, confidence: float
) -> dict[str, Any]:
    """The change of each metric of the steps; without `tpot` where it is not known."""
    found = {
        metric: _metric(_series(a, metric), _series(b, metric), paired, confidence)
        for metric in ("tpot", "step", "busy", "idle")
    }
    if of == "none":
        del found["tpot"]
    elif of == "simulation":
        was, now = (float((run.meta.tpot or {})["expected_s"]) for run in (before, after))
        found["tpot"] = change_of(was, now, now - was, np.inf)
    return found


def judged(gate: Gate, before: Run, after: Run, confidence: float) -> dict[str, Any]:
    """What becomes of a gate. Raises RunError for one on a TPOT that the steps do not show."""
    counted = (after,) if gate.form == "level" else (before, after)
    if gate.metric == "tpot" and not all(run.meta.step_is_token for run in counted):
        raise RunError(
            f"--gate {gate.text}: the steps of a simulation with prompts, the host's time or drafting are not its TPOT: gate "
            "on step, its decode step"
        )
    phase = "prefill" if gate.metric == "prefill" else "decode"
    a, b = collect(before, phase), collect(after, phase)
    found = gate.judge(_series(a, gate.metric), _series(b, gate.metric), a.alike(b), confidence)
    return {
        **found,
        "meaning": METRICS.get(gate.metric, f"time of the ops of {gate.metric} in a decode step"),
    }


def tpot_of(before: Run, after: Run) -> str:
    """What TPOT is compared of: the ``steps``; or where these are not all that a token costs, the ``simulation``, if both runs
    are of one; else ``none``."""
    runs = (before.meta, after.meta)
    if all(meta.step_is_token for meta in runs):
        return "steps"
    return "simulation" if all(meta.tpot for meta in runs) else "none"


def _metric(before: FloatArray, after: FloatArray, paired: bool, confidence: float) -> dict[str, Any]:
    change = difference(before[:, None], after[:, None], paired)
    half = float(change.half_width((1 - confidence) / 2)[0])
    return change_of(float(before.mean()), float(after.mean()), float(change.mean[0]), half)


def _series(samples: Samples, metric: str) -> FloatArray:
    """Seconds of a metric, or of an op family, by step."""
    outside = {"tpot": (), "step": (BETWEEN,), "prefill": (BETWEEN,), "busy": (BETWEEN, IDLE)}
    if metric in outside:
        keys = [key for key in samples.keys if key not in outside[metric]]
    else:
        keys = [key for key in samples.keys if key[0] == metric]
    series: FloatArray = samples.columns(keys).sum(axis=1)
    return series


def change_of(before: float, after: float, mean: float, half: float) -> dict[str, Any]:
    """A change with its interval, in seconds and as a share of what it was; without an interval the ends are null."""
    known = np.isfinite(half)
    low, high = (mean - half, mean + half) if known else (None, None)
    return {
        "before_s": before,
        "after_s": after,
        "change_s": mean,
        "low_s": low,
        "high_s": high,
        "change": mean / before if before else None,
        "low": low / before if known and before and low is not None else None,
        "high": high / before if known and before and high is not None else None,
        "sure": bool(known and mean != 0 and abs(mean) > half),
    }


__all__ = ["change_of", "judged", "metrics_of", "tpot_of"]
