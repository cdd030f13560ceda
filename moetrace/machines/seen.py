"""What an op's size is told by, and which sizes a fit has seen: an op outside of them is priced by extrapolation.

How far off that is was tried on sizes that were left out (benchmarks/score_beyond.py): what the interval of the fitted rows
lacks grows with the logarithm of the distance, by about as much whatever the size, above and below.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.op import FloatArray, OpColumns

# Dims as ops have them. `context` is KV tokens of each sequence, `local_experts` those of one rank (all without ep).
DIMS = (
    "tokens", "m", "n", "k", "b", "batch", "q", "context", "heads", "kv_heads", "head_dim", "hidden", "inter", "experts",
    "topk", "local_experts", "bytes", "ranks",
)  # fmt: skip
# Error (its logarithm), beside the fit's own, for each e-fold of distance from what it saw: with 0.08 intervals hold 81 % of
# the rows above a limit and 82 % of those below one (18 and 8 kernels on H100), without it 53 and 62 %.
FURTHER = 0.08
_TOKENS = ("tokens", "m", "batch")
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


def further(seen: Ranges, decades: int, ops: OpColumns) -> FloatArray | None:
    """The error (its logarithm) that ops have beside a fit's own for sizes that it has not seen, [ops]; None if no op has any.

    FURTHER times ln(size / the largest seen), or ln(the smallest seen / size), of several sizes the root of the sum of their
    squares. The errors of `decades` of tokens were found on rows that reach the last of these, seen by the fit or not.
    """
    squares: FloatArray | None = None
    for name, values in sizes(ops).items():
        if name not in seen:
            continue
        low, high = seen[name]
        if name in _TOKENS and decades:
            high = max(high, 10.0 ** (decades - 1))
        with np.errstate(invalid="ignore"):
            outside = (values > high) | (values < low)
        if not outside.any():
            continue
        size = np.where(outside, np.maximum(values, min(low, 1.0)), high)  # nothing is as far off as one
        distance = np.log(np.where(size > high, size / high, np.where(size < low, low / size, 1.0)))
        squares = distance**2 if squares is None else squares + distance**2
    return None if squares is None else np.asarray(FURTHER * np.sqrt(squares))


def ranges(ops: OpColumns) -> dict[str, tuple[float, float]]:
    """The least and the most of each size among measured ops, which is what a fit to them has seen."""
    out = {}
    for name, values in sizes(ops).items():
        known = values[np.isfinite(values)]
        if known.size:
            out[name] = float(known.min()), float(known.max())
    return out
