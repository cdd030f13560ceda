"""The attribution table as columns of numpy, and its groups: sums by family, kind, kernel and layer, and what halving saves."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.op import PARTS
from moetrace.parse.summary import devices_of_steps, known_work, step_and_device
from moetrace.run import Run, codes_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_KERNELS = 100


class Columns:
    """The attribution table as numpy, nulls as zero (costs) or -1 (step, layer).

    Sums over rows are means over the devices of a step: `weight` is 1 over their number.
    """

    def __init__(self, run: Run, table: pa.Table) -> None:
        self.table = table
        self.step = self._of("step", -1).astype(np.int64)
        self.group, self.devices = step_and_device(run)
        self.layer = self._of("layer", -1)
        self.inside = self.step >= 0
        self.dur = self._of("dur_ns", 0) / 1e9
        self.exposed = self._of("exposed_ns", 0) / 1e9
        self.gap = self._of("gap_ns", 0) / 1e9
        self.launch = np.maximum(0, self._of("launch_ns", 0)) / 1e9
        self.known = ~np.isnan(self._of("expected_s", np.nan))
        self.expected, self.lower = self._of("expected_s", 0.0), self._of("lower_bound_s", 0.0)
        self.explained, self.spent = self._split()
        self.explained_low, self.explained_high = self._explained_within()
        self.weight = self._weight()
        self.work = known_work(run)

    def codes(self, column: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """(group per row, -1 for none; the groups' names)."""
        if column == "layer":
            found = np.unique(self.layer[self.layer >= 0])
            return np.where(self.layer >= 0, np.searchsorted(found, self.layer), -1), found.tolist()
        return codes_of(self.table.column(column))

    def only(self, steps: list[int]) -> Columns:
        """The same columns, with only these steps taken as inside."""
        other = copy(self)
        other.inside = self.inside & np.isin(self.step, steps)
        return other

    def total(self, code: IntArray, values: FloatArray, size: int) -> FloatArray:
        """Sum of the values of the rows inside, per code (none for -1), as a mean over devices."""
        at = self.inside & (code >= 0)
        return np.bincount(code[at], weights=(values * self.weight)[at], minlength=size).astype(np.float64)

    def _weight(self) -> FloatArray:
        """1 over the number of devices in the step of each row; 1 outside of every step."""
        number = devices_of_steps(self.group, len(self.devices), int(self.step.max(initial=0)) + 1)
        return np.where(self.inside, 1.0 / number[np.maximum(self.step, 0)], 1.0)

    def _of(self, name: str, null: float) -> Any:
        return np.asarray(pc.fill_null(self.table.column(name), null).to_numpy())

    def _split(self) -> tuple[FloatArray, dict[str, FloatArray]]:
        """(what of the exposed time of each op the law explains, that time dealt out to its parts in proportion and the rest).

        Where the law expects more than was measured, the parts are scaled down to the measured time and nothing remains.
        """
        parts = np.vstack([self._of(part, 0.0) for part in PARTS])
        total = parts.sum(axis=0)
        share = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
        shown = np.where(self.dur > 0, self.exposed / np.maximum(self.dur, 1e-12), 0.0)
        explained = np.minimum(self.expected, self.dur) * shown
        spent = {name.removesuffix("_s"): share[i] * explained for i, name in enumerate(PARTS)}
        spent["unexplained"] = np.maximum(0.0, self.exposed - explained)  # rounding may fall below 0
        return explained, spent

    def _explained_within(self) -> tuple[FloatArray, FloatArray]:
        """The ends of `explained` where each op's expected time is at either end of its 80 % interval."""
        factor = 1.0 + self._of("error", 0.0)
        shown = np.where(self.dur > 0, self.exposed / np.maximum(self.dur, 1e-12), 0.0)
        low, high = self.expected / factor, self.expected * factor
        return np.minimum(low, self.dur) * shown, np.minimum(high, self.dur) * shown


def tables(
    c: Columns,
    steps: list[dict[str, Any]],
    halved: Mapping[str, FloatArray],
    index: IntArray,
    span: float,
) -> dict[str, Any]:
    """Groups of the ops inside, largest first, and what halving things would save; shares are of `span`."""
    return {
        "families": _groups(c, "family", span),
        "kinds": _groups(c, "kind", span),
        "kernels": _groups(c, "kernel", span)[:_KERNELS],
        "layers": sorted(_groups(c, "layer", span), key=lambda row: int(row["layer"])),
        "halving": _halving(c, steps, halved, index, span),
    }


def _groups(c: Columns, column: str, span: float) -> list[dict[str, Any]]:
    code, names = c.codes(column)
    size = len(names)

    def total(values: FloatArray) -> FloatArray:
        return c.total(code, values, size)

    busy, expected, lower = total(c.exposed), total(c.expected), total(c.lower)
    moved, timed = total(c.work.nbytes), total(c.work.timed_s)
    count = np.bincount(code[c.inside & (code >= 0)], minlength=size)
    spent = {name: total(values) for name, values in c.spent.items()}
    return [
        {
            column: names[i],
            "count": int(count[i]),
            "busy_s": float(busy[i]),
            "share": float(busy[i]) / span,
            "expected_s": float(expected[i]),
            "lower_bound_s": float(lower[i]),
            **{f"{name}_s": float(values[i]) for name, values in spent.items()},
            "bytes": float(moved[i]) if timed[i] else None,
            "bytes_per_s": float(moved[i] / timed[i]) if timed[i] else None,
            "halving_saves_s": float(busy[i]) / 2,
            "halving_saves_share": float(busy[i]) / 2 / span,
        }
        for i in np.argsort(-busy).tolist()
        if count[i]
    ]


def _halving(
    c: Columns,
    steps: list[dict[str, Any]],
    halved: Mapping[str, FloatArray],
    index: IntArray,
    span: float,
) -> list[dict[str, Any]]:
    """What the run would lose if one thing took half: resources by the law's own answer, idle and launches by measure.

    A resource saves of the explained time alone. A law is convex and scales with its parts, so all its rows together save no
    more than half of that, and all rows of the table no more than half of the span. `low_s` and `high_s` are the answers where
    the law is at either end of its 80 % interval for every op.
    """

    def inside(values: FloatArray) -> float:
        return float((values * c.weight)[c.inside].sum())

    def measured(seconds: float) -> tuple[float, float, float]:
        return seconds, seconds, seconds

    rows = [
        (name, tuple(inside(x * saving[index]) for x in (c.explained, c.explained_low, c.explained_high)))
        for name, saving in halved.items()
    ]
    launch, idle = sum(s["launch_bound_s"] for s in steps), sum(s["idle_s"] for s in steps)
    rows += [
        ("launch waits", measured(launch / 2)),
        ("other idle time", measured(max(0.0, idle - launch) / 2)),
    ]
    over = (np.maximum(0.0, c.exposed - x) for x in (c.explained, c.explained_high, c.explained_low))
    rows += [("unexplained time", tuple(inside(x) / 2 for x in over))]
    rows.sort(key=lambda r: -r[1][0])
    return [
        {"what": name, "saves_s": saves, "low_s": low, "high_s": high, "saves_share": saves / span}
        for name, (saves, low, high) in rows
    ]
