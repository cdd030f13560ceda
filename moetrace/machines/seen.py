"""What an op's size is told by, and which sizes a fit has seen: an op outside of them is priced by extrapolation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.op import FloatArray, OpColumns

# Dims as ops have them. `context` is KV tokens of each sequence, `local_experts` those of one rank (all without ep).
DIMS = (
    "tokens", "m", "n", "k", "b", "batch", "q", "context", "heads", "kv_heads", "head_dim", "hidden", "inter", "experts",
    "topk", "local_experts", "bytes", "ranks",
)  # fmt: skip
Ranges = Mapping[str, tuple[float, float]]


def sizes(ops: OpColumns) -> dict[str, FloatArray]:
    """The dims that tell ops' sizes, [ops] each; nan where an op lacks one, and none that all of them lack."""
    found = {name: ops.column(name) for name in DIMS if name in ops.dims}
    if "kv" in ops.dims and "batch" in ops.dims:
        found["context"] = ops.column("kv") / np.maximum(ops.column("batch"), 1.0)
    if "inter" in ops.dims and "experts" in ops.dims:
        local = found.get("local_experts", np.full(len(ops), np.nan))
        whole = np.isnan(local) & ~np.isnan(found["inter"])
        found["local_experts"] = np.where(whole, found["experts"], local)
    return found


def ranges(ops: OpColumns) -> dict[str, tuple[float, float]]:
    """The least and the most of each size among measured ops, which is what a fit to them has seen."""
    out = {}
    for name, values in sizes(ops).items():
        known = values[np.isfinite(values)]
        if known.size:
            out[name] = float(known.min()), float(known.max())
    return out
