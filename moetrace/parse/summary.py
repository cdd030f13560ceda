"""What a run covers: shares of device time with a name, with bytes, with a layer; steps and families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.ops import OTHER
from moetrace.parse.nesting import IntArray, exposed_by
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


def known_work(run: Run) -> KnownWork:
    """What `KnownWork` says, of a run's ops."""
    weights = run.numpy("weight_bytes", np.nan)
    known = ~np.isnan(weights)
    nbytes = np.nan_to_num(weights) + run.numpy("kv_bytes", 0.0) + run.numpy("act_bytes", 0.0)
    return KnownWork(run.numpy("flops", 0.0), nbytes, known * run.numpy("dur_ns") / 1e9)


def summary(run: Run, top: int = 5) -> dict[str, Any]:
    """A JSON-able summary, headed by its coverage: shares of the device time of the steps, the top unnamed kernels."""
    step, dur, start = run.numpy("step"), run.numpy("dur_ns"), run.numpy("start_ns")
    inside = step >= 0
    kind, kinds = run.codes("kind")
    named = kind != (kinds.index(OTHER) if OTHER in kinds else -2)
    total = max(1, int(dur[inside].sum()))

    def share(which: Any) -> float:
        return float(dur[inside & which].sum() / total)

    has_bytes = ~np.isnan(run.numpy("weight_bytes", np.nan))
    layer = run.numpy("layer")
    return {
        "schema": "moetrace.parse/1",
        "run": _facts(run),
        "coverage": {
            "named_share": share(named),
            "bytes_share": share(has_bytes),
            "layer_share": share(layer >= 0),
            "unnamed": _top_kernels(run, inside & ~named, total, top),
            "without_bytes": _top_kernels(run, inside & ~has_bytes, total, top),
        },
        "layers": len(np.unique(layer[inside & (layer >= 0)])),
        "steps": _steps(run, step, start, dur),
        "families": _families(run, inside, dur, total),
        "notes": list(run.meta.notes),
    }


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


def _top_kernels(run: Run, which: Any, total: int, top: int) -> list[dict[str, Any]]:
    code, kernels = run.codes("kernel")
    dur = run.numpy("dur_ns")
    busy = np.bincount(code[which], weights=dur[which], minlength=len(kernels))
    count = np.bincount(code[which], minlength=len(kernels))
    order = [i for i in np.argsort(-busy)[:top].tolist() if count[i]]
    return [
        {
            "kernel": kernels[i],
            "busy_s": float(busy[i]) / 1e9,
            "share": float(busy[i] / total),
            "count": int(count[i]),
        }
        for i in order
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


def _steps(run: Run, step: Any, start: Any, dur: Any) -> list[dict[str, Any]]:
    """Facts of each step; busy time is the union of its ops on a device, as a mean over its devices."""
    size = max([int(step.max(initial=-1)), *(s.index for s in run.meta.steps)]) + 1
    group, devices = step_and_device(run)
    inside = step >= 0
    part, _ = exposed_by(group, start, start + dur)
    ops = np.bincount(step[inside], minlength=size)
    total = np.bincount(step[inside], weights=part[inside], minlength=size)
    busy = total / devices_of_steps(group, len(devices), size)
    return [
        {
            "index": s.index,
            "name": s.name,
            "phase": s.phase,
            "batch": s.batch,
            "tokens": s.tokens,
            "kv_tokens": s.kv_tokens,
            "ops": int(ops[s.index]),
            "span_s": (s.end_ns - s.start_ns) / 1e9,
            "busy_s": float(busy[s.index]) / 1e9,
            "idle_share": 1 - float(busy[s.index]) / (s.end_ns - s.start_ns)
            if s.end_ns > s.start_ns
            else 0.0,
        }
        for s in run.meta.steps
    ]


def _families(run: Run, inside: Any, dur: Any, total: int) -> list[dict[str, Any]]:
    code, names = run.codes("family")
    work = known_work(run)

    def by_family(values: FloatArray) -> FloatArray:
        return np.bincount(code[inside], weights=values[inside], minlength=len(names)).astype(np.float64)

    busy, flops, moved, timed = (by_family(x) for x in (dur / 1e9, work.flops, work.nbytes, work.timed_s))
    count = np.bincount(code[inside], minlength=len(names))
    return [
        {
            "family": names[i],
            "count": int(count[i]),
            "busy_s": float(busy[i]),
            "share": float(busy[i] / (total / 1e9)),
            "bytes_share": float(timed[i] / busy[i]) if busy[i] else 0.0,
            "bytes": float(moved[i]) if timed[i] else None,
            "flops": float(flops[i]) if timed[i] else None,
            "bytes_per_s": float(moved[i] / timed[i]) if timed[i] else None,
        }
        for i in np.argsort(-busy).tolist()
        if count[i]
    ]
