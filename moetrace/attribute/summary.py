"""The attribution in a page: steps, phases, families, layers, what halving each thing buys, what looks wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.attribute.groups import SPENT, Columns, Sums, Whole, in_pieces
from moetrace.hardware import Hardware
from moetrace.parse.nesting import exposed_by
from moetrace.parse.summary import MANY_NAMES
from moetrace.parse.summary import summary as coverage_of
from moetrace.ranks import Ranks
from moetrace.run import Run, Step, codes_of, without_nulls

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_TOP = 10
FLAGS = ("cache-resident", "suspect")


class Summary:
    """Everything that the summary of an attribution says, added up part by part; a part holds whole steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._phase_of = {s.index: s.phase or "unknown" for s in run.meta.steps}
        self._count = max(self._phase_of, default=-1) + 1
        self._all = Sums()
        self._phases = {phase: Sums() for phase in dict.fromkeys(self._phase_of.values())}
        self._steps: dict[str, FloatArray] = {}
        self._devices: dict[int, dict[str, FloatArray]] = {}
        self._by_family: dict[int, dict[str, float]] = {}  # of each device, seconds
        self._flags = _Flags()

    def add(self, part: Run, table: pa.Table, halved: Mapping[str, FloatArray], index: IntArray) -> None:
        """A part of the run and its rows of the attribution's table."""
        whole = Whole.of(part)
        comm, exposed_comm = _communication(part, table, whole.group)
        for at, c in in_pieces(part, table, whole):
            self._add(c, comm[at], exposed_comm[at], halved, index[at])

    def _add(
        self, c: Columns, comm: FloatArray, exposed_comm: FloatArray, halved: Mapping[str, FloatArray], index: IntArray
    ) -> None:  # fmt: skip
        values = {
            "busy": c.exposed, "launch": np.minimum(c.launch, c.gap), "expected": c.expected, "lower": c.lower,
            "unpriced": c.dur * ~c.known, "communication": comm, "exposed_communication": exposed_comm, **c.spent,
        }  # fmt: skip
        for name, value in values.items():
            total = c.total(c.step, value, self._count)
            self._steps[name] = self._steps[name] + total if name in self._steps else total
        self._all.add(c, halved, index)
        used = np.unique(c.step[c.inside]).tolist()
        for phase in dict.fromkeys(self._phase_of[i] for i in used):
            mine = [i for i, p in self._phase_of.items() if p == phase]
            self._phases[phase].add(c.only(mine), halved, index)
        self._add_devices(c, comm, exposed_comm)
        self._flags.add(c, c.table)

    def _add_devices(self, c: Columns, comm: FloatArray, exposed_comm: FloatArray) -> None:
        size, at = max(1, len(c.devices)), c.inside
        used, place = np.unique(c.group[at]), c.group[at] % size
        sums = [np.bincount(place, v[at], minlength=size) for v in (c.exposed, comm, exposed_comm)]
        family, names = c.codes("family")
        by_family = np.bincount(
            place * (len(names) + 1) + family[at] + 1, c.exposed[at], minlength=size * (len(names) + 1)
        ).reshape(size, -1)
        for i, device in enumerate(c.devices.tolist()):
            mine = self._devices.setdefault(device, {"steps": np.zeros(0, np.int64), "sums": np.zeros(3)})
            mine["steps"] = np.union1d(mine["steps"], used[used % size == i] // size - 1)
            mine["sums"] = mine["sums"] + np.array([s[i] for s in sums])
            spent = self._by_family.setdefault(device, {})
            for name, seconds in zip(names, by_family[i, 1:].tolist(), strict=True):
                spent[name] = spent.get(name, 0.0) + seconds

    def result(self, hardware: Hardware) -> dict[str, Any]:
        """The summary (JSON-able; its schema is named in it)."""
        run = self._run
        # What another machine would need says nothing of what the time was spent on here.
        at_home = run.meta.hardware in (None, hardware.name)
        steps = self._step_rows(at_home)
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
            "device_is": "rank" if isinstance(run, Ranks) else "device",
            "devices": self._device_rows(steps),
            "phases": self._phase_rows(steps),
            **self._all.tables(steps, span),
            "flags": self._flags.result(),
            "notes": [
                *_notes(run, hardware, len(self._devices)),
                *([MANY_NAMES] if self._all.shortened else []),
            ],
        }

    def _step_rows(self, at_home: bool) -> list[dict[str, Any]]:
        between = _between(self._run.meta.steps)
        out = []
        for s in self._run.meta.steps:
            i, span = s.index, (s.end_ns - s.start_ns) / 1e9
            total = {name: float(values[i]) for name, values in self._steps.items()}
            idle = max(0.0, span - total["busy"])
            parts = {name: total[name] for name in SPENT}
            weights = {**parts, "launch": total["launch"], "idle": max(0.0, idle - total["launch"])}
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
                    "busy_s": total["busy"],
                    "idle_s": idle,
                    "idle_share": idle / span if span else 0.0,
                    "communication_s": total["communication"],
                    "exposed_communication_s": total["exposed_communication"],
                    "launch_bound_s": total["launch"],
                    "expected_s": total["expected"],
                    "lower_bound_s": total["lower"],
                    "unpriced_s": total["unpriced"],
                    "critical": max(weights, key=lambda k: weights[k]) if at_home else None,
                    **{f"{name}_s": value for name, value in parts.items()},
                }
            )
        return out

    def _device_rows(self, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each device's own times, over the steps that it takes part in; idle is what it leaves of the span of these."""
        spans = {s["index"]: s["span_s"] for s in steps}
        out = []
        for device, mine in sorted(self._devices.items()):
            span = sum(spans.get(i, 0.0) for i in mine["steps"].tolist())
            busy, time, exposed = mine["sums"].tolist()
            if span:
                out.append(
                    {
                        "device": device,
                        "span_s": span,
                        "busy_s": busy,
                        "idle_s": max(0.0, span - busy),
                        "idle_share": max(0.0, 1 - busy / span),
                        "communication_s": time,
                        "exposed_communication_s": exposed,
                        "families": [
                            {"family": name, "busy_s": seconds, "share": seconds / span}
                            for name, seconds in sorted(
                                self._by_family[device].items(), key=lambda one: -one[1]
                            )
                            if seconds
                        ],
                    }
                )
        return out

    def _phase_rows(self, steps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Medians over the steps of each phase, and their families and halvings; the commonest critical resource."""
        out: dict[str, dict[str, Any]] = {}
        for phase, sums in self._phases.items():
            mine = [s for s in steps if (s["phase"] or "unknown") == phase]
            criticals = [s["critical"] for s in mine]
            span = sum(s["span_s"] for s in mine) or 1.0
            out[phase] = {
                "steps": len(mine),
                "critical": max(set(criticals), key=criticals.count),
                **{name: _median([s[name] for s in mine]) for name in _MEDIANS},
                **sums.tables(mine, span),
            }
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


def _communication(run: Run, table: pa.Table, group: IntArray) -> tuple[FloatArray, FloatArray]:
    """(time of collectives, what of it no other op of their device hides), per row. `group` is that of `step_and_device`."""
    family, names = codes_of(table.column("family"))
    comm = family == (names.index("communication") if "communication" in names else -2)
    time = np.zeros(table.num_rows)
    if not comm.any():
        return time, time
    start = run.numpy("start_ns")
    end = start + run.numpy("dur_ns")
    used, group = np.unique(group, return_inverse=True)
    group = group.reshape(-1)
    # Busy time with and without the collectives: the difference is what they expose. Charged to the ops group by group.
    time[comm] = exposed_by(group[comm], start[comm], end[comm])[0] / 1e9
    others = exposed_by(group[~comm], start[~comm], end[~comm])[0] / 1e9
    with_all = np.bincount(
        group, weights=without_nulls(table.column("exposed_ns"), 0) / 1e9, minlength=len(used)
    )
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


class _Flags:
    """Counts of flagged ops, and the first distinct ones of each flag with the medians of their times."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._ops: dict[str, dict[str, list[FloatArray]]] = {name: {} for name in FLAGS}

    def add(self, c: Columns, table: pa.Table) -> None:
        flag, names = codes_of(table.column("flag"))
        op, texts = codes_of(table.column("op"))
        for i, name in enumerate(names):
            at = flag == i
            self._count[name] = self._count.get(name, 0) + int(at.sum())
            found = self._ops[name]
            for code in np.unique(op[at]).tolist():
                if texts[code] in found or len(found) < _TOP:
                    rows = at & (op == code)
                    found.setdefault(texts[code], []).append(np.array([c.dur[rows], c.lower[rows]]))

    def result(self) -> dict[str, Any]:
        out: dict[str, Any] = dict(self._count)
        for name, found in self._ops.items():
            out.setdefault(name, 0)
            out[f"{name}_ops".replace("-", "_")] = [
                {
                    "op": op,
                    "count": times.shape[1],
                    "measured_s": float(np.median(times[0])),
                    "lower_bound_s": float(np.median(times[1])),
                }
                for op, times in ((op, np.concatenate(parts, axis=1)) for op, parts in found.items())
            ]
        return out


def _notes(run: Run, hardware: Hardware, devices: int) -> list[str]:
    notes, ranks = list(run.meta.notes), isinstance(run, Ranks)
    if devices > 1:
        notes.append(
            f"{devices} {'ranks' if ranks else 'devices'}: times, bytes and shares are means over those of each step, "
            f"counts are of all{'' if ranks else '; layers told by the order of kernels are not to be trusted'}"
        )
    if run.meta.hardware is None:
        notes.append(f"the trace does not say what it ran on: held against {hardware.name} as asked")
    elif run.meta.hardware != hardware.name:
        notes.append(
            f"it ran on {run.meta.hardware}, not on {hardware.name}: flags and unexplained time compare two machines"
        )
    return notes
