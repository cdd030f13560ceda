"""What the forms of tiled kernels share: how many turns of the processors a number of tiles takes, and what lies in cache."""

from __future__ import annotations

import numpy as np

from moetrace.machines.forms.base import Setting
from moetrace.op import FloatArray

_RAMP = 0.15  # of a turn: within it the next turn fills, so that the count is continuous in processors
_RESIDENT = 0.7  # of the cache: bytes up to this share stay, beyond the whole of it none do


def waves(turns: FloatArray) -> FloatArray:
    """Turns of the processors as whole ones, at least one: tiles over processors, rounded up over a short ramp.

    Never falls as `turns` grow; at a whole number it is that number.
    """
    whole = np.floor(turns)
    return np.asarray(np.maximum(1.0, whole + np.minimum(1.0, (turns - whole) / _RAMP)), dtype=np.float64)


def from_memory(nbytes: FloatArray, cached: float, at: Setting) -> FloatArray:
    """Of the time that `nbytes` take from memory, what they take: `cached` for those that a warm cache holds, else 1."""
    if at.cache == "cold" or not at.hw.memory.cache_bytes:
        return np.ones_like(nbytes)
    beyond = (nbytes / at.hw.memory.cache_bytes - _RESIDENT) / (1.0 - _RESIDENT)
    return np.asarray(cached + (1.0 - cached) * np.clip(beyond, 0.0, 1.0), dtype=np.float64)


def shared_out(
    whole_s: FloatArray, shared_s: FloatArray, cost_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(serial seconds, seconds paid for sharing) of tiles whose loop takes `whole_s`, or `shared_s` over idle ones at a cost.

    Shared once that saves its cost, over a ramp until it saves twice as much: no step, and no say of memory or peaks in it.
    """
    saved = whole_s - shared_s - cost_s
    share = np.clip(np.divide(saved, cost_s, out=np.sign(saved), where=cost_s > 0), 0.0, 1.0)
    return whole_s - share * (whole_s - shared_s), share * cost_s
