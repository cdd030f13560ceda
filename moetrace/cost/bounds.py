"""What may beat a lower bound: an op whose bytes fit the cache, repeated alone, and nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace.hardware import Hardware
from moetrace.op import Costs, FloatArray, Works

BoolArray = npt.NDArray[np.bool_]


def cache_warm(works: Works, hw: Hardware) -> BoolArray:
    """Whether repeats of an op are cache-warm, [ops]: if, and only if, the bytes it touches fit the device's last-level cache.

    The bytes are those of the stated routing (`Works`: weights of the distinct experts, activations, KV); the cache is the
    datasheet's, 50 MB of L2 on H100, 40 MB on A100. What crosses links is never warm. The law's own transition is smooth
    (machines/forms); this rule is about measurements.
    """
    nbytes = np.where(works["net_bytes"] > 0, np.inf, works["bytes"])
    return np.asarray(works.known & (nbytes <= hw.memory.cache_bytes))


def fits_memory(works: Works, hw: Hardware) -> BoolArray:
    """Whether the memory of a device holds what an op touches at least, [ops].

    True on a wafer, whose memory is as large as its model needs, and of what crosses links.
    """
    if hw.law == "wafer":
        return np.ones(len(works), dtype=bool)
    return np.asarray(~((works["net_bytes"] == 0) & (works["bytes_min"] > hw.memory.capacity_bytes)))


def interval(
    costs: Costs, warm: BoolArray, seconds: FloatArray, error: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(low, high) of the 80 % interval round `seconds`, [ops].

    No lower than what no measurement can beat, but for ops that are cache-warm, and where the time itself is lower.
    """
    least = np.where(warm, 0.0, np.minimum(costs.lower_bound_s, seconds))
    return np.maximum(seconds / (1.0 + error), least), seconds * (1.0 + error)


def beats_bound(costs: Costs, warm: BoolArray, seconds: FloatArray) -> BoolArray:
    """Whether a measurement beats the lower bound with no cache to explain it, [ops]: then it did not do what its dims say."""
    return np.asarray((seconds < costs.lower_bound_s) & ~warm)
