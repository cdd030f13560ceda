"""The attribution table as columns of numpy, and its groups: sums by family, kind, kernel and layer, and what halving saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.formats.piles import ROWS
from moetrace.op import PARTS
from moetrace.parse.summary import (
    WORK_COLUMNS,
    KnownWork,
    devices_of_steps,
    keep_longest,
    known_work,
    step_and_device,
)
from moetrace.run import Run, codes_of, without_nulls

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_KERNELS = 100
GROUPED = ("family", "kind", "kernel", "layer")
SPENT = (*(part.removesuffix("_s") for part in PARTS), "unexplained")


@dataclass(frozen=True, slots=True)
class Whole:
    """What is found of all rows of a part together: each one's step and device (`step_and_device`), the devices, the weight.

    Sums over rows are means over the devices of a step: `weight` is 1 over their number, and 1 outside of every step.
    """

    group: IntArray
    devices: IntArray
    weight: FloatArray

    @classmethod
    def of(cls, run: Run) -> Whole:
        """That of a part of a run."""
        group, devices = step_and_device(run)
        step = run.numpy("step").astype(np.int64)
        number = devices_of_steps(group, len(devices), int(step.max(initial=0)) + 1)
        return cls(group, devices, np.where(step >= 0, 1.0 / number[np.maximum(step, 0)], 1.0))


class Columns:
    """Some rows of the attribution table as numpy, nulls as zero (costs) or -1 (step, layer)."""

    def __init__(self, table: pa.Table, whole: Whole, work: KnownWork, at: slice) -> None:
        """The rows `at` of a part with this table."""
        self.table = table.slice(at.start, at.stop - at.start)
        self.group, self.weight, self.devices = whole.group[at], whole.weight[at], whole.devices
        self.work = work
        self.step = self._of("step", -1).astype(np.int64)
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

    @classmethod
    def of(cls, run: Run, table: pa.Table) -> Columns:
        """All rows of a part."""
        return cls(table, Whole.of(run), known_work(run), slice(0, table.num_rows))

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

    def _of(self, name: str, null: float) -> Any:
        return without_nulls(self.table.column(name), null)

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


def in_pieces(run: Run, table: pa.Table, whole: Whole) -> Iterator[tuple[slice, Columns]]:
    """The rows of a part, as many at a time as are worked on at once: all columns of a long step would take 200 bytes a row."""
    facts = run.table(WORK_COLUMNS)
    for low in range(0, table.num_rows, ROWS):
        at = slice(low, min(low + ROWS, table.num_rows))
        yield at, Columns(table, whole, known_work(Run(run.meta, facts.slice(low, at.stop - low))), at)


class Sums:
    """What attribution adds up over the rows of some steps, part by part: groups of ops, and what halving saves of them."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[Any, FloatArray]] = {column: {} for column in GROUPED}
        self._saved: dict[str, FloatArray] = {}
        self._over = np.zeros(3)
        self.shortened = False  # whether sums by kernel were left out

    def add(self, c: Columns, halved: Mapping[str, FloatArray], index: IntArray) -> None:
        """The rows inside of a part: `halved` by distinct op, `index` the op of each row."""
        values = (c.exposed, c.expected, c.lower, c.work.nbytes, c.work.timed_s, *c.spent.values())
        for column, groups in self._groups.items():
            code, names = c.codes(column)
            totals = [c.total(code, v, len(names)) for v in values]
            count = np.bincount(code[c.inside & (code >= 0)], minlength=len(names))
            for i, row in enumerate(np.array([count, *totals], dtype=np.float64).T):
                if row[0]:
                    # A copy: a view would keep the sums of all names of the part while one is among the longest.
                    groups[names[i]] = groups[names[i]] + row if names[i] in groups else row.copy()
            self.shortened |= keep_longest(groups, 1)

        def inside(seconds: FloatArray) -> float:
            return float((seconds * c.weight)[c.inside].sum())

        for name, saving in halved.items():
            ends = (c.explained, c.explained_low, c.explained_high)
            saved = np.array([inside(x * saving[index]) for x in ends])
            self._saved[name] = self._saved[name] + saved if name in self._saved else saved
        over = (np.maximum(0.0, c.exposed - x) for x in (c.explained, c.explained_high, c.explained_low))
        self._over = self._over + np.array([inside(x) / 2 for x in over])

    def tables(self, steps: list[dict[str, Any]], span: float) -> dict[str, Any]:
        """Groups of the ops inside, largest first, and what halving things would save; shares are of `span`."""
        layers = self._rows("layer", span)
        return {
            "families": self._rows("family", span),
            "kinds": self._rows("kind", span),
            "kernels": self._rows("kernel", span)[:_KERNELS],
            "layers": sorted(layers, key=lambda row: int(row["layer"])),
            "halving": self._halving(steps, span),
        }

    def _rows(self, column: str, span: float) -> list[dict[str, Any]]:
        names, sums = list(self._groups[column]), list(self._groups[column].values())
        order = np.argsort([-row[1] for row in sums]).tolist()
        out = []
        for i in order:
            count, busy, expected, lower, moved, timed, *spent = sums[i].tolist()
            if count:
                parts = {f"{name}_s": value for name, value in zip(SPENT, spent, strict=True)}
                out.append(
                    {
                        column: names[i],
                        "count": int(count),
                        "busy_s": busy,
                        "share": busy / span,
                        "expected_s": expected,
                        "lower_bound_s": lower,
                        **parts,
                        "bytes": moved if timed else None,
                        "bytes_per_s": moved / timed if timed else None,
                        "halving_saves_s": busy / 2,
                        "halving_saves_share": busy / 2 / span,
                    }
                )
        return out

    def _halving(self, steps: list[dict[str, Any]], span: float) -> list[dict[str, Any]]:
        """What the run would lose if one thing took half: resources by the law's own answer, idle and launches by measure.

        A resource saves of the explained time alone. A law is convex and scales with its parts, so all its rows together save
        no more than half of that, and all rows of the table no more than half of the span. `low_s` and `high_s` are the answers
        where the law is at either end of its 80 % interval for every op.
        """

        def measured(seconds: float) -> tuple[float, float, float]:
            return seconds, seconds, seconds

        rows = [(name, tuple(saved.tolist())) for name, saved in self._saved.items()]
        launch, idle = sum(s["launch_bound_s"] for s in steps), sum(s["idle_s"] for s in steps)
        rows += [
            ("launch waits", measured(launch / 2)),
            ("other idle time", measured(max(0.0, idle - launch) / 2)),
        ]
        rows += [("unexplained time", tuple(self._over.tolist()))]
        rows.sort(key=lambda r: -r[1][0])
        return [
            {"what": name, "saves_s": saves, "low_s": low, "high_s": high, "saves_share": saves / span}
            for name, (saves, low, high) in rows
        ]
