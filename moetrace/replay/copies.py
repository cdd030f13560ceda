"""How far a layer's time is from that of another of its kind: the error of layers that were not recorded but copied."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace.replay.draft import EXPERTS, Draft

FloatArray = npt.NDArray[np.float64]

# Fewer recorded layers of a kind than this say nothing of how layers differ, and an error is assumed.
ENOUGH = 3
ASSUMED_ERROR = 0.1
_QUANTILE = 0.8  # errors are such that 80 % of outcomes lie within them


def copy_error(draft: Draft) -> tuple[FloatArray, str | None]:
    """The error of each cell that repeats another layer, 0 for recorded ones, shape [cells]; and a sentence on it, or None.

    The spread of the recorded layers of its kind, each step's apart, where there are three; else assumed.
    """
    layer, source = (np.array(x) for x in zip(*((at.layer, at.source_layer) for at in draft.at), strict=True))
    copied = layer != source
    if not copied.any():
        return np.zeros(copied.size), None
    kinds = layer_kinds(draft)
    spread = {kind: _spread(draft, np.flatnonzero(kinds == kind)) for kind in np.unique(kinds).tolist()}
    of_layer = np.array([ASSUMED_ERROR if spread[k] is None else spread[k] for k in kinds.tolist()])
    used = {spread[k] for k in kinds[np.unique(source[copied])].tolist()}
    measured = [error for error in used if error is not None]
    said = [f"{100 * max(measured):.1f} %, the spread between recorded layers of a kind"] if measured else []
    if None in used:
        said.append(
            f"{100 * ASSUMED_ERROR:.0f} %, assumed, as fewer than {ENOUGH} layers of a kind were recorded"
        )
    note = f"layers that repeat a recorded one are taken to differ from it by up to {' or '.join(said)}"
    return np.where(copied, of_layer[np.maximum(source, 0)], 0.0), note


def layer_kinds(draft: Draft) -> npt.NDArray[np.int64]:
    """The kind of each recorded layer as a number: dense or MoE, full, sliding-window or linear attention."""
    depth, model = int(draft.base.layer.max()) + 1, draft.model
    moe = {
        at.source_layer for op, at in zip(draft.origin, draft.at, strict=True) if op and op.kind in EXPERTS
    }
    return np.array(
        [
            4 * model.is_linear(i) + 2 * model.is_moe(i) + (model.window(i) > 0)
            if model and i < model.layers
            else 2 * (i in moe)
            for i in range(depth)
        ],
        dtype=np.int64,
    )


def _spread(draft: Draft, layers: npt.NDArray[np.int64]) -> float | None:
    """The error within which 80 % of these recorded layers lie of the median one; None if there are too few."""
    if layers.size < ENOUGH:
        return None
    base, depth = draft.base, int(draft.base.layer.max()) + 1
    inside = base.layer >= 0
    total = np.bincount(
        base.segment[inside] * depth + base.layer[inside], base.dur[inside], (base.segment.max() + 1) * depth
    )
    times = total.reshape(-1, depth)[:, layers]
    times = times[(times > 0).all(axis=1)]
    if not times.size:
        return None
    off = np.abs(np.log(times / np.median(times, axis=1, keepdims=True)))
    return float(np.expm1(np.quantile(off, _QUANTILE)))
