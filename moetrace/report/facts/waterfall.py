"""From the measured time of a step down to its lower bound: what each thing adds, as means over steps, so that it sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.attribute import Attribution
from moetrace.attribute.groups import Columns
from moetrace.run import Run

FloatArray = npt.NDArray[np.float64]
FLOOR = ("memory", "compute", "network")

# What is taken off the measured time, in this order; the rest is the lower bound.
DROPS = (
    ("imbalance", "waiting for the busiest device"),
    ("launch", "device idle, host had not launched yet"),
    ("idle", "other idle time"),
    ("unexplained", "busy beyond what the law expects"),
    ("fixed", "launches, per-expert and latency terms"),
    ("network", "messages beyond their floor"),
    ("memory", "bytes slower than the datasheet"),
    ("compute", "FLOPs slower than the datasheet"),
)


def waterfalls(run: Run, attribution: Attribution) -> dict[str, dict[str, Any]]:
    """By phase: `span_s`, `drops` (name, meaning, seconds; negative where ops beat the floor), `floor` by memory, compute and
    network, `lower_bound_s`, their sum, and `most_s`, the highest that the sum from the span down gets. All are means over the
    steps of the phase: span = drops + floor."""
    steps: Sequence[Mapping[str, Any]] = attribution.summary["steps"]
    size = max([int(s["index"]) for s in steps], default=-1) + 1
    floors, waits = {name: np.zeros(size) for name in FLOOR}, np.zeros(size)
    for part, table in zip(run.parts(), attribution.parts(), strict=True):  # of whole steps
        c = Columns.of(part, table)
        for name, seconds in _floors(c, size).items():
            floors[name] += seconds
        waits += _imbalance(c, size)
    out: dict[str, dict[str, Any]] = {}
    for phase in dict.fromkeys(s["phase"] or "unknown" for s in steps):
        mine = [s for s in steps if (s["phase"] or "unknown") == phase]
        index = [int(s["index"]) for s in mine]
        floor = {name: float(by_step[index].mean()) for name, by_step in floors.items()}
        out[phase] = _waterfall(mine, floor, float(waits[index].mean()))
    return out


def _waterfall(steps: Sequence[Mapping[str, Any]], floor: Mapping[str, float], wait: float) -> dict[str, Any]:
    def mean(name: str) -> float:
        return sum(float(s[name]) for s in steps) / len(steps)

    idle, launch = mean("idle_s"), mean("launch_bound_s")
    imbalance = min(wait, max(0.0, idle - launch))
    taken = {
        "imbalance": imbalance,
        "launch": launch,
        "idle": idle - launch - imbalance,
        "unexplained": mean("unexplained_s"),
        "fixed": mean("fixed_s"),
        **{name: mean(f"{name}_s") - floor[name] for name in FLOOR},
    }
    levels = np.cumsum([mean("busy_s") + idle, *(-taken[name] for name, _ in DROPS)])
    return {
        "span_s": mean("busy_s") + idle,
        "most_s": float(levels.max(initial=0.0)),
        "drops": [{"name": name, "meaning": said, "seconds": taken[name]} for name, said in DROPS],
        "floor": dict(floor),
        "lower_bound_s": sum(floor.values()),
    }


def _floors(c: Columns, size: int) -> dict[str, FloatArray]:
    """Seconds of the lower bound by resource, for each step.

    An op's floor counts as what bounds it; one bound by fixed cost has its floor from the larger of its other parts.
    """
    parts = np.vstack([c.spent[name] for name in FLOOR])
    code = np.argmax(parts, axis=0)
    return {name: c.total(c.step, c.lower * (code == i), size) for i, name in enumerate(FLOOR)}


def _imbalance(c: Columns, size: int) -> FloatArray:
    """For each step: busy time of its busiest device less the mean over its devices; 0 where one device was recorded."""
    devices = len(c.devices)
    if devices < 2:
        return np.zeros(size)
    at = c.inside
    busy = np.bincount(c.group[at] - devices, weights=c.exposed[at], minlength=size * devices)
    by_device = busy.reshape(-1, devices)[:size]
    return np.asarray(
        by_device.max(axis=1) - by_device.sum(axis=1) / np.maximum(1, (by_device > 0).sum(axis=1))
    )
