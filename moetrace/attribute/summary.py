"""The attribution in a page: steps, phases, families, layers, what halving each thing buys, what looks wrong."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.hardware import Hardware
from moetrace.op import PARTS
from moetrace.parse.nesting import exposed_by
from moetrace.parse.summary import summary as coverage_of
from moetrace.run import Run, codes_of

FloatArray = npt.NDArray[np.float64]
_TOP = 10
_KERNELS = 100


class _Columns:
    """The attribution table as numpy, nulls as zero (costs) or -1 (step, layer)."""

    def __init__(self, run: Run, table: pa.Table) -> None:
        self.table = table
        self.step = self._of("step", -1)
        self.layer = self._of("layer", -1)
        self.inside = self.step >= 0
        self.dur = self._of("dur_ns", 0) / 1e9
        self.exposed = self._of("exposed_ns", 0) / 1e9
        self.gap = self._of("gap_ns", 0) / 1e9
        self.launch = np.maximum(0, self._of("launch_ns", 0)) / 1e9
        self.known = ~np.isnan(self._of("expected_s", np.nan))
        self.expected, self.lower = self._of("expected_s", 0.0), self._of("lower_bound_s", 0.0)
        self.spent = self._split()
        self.moved = sum(
            (run.numpy(f"{what}_bytes", 0.0) for what in ("weight", "kv", "act")), np.zeros(len(self.dur))
        )

    def codes(self, column: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """(group per row, -1 for none; the groups' names)."""
        if column == "layer":
            layer = self.layer.astype(np.int64)
            return layer, list(range(int(layer.max(initial=-1)) + 1))
        return codes_of(self.table.column(column))

    def only(self, steps: list[int]) -> _Columns:
        """The same columns, with only these steps taken as inside."""
        other = copy(self)
        other.inside = self.inside & np.isin(self.step, steps)
        return other

    def _of(self, name: str, null: float) -> Any:
        return np.asarray(pc.fill_null(self.table.column(name), null).to_numpy())

    def _split(self) -> dict[str, FloatArray]:
        """The exposed time of each op dealt out: to its parts in proportion, up to what the law expects; the rest stays.

        Where the law expects more than was measured, the parts are scaled down to the measured time and nothing remains.
        """
        parts = np.vstack([self._of(part, 0.0) for part in PARTS])
        total = parts.sum(axis=0)
        share = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
        shown = np.where(self.dur > 0, self.exposed / np.maximum(self.dur, 1e-12), 0.0)
        explained = np.minimum(self.expected, self.dur) * shown
        spent = {name.removesuffix("_s"): share[i] * explained for i, name in enumerate(PARTS)}
        spent["unexplained"] = self.exposed - explained
        return spent


def summarise(
    run: Run,
    hardware: Hardware,
    table: pa.Table,
    halved: Mapping[str, FloatArray],
    index: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """The summary dict of an attribution (JSON-able; its schema is named in it)."""
    c = _Columns(run, table)
    steps = _steps(run, c, table)
    span = sum(s["span_s"] for s in steps) or 1.0
    facts = coverage_of(run)
    return {
        "schema": "moetrace.attribution/1",
        "hardware": hardware.name,
        "ran_on": run.meta.hardware,
        "run": facts["run"],
        "coverage": facts["coverage"],
        "layers_found": facts["layers"],
        "steps": steps,
        "phases": _phases(c, steps, halved, index),
        **_tables(c, halved, index, span),
        "flags": _flags(c, table),
        "notes": _notes(run, hardware),
    }


def _steps(run: Run, c: _Columns, table: pa.Table) -> list[dict[str, Any]]:
    count = max([s.index for s in run.meta.steps], default=-1) + 1
    comm = _communication(run, c)

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(c.step[c.inside], weights=values[c.inside], minlength=count).astype(np.float64)

    busy, launch = total(c.exposed), total(np.minimum(c.launch, c.gap))
    spent = {name: total(values) for name, values in c.spent.items()}
    expected, lower, unknown = total(c.expected), total(c.lower), total(c.dur * ~c.known)
    communication, exposed_communication = total(comm[0]), total(comm[1])
    out = []
    for s in run.meta.steps:
        i, span = s.index, (s.end_ns - s.start_ns) / 1e9
        idle = max(0.0, span - float(busy[i]))
        parts = {name: float(values[i]) for name, values in spent.items()}
        weights = {**parts, "launch": float(launch[i]), "idle": max(0.0, idle - float(launch[i]))}
        out.append(
            {
                "index": i,
                "name": s.name,
                "phase": s.phase,
                "batch": s.batch,
                "tokens": s.tokens,
                "kv_tokens": s.kv_tokens,
                "span_s": span,
                "busy_s": float(busy[i]),
                "idle_s": idle,
                "idle_share": idle / span if span else 0.0,
                "communication_s": float(communication[i]),
                "exposed_communication_s": float(exposed_communication[i]),
                "launch_bound_s": float(launch[i]),
                "expected_s": float(expected[i]),
                "lower_bound_s": float(lower[i]),
                "unpriced_s": float(unknown[i]),
                "critical": max(weights, key=lambda k: weights[k]),
                **{f"{name}_s": value for name, value in parts.items()},
            }
        )
    return out


def _communication(run: Run, c: _Columns) -> tuple[FloatArray, FloatArray]:
    """(time of collectives, what of it no other op hides), per row."""
    family, names = codes_of(c.table.column("family"))
    comm = family == (names.index("communication") if "communication" in names else -2)
    zero = np.zeros(len(c.dur))
    if not comm.any():
        return zero, zero
    start = run.numpy("start_ns")
    end = start + run.numpy("dur_ns")
    # Busy time with and without the collectives: the difference is what they expose. Charged to the ops step by step.
    alone, _ = exposed_by(c.step[comm], start[comm], end[comm])
    everything, _ = exposed_by(c.step, start, end)
    others, _ = exposed_by(c.step[~comm], start[~comm], end[~comm])
    with_all = np.bincount(c.step[c.inside], weights=everything[c.inside] / 1e9)
    without = np.bincount(
        c.step[~comm & c.inside], weights=others[c.inside[~comm]] / 1e9, minlength=len(with_all)
    )
    per_step = np.bincount(
        c.step[comm & c.inside], weights=alone[c.inside[comm]] / 1e9, minlength=len(with_all)
    )
    scale = np.divide(with_all - without, per_step, out=np.zeros(len(with_all)), where=per_step > 0)
    hidden = zero.copy()
    time = zero.copy()
    time[comm] = alone / 1e9
    at = comm & c.inside
    hidden[at] = time[at] * scale[c.step[at]]
    return time, hidden


def _tables(
    c: _Columns, halved: Mapping[str, FloatArray], index: npt.NDArray[np.int64], span: float
) -> dict[str, Any]:
    """Groups of the ops inside, largest first, and what halving things would save; shares are of `span`."""
    return {
        "families": _groups(c, "family", span),
        "kinds": _groups(c, "kind", span),
        "kernels": _groups(c, "kernel", span)[:_KERNELS],
        "layers": sorted(_groups(c, "layer", span), key=lambda row: int(row["layer"])),
        "halving": _halving(c, halved, index, span),
    }


_MEDIANS = (
    "span_s",
    "busy_s",
    "idle_s",
    "launch_bound_s",
    "communication_s",
    "exposed_communication_s",
    "memory_s",
    "compute_s",
    "network_s",
    "fixed_s",
    "unexplained_s",
    "expected_s",
    "lower_bound_s",
    "unpriced_s",
)


def _phases(
    c: _Columns,
    steps: list[dict[str, Any]],
    halved: Mapping[str, FloatArray],
    index: npt.NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """Medians over the steps of each phase, and their families and halvings; the critical resource is the commonest."""
    out: dict[str, dict[str, Any]] = {}
    for phase in dict.fromkeys(s["phase"] or "unknown" for s in steps):
        mine = [s for s in steps if (s["phase"] or "unknown") == phase]
        criticals = [s["critical"] for s in mine]
        here = c.only([s["index"] for s in mine])
        span = sum(s["span_s"] for s in mine) or 1.0
        out[phase] = {
            "steps": len(mine),
            "critical": max(set(criticals), key=criticals.count),
            **{name: float(np.median([s[name] for s in mine])) for name in _MEDIANS},
            **_tables(here, halved, index, span),
        }
    return out


def _groups(c: _Columns, column: str, span: float) -> list[dict[str, Any]]:
    code, names = c.codes(column)
    at = c.inside & (code >= 0)
    code, size = code[at], len(names)

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(code, weights=values[at], minlength=size).astype(np.float64)

    busy, expected, lower = total(c.exposed), total(c.expected), total(c.lower)
    moved, timed = total(np.where(c.known, c.moved, 0.0)), total(c.dur * c.known)
    count = np.bincount(code, minlength=size)
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
            "bytes": float(moved[i]),
            "bytes_per_s": float(moved[i] / timed[i]) if timed[i] else None,
            "halving_saves_s": float(busy[i]) / 2,
            "halving_saves_share": float(busy[i]) / 2 / span,
        }
        for i in np.argsort(-busy).tolist()
        if count[i]
    ]


def _halving(
    c: _Columns, halved: Mapping[str, FloatArray], index: npt.NDArray[np.int64], span: float
) -> list[dict[str, Any]]:
    """What the run would lose if one thing took half: resources by the law's own answer, idle and launches by measure."""
    rows = [(name, float((c.exposed * saving[index])[c.inside].sum())) for name, saving in halved.items()]
    launch = float(np.minimum(c.launch, c.gap)[c.inside].sum())
    idle = float(c.gap[c.inside].sum())
    rows += [("launch waits", launch / 2), ("other idle time", max(0.0, idle - launch) / 2)]
    rows += [("unexplained time", float(np.maximum(0, c.spent["unexplained"])[c.inside].sum()) / 2)]
    rows.sort(key=lambda r: -r[1])
    return [{"what": name, "saves_s": saves, "saves_share": saves / span} for name, saves in rows]


def _flags(c: _Columns, table: pa.Table) -> dict[str, Any]:
    """Counts of flagged ops and the longest of the suspects, one row per distinct op."""
    flag, names = codes_of(table.column("flag"))
    op, texts = codes_of(table.column("op"))
    out: dict[str, Any] = {name: int((flag == i).sum()) for i, name in enumerate(names)}
    for name in ("cache-resident", "suspect"):
        out.setdefault(name, 0)
        at = flag == (names.index(name) if name in names else -2)
        out[f"{name}_ops".replace("-", "_")] = [
            {
                "op": texts[i],
                "count": int((at & (op == i)).sum()),
                "measured_s": float(np.median(c.dur[at & (op == i)])),
                "lower_bound_s": float(np.median(c.lower[at & (op == i)])),
            }
            for i in np.unique(op[at])[:_TOP].tolist()
        ]
    return out


def _notes(run: Run, hardware: Hardware) -> list[str]:
    notes = list(run.meta.notes)
    if run.meta.hardware is None:
        notes.append(f"the trace does not say what it ran on: held against {hardware.name} as asked")
    elif run.meta.hardware != hardware.name:
        notes.append(
            f"it ran on {run.meta.hardware}, not on {hardware.name}: flags and unexplained time compare two machines"
        )
    return notes
