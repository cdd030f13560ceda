"""What a run covers: shares of device time with a name, with bytes, with a layer; steps and families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.ops import OTHER
from moetrace.parse.nesting import IntArray, exposed_by
from moetrace.routing import own_block
from moetrace.run import Run

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KnownWork:
    """Per row: FLOPs and bytes of memory, 0 where they are not known, and the op's seconds, 0 there too.

    A rate is the sum of one over the sum of the other: time without bytes must not thin out the bytes that are known.
    """

    flops: FloatArray
    nbytes: FloatArray
    timed_s: FloatArray


WORK_COLUMNS = ("weight_bytes", "kv_bytes", "act_bytes", "flops", "dur_ns")


def known_work(run: Run) -> KnownWork:
    """What `KnownWork` says, of a run's ops, by WORK_COLUMNS."""
    weights = run.numpy("weight_bytes", np.nan)
    known = ~np.isnan(weights)
    nbytes = np.nan_to_num(weights) + run.numpy("kv_bytes", 0.0) + run.numpy("act_bytes", 0.0)
    return KnownWork(run.numpy("flops", 0.0), nbytes, known * run.numpy("dur_ns") / 1e9)


_COLUMNS = (
    "step", "device", "layer", "kind", "family", "kernel", "start_ns", "dur_ns", "flops", "weight_bytes", "kv_bytes",
    "act_bytes", "rank",
)  # fmt: skip


def summary(run: Run, top: int = 5) -> dict[str, Any]:
    """A JSON-able summary, headed by its coverage: shares of the device time of the steps, the top unnamed kernels."""
    sums = _Sums(run)
    for part in run.parts(_COLUMNS):
        sums.add(part)
    total = max(1, sums.total)
    return {
        "schema": "moetrace.parse/1",
        "run": _facts(run),
        "coverage": {
            "named_share": sums.named / total,
            "bytes_share": sums.with_bytes / total,
            "layer_share": sums.in_layers / total,
            "unnamed": _top_kernels(sums.unnamed, total, top),
            "without_bytes": _top_kernels(sums.without_bytes, total, top),
        },
        "layers": len(sums.layers),
        "steps": sums.steps(),
        "families": _families(sums.families, total),
        "notes": [*run.meta.notes, *([MANY_NAMES] if sums.shortened else [])],
    }


class _Sums:
    """What the summary adds up, part by part; a part holds whole steps. Times are ns."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.total = self.named = self.with_bytes = self.in_layers = 0
        self.layers: set[int] = set()
        self._ranks: set[int] = set()
        self.unnamed: dict[str, FloatArray] = {}  # kernel -> time, count
        self.without_bytes: dict[str, FloatArray] = {}
        # Family -> count, seconds, FLOPs, bytes, seconds with bytes known.
        self.families: dict[str, FloatArray] = {}
        self.shortened = False  # whether sums by kernel were left out
        size = max([s.index for s in run.meta.steps], default=-1) + 1
        self._ops, self._busy = np.zeros(size, np.int64), np.zeros(size)

    def add(self, part: Run) -> None:
        """A part of the run."""
        step, dur, start = part.numpy("step").astype(np.int64), part.numpy("dur_ns"), part.numpy("start_ns")
        inside = step >= 0
        kind, kinds = part.codes("kind")
        named = kind != (kinds.index(OTHER) if OTHER in kinds else -2)
        has_bytes = ~np.isnan(part.numpy("weight_bytes", np.nan))
        layer = part.numpy("layer")
        self._ranks |= set(np.unique(part.numpy("rank")).tolist())
        self.total += int(dur[inside].sum())
        self.named += int(dur[inside & named].sum())
        self.with_bytes += int(dur[inside & has_bytes].sum())
        self.in_layers += int(dur[inside & (layer >= 0)].sum())
        self.layers |= set(np.unique(layer[inside & (layer >= 0)]).tolist())
        kernel, kernels = part.codes("kernel")
        self.shortened |= _add(self.unnamed, kernel, kernels, inside & ~named, (dur,))
        self.shortened |= _add(self.without_bytes, kernel, kernels, inside & ~has_bytes, (dur,))
        family, families = part.codes("family")
        work = known_work(part)
        _add(self.families, family, families, inside, (dur / 1e9, work.flops, work.nbytes, work.timed_s))
        group, devices = step_and_device(part)
        alone, _ = exposed_by(group, start, start + dur)
        known = inside & (step < len(self._ops))
        self._ops += np.bincount(step[known], minlength=len(self._ops))
        busy = np.bincount(step[known], weights=alone[known], minlength=len(self._ops))
        self._busy += busy / devices_of_steps(group, len(devices), len(self._ops))[: len(self._ops)]

    def steps(self) -> list[dict[str, Any]]:
        """Facts of each step; busy time is the union of its ops on a device, as a mean over its devices.

        `distinct_experts` by layer, where the step's routing was recorded: those of the rank where they were counted on its
        own experts, else all that its recorded tokens chose.
        """
        distinct: dict[int, dict[str, int]] = {}
        if self._run.routing is not None:
            meta, routing = self._run.meta, self._run.routing
            own = meta.own_experts and len(self._ranks) == 1
            ep = meta.ep if own else 1
            block = own_block(next(iter(self._ranks)), ep) if own else 0
            for (step, layer), found in routing.by_rank(ep).items():
                distinct.setdefault(step, {})[str(layer)] = int(found.distinct[block])
        return [
            {
                "index": s.index,
                "name": s.name,
                "phase": s.phase,
                "batch": s.batch,
                "tokens": s.tokens,
                "kv_tokens": s.kv_tokens,
                **({"padded_tokens": s.padded_tokens} if s.padded_tokens else {}),
                "ops": int(self._ops[s.index]),
                "span_s": (s.end_ns - s.start_ns) / 1e9,
                "busy_s": float(self._busy[s.index]) / 1e9,
                "idle_share": 1 - float(self._busy[s.index]) / (s.end_ns - s.start_ns)
                if s.end_ns > s.start_ns
                else 0.0,
                **({"distinct_experts": distinct[s.index]} if s.index in distinct else {}),
            }
            for s in self._run.meta.steps
        ]


_MOST = 1 << 12  # names whose sums are kept: a trace has more only where names are numbered
MANY_NAMES = (
    f"more than {2 * _MOST:,} kernels by name: what is said of one kernel may lack ops, as only the {_MOST:,} longest are kept "
    "while the trace is gone through; all other sums are of all ops"
)


def keep_longest(sums: dict[Any, FloatArray], time: int) -> bool:
    """Leaves the 4,096 with the longest time (its place in each one's sums) once there are more than twice as many.

    Whether it left some out.
    """
    if len(sums) <= 2 * _MOST:
        return False
    names = list(sums)
    order = np.argsort([-row[time] for row in sums.values()], kind="stable")
    for i in order[_MOST:].tolist():
        del sums[names[i]]
    return True


def _add(
    sums: dict[str, FloatArray], code: IntArray, names: list[str], which: Any, values: tuple[Any, ...]
) -> bool:
    """Adds the count and the values of the rows chosen, by name of their code (none for -1); whether names were left out."""
    at = which & (code >= 0)
    size = len(names)
    totals = [np.bincount(code[at], weights=v[at], minlength=size) for v in values]
    for i, row in enumerate(np.array([np.bincount(code[at], minlength=size), *totals], dtype=np.float64).T):
        if row[0]:
            # A copy: a view would keep the sums of all names of the part while one is among the longest.
            sums[names[i]] = sums[names[i]] + row if names[i] in sums else row.copy()
    return keep_longest(sums, 1)


def _facts(run: Run) -> dict[str, Any]:
    meta = run.meta
    return {
        "source": meta.source,
        "kind": meta.kind,
        "model": meta.model.name if meta.model else None,
        "model_source": meta.model_source,
        "device": meta.device,
        "device_class": meta.device_class,
        "hardware": meta.hardware,
        "gpus": meta.gpus,
        "tp": meta.tp,
        "ep": meta.ep,
        "engine": meta.engine,
        "routing": meta.routing,
        "native_layers": meta.native_layers,
        "ops": run.num_rows,
        **dict(meta.facts),
    }


def _top_kernels(sums: dict[str, FloatArray], total: int, top: int) -> list[dict[str, Any]]:
    order = np.argsort([-row[1] for row in sums.values()])[:top].tolist()
    rows = [(name, *row.tolist()) for name, row in sums.items()]
    return [
        {
            "kernel": rows[i][0],
            "busy_s": rows[i][2] / 1e9,
            "share": rows[i][2] / total,
            "count": int(rows[i][1]),
        }
        for i in order
        if rows[i][1]
    ]


def step_and_device(run: Run) -> tuple[IntArray, IntArray]:
    """(code of the step and the device of each row, the devices): devices work and idle each for itself.

    The code is ``(step + 1) * devices + place of the device``, so that rows outside of every step have codes of their own.
    """
    devices, place = np.unique(run.numpy("device").astype(np.int64), return_inverse=True)
    return (run.numpy("step").astype(np.int64) + 1) * len(devices) + place.reshape(-1), devices


def devices_of_steps(group: IntArray, devices: int, steps: int) -> IntArray:
    """Number of devices that each step has ops on, at least 1, from the codes of `step_and_device`."""
    used = np.unique(group) // max(1, devices) - 1
    return np.maximum(1, np.bincount(used[used >= 0], minlength=steps))


def _families(sums: dict[str, FloatArray], total: int) -> list[dict[str, Any]]:
    rows = [(name, *row.tolist()) for name, row in sums.items()]
    return [
        {
            "family": name,
            "count": int(count),
            "busy_s": busy,
            "share": busy / (total / 1e9),
            "bytes_share": timed / busy if busy else 0.0,
            "bytes": moved if timed else None,
            "flops": flops if timed else None,
            "bytes_per_s": moved / timed if timed else None,
        }
        for name, count, busy, flops, moved, timed in (
            rows[i] for i in np.argsort([-row[2] for row in rows]).tolist()
        )
        if count
    ]
