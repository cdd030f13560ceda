"""What the forms of tiled kernels share: how many turns of the processors a number of tiles takes, and what lies in cache."""

from __future__ import annotations

import numpy as np

from moetrace.machines.forms.base import Setting
from moetrace.op import FloatArray, Works

_RAMP = 0.15  # of a turn: within it the next turn fills, so that the count is continuous in processors
# Of the cache: bytes up to the first share stay, beyond the second none do. Of caches in pages, which are scattered, the sets
# that a processor reads fill less evenly (inferred: GEMMs' weights fit the former, attention and MLA the latter).
_WHOLE, PAGED = (0.65, 0.85), (0.6, 1.0)


def waves(turns: FloatArray, ramp: float = _RAMP) -> FloatArray:
    """Turns of the processors as whole ones, at least one: tiles over processors, rounded up over a short ramp.

    Never falls as `turns` grow; at a whole number it is that number.
    """
    whole = np.floor(turns)
    return np.asarray(np.maximum(1.0, whole + np.minimum(1.0, (turns - whole) / ramp)), dtype=np.float64)


def turns_of(tiles: FloatArray, told: float, processors: float) -> FloatArray:
    """Turns that so many tiles take: exact for the `told` processors that a kernel was set up for (0: none), elsewhere as
    `waves` has more or fewer of them."""
    found = waves(tiles / processors)
    if not told:
        return found
    return np.asarray(np.maximum(1.0, np.ceil(tiles / told)) * found / waves(tiles / told))


def together(turns: FloatArray, at_once: FloatArray | float, beside: FloatArray | float) -> FloatArray:
    """Turns in the time of a tile alone, where up to `at_once` run on a processor and each but the first adds `beside`."""
    groups, rest = np.divmod(turns, at_once)
    more = np.minimum(rest, 1.0) + np.maximum(rest - 1.0, 0.0) * beside
    return np.asarray(groups * (1.0 + (at_once - 1.0) * beside) + more)


def from_memory(
    nbytes: FloatArray, cached: float, at: Setting, within: tuple[float, float] = _WHOLE
) -> FloatArray:
    """Of the time that `nbytes` take from memory, what they take: `cached` for those that a warm cache holds, else 1."""
    if at.cache == "cold":
        return np.ones_like(nbytes)
    return np.asarray(cached + (1.0 - cached) * beyond_cache(nbytes, at, within), dtype=np.float64)


def beyond_cache(nbytes: FloatArray, at: Setting, within: tuple[float, float] = _WHOLE) -> FloatArray:
    """Of `nbytes` that one call reads twice, the share that it reads from memory again: none where the cache holds them all."""
    if not at.hw.memory.cache_bytes:
        return np.ones_like(nbytes)
    beyond = (nbytes / at.hw.memory.cache_bytes - within[0]) / (within[1] - within[0])
    return np.asarray(np.clip(beyond, 0.0, 1.0), dtype=np.float64)


def unawaited(works: Works, at: Setting) -> FloatArray | float:
    """Bytes of results that no call of a benchmark waits for: they are written back beside the next one's start."""
    return 0.0 if at.cache == "cold" else works["act_write_bytes"]


def filled(nbytes: FloatArray, at: Setting) -> FloatArray:
    """Of the bytes in pages that stay in the last-level cache, how many `nbytes` are, at most all: 1."""
    stay = PAGED[0] * at.hw.memory.cache_bytes
    return np.asarray(np.minimum(1.0, nbytes / stay) if stay else np.ones_like(nbytes), dtype=np.float64)
