"""The attribution in a page: steps, phases, families, layers, what halving each thing buys, what looks wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.attribute.groups import Columns, tables
from moetrace.hardware import Hardware
from moetrace.parse.nesting import exposed_by
from moetrace.parse.summary import summary as coverage_of
from moetrace.run import Run, Step, codes_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_TOP = 10


def summarise(
    run: Run,
    hardware: Hardware,
    table: pa.Table,
    halved: Mapping[str, FloatArray],
    index: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """The summary dict of an attribution (JSON-able; its schema is named in it)."""
    c = Columns(run, table)
    communication = _communication(run, c)
    # What another machine would need says nothing of what the time was spent on here.
    at_home = run.meta.hardware in (None, hardware.name)
    steps = _steps(run, c, communication, at_home)
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
        "between_steps": _between_all(run.meta.steps, steps),
        "devices": _devices(c, steps, communication),
        "phases": _phases(c, steps, halved, index),
        **tables(c, steps, halved, index, span),
        "flags": _flags(c, table),
        "notes": _notes(run, hardware, len(c.devices)),
    }


def _steps(run: Run, c: Columns, comm: tuple[FloatArray, FloatArray], at_home: bool) -> list[dict[str, Any]]:
    count = max([s.index for s in run.meta.steps], default=-1) + 1
    between = _between(run.meta.steps)

    def total(values: FloatArray) -> FloatArray:
        return c.total(c.step, values, count)

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
                "between_steps_s": between[i],
                "busy_s": float(busy[i]),
                "idle_s": idle,
                "idle_share": idle / span if span else 0.0,
                "communication_s": float(communication[i]),
                "exposed_communication_s": float(exposed_communication[i]),
                "launch_bound_s": float(launch[i]),
                "expected_s": float(expected[i]),
                "lower_bound_s": float(lower[i]),
                "unpriced_s": float(unknown[i]),
                "critical": max(weights, key=lambda k: weights[k]) if at_home else None,
                **{f"{name}_s": value for name, value in parts.items()},
            }
        )
    return out


def _between(steps: Sequence[Step]) -> dict[int, float | None]:
    """Seconds from the end of the steps before to the start of each, by index; None for the first, 0 where they overlap."""
    out: dict[int, float | None] = {}
    reach: int | None = None
    for s in sorted(steps, key=lambda s: s.start_ns):
        out[s.index] = None if reach is None else max(0, s.start_ns - reach) / 1e9
        reach = s.end_ns if reach is None else max(reach, s.end_ns)
    return out


def _between_all(known: Sequence[Step], steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Time in no step: its sum, its median, and its share of the time from the first step's start to the last one's end."""
    gaps = [s["between_steps_s"] for s in steps if s["between_steps_s"] is not None]
    whole = max((s.end_ns for s in known), default=0) - min((s.start_ns for s in known), default=0)
    return {
        "total_s": sum(gaps),
        "median_s": _median(gaps),
        "share": sum(gaps) / (whole / 1e9) if whole else 0.0,
    }


def _devices(
    c: Columns, steps: list[dict[str, Any]], comm: tuple[FloatArray, FloatArray]
) -> list[dict[str, Any]]:
    """Each device's own times, over the steps that it takes part in; idle is what it leaves of the span of these."""
    size, at = len(c.devices), c.inside
    spans = np.zeros(int(c.step.max(initial=0)) + 1)
    for s in steps:
        if s["index"] < len(spans):
            spans[s["index"]] = s["span_s"]
    used = np.unique(c.group[at])
    span = np.bincount(used % max(1, size), weights=spans[used // max(1, size) - 1], minlength=size)
    place = c.group[at] % max(1, size)
    busy, time, exposed = (np.bincount(place, v[at], minlength=size) for v in (c.exposed, *comm))
    return [
        {
            "device": int(device),
            "span_s": float(span[i]),
            "busy_s": float(busy[i]),
            "idle_s": max(0.0, float(span[i] - busy[i])),
            "idle_share": max(0.0, 1 - float(busy[i] / span[i])) if span[i] else 0.0,
            "communication_s": float(time[i]),
            "exposed_communication_s": float(exposed[i]),
        }
        for i, device in enumerate(c.devices.tolist())
        if span[i]
    ]


def _communication(run: Run, c: Columns) -> tuple[FloatArray, FloatArray]:
    """(time of collectives, what of it no other op of their device hides), per row."""
    family, names = codes_of(c.table.column("family"))
    comm = family == (names.index("communication") if "communication" in names else -2)
    time = np.zeros(len(c.dur))
    if not comm.any():
        return time, time
    start = run.numpy("start_ns")
    end = start + run.numpy("dur_ns")
    used, group = np.unique(c.group, return_inverse=True)
    group = group.reshape(-1)
    # Busy time with and without the collectives: the difference is what they expose. Charged to the ops group by group.
    time[comm] = exposed_by(group[comm], start[comm], end[comm])[0] / 1e9
    others = exposed_by(group[~comm], start[~comm], end[~comm])[0] / 1e9
    with_all = np.bincount(group, weights=c.exposed, minlength=len(used))
    without = np.bincount(group[~comm], weights=others, minlength=len(used))
    alone = np.bincount(group, weights=time, minlength=len(used))
    scale = np.divide(with_all - without, alone, out=np.zeros(len(used)), where=alone > 0)
    return time, time * scale[group]


_MEDIANS = (
    "span_s",
    "between_steps_s",
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


def _median(values: Sequence[float | None]) -> float | None:
    """The median of those that are known, None without any."""
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _phases(
    c: Columns,
    steps: list[dict[str, Any]],
    halved: Mapping[str, FloatArray],
    index: npt.NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """Medians over the steps of each phase, and their families and halvings; the commonest critical resource."""
    out: dict[str, dict[str, Any]] = {}
    for phase in dict.fromkeys(s["phase"] or "unknown" for s in steps):
        mine = [s for s in steps if (s["phase"] or "unknown") == phase]
        criticals = [s["critical"] for s in mine]
        here = c.only([s["index"] for s in mine])
        span = sum(s["span_s"] for s in mine) or 1.0
        out[phase] = {
            "steps": len(mine),
            "critical": max(set(criticals), key=criticals.count),
            **{name: _median([s[name] for s in mine]) for name in _MEDIANS},
            **tables(here, mine, halved, index, span),
        }
    return out


def _flags(c: Columns, table: pa.Table) -> dict[str, Any]:
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


def _notes(run: Run, hardware: Hardware, devices: int) -> list[str]:
    notes = list(run.meta.notes)
    if devices > 1:
        notes.append(
            f"{devices} devices: times, bytes and shares are means over the devices of each step, counts are of all; layers "
            "told by the order of kernels are not to be trusted"
        )
    if run.meta.hardware is None:
        notes.append(f"the trace does not say what it ran on: held against {hardware.name} as asked")
    elif run.meta.hardware != hardware.name:
        notes.append(
            f"it ran on {run.meta.hardware}, not on {hardware.name}: flags and unexplained time compare two machines"
        )
    return notes
