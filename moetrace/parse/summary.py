"""What a run covers: shares of device time with a name, with bytes, with a layer; steps and families."""

from __future__ import annotations

from typing import Any

import numpy as np

from moetrace.ops import OTHER
from moetrace.parse.nesting import union_ns
from moetrace.run import Run


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
        "steps": [_step(run, s.index, step, start, dur) for s in run.meta.steps],
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


def _step(run: Run, index: int, step: Any, start: Any, dur: Any) -> dict[str, Any]:
    known = next(s for s in run.meta.steps if s.index == index)
    at = step == index
    busy, span = union_ns(start[at], start[at] + dur[at]), known.end_ns - known.start_ns
    return {
        "index": index,
        "name": known.name,
        "phase": known.phase,
        "batch": known.batch,
        "tokens": known.tokens,
        "kv_tokens": known.kv_tokens,
        "ops": int(at.sum()),
        "span_s": span / 1e9,
        "busy_s": busy / 1e9,
        "idle_share": 1 - busy / span if span else 0.0,
    }


def _families(run: Run, inside: Any, dur: Any, total: int) -> list[dict[str, Any]]:
    code, names = run.codes("family")
    busy = np.bincount(code[inside], weights=dur[inside], minlength=len(names))
    count = np.bincount(code[inside], minlength=len(names))
    flops, moved = (run.numpy(c, 0.0) for c in ("flops", "weight_bytes"))
    moved = moved + run.numpy("kv_bytes", 0.0) + run.numpy("act_bytes", 0.0)
    out = []
    for i in np.argsort(-busy).tolist():
        at = inside & (code == i)
        if count[i]:
            nbytes = float(moved[at].sum())
            out.append(
                {
                    "family": names[i],
                    "count": int(count[i]),
                    "busy_s": float(busy[i]) / 1e9,
                    "share": float(busy[i] / total),
                    "bytes": nbytes,
                    "flops": float(flops[at].sum()),
                    "bytes_per_s": nbytes / (float(busy[i]) / 1e9) if busy[i] else 0.0,
                }
            )
    return out
