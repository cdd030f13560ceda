"""What merging the parts of sequences takes in attention's kernels. Why: `attention`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moetrace.machines.forms.attention_tiles import WIDTH, Cut, Tiles
from moetrace.machines.forms.base import smoothmax
from moetrace.op import FloatArray, Works

# Of FlashAttention-3's kernel that merges: the least parts that it is compiled for, the most of a sequence's tiles that are
# parts, and the share of them that is enough; p of idle rows that are on a processor together; and of the tiles that fill the
# processors, the share (0.8 of these) from which on it is not launched.
_HELD, _BESIDE, _FILLED = (32.0, 128.0, 0.85), 3.0, 0.88
_PASSED = 0.5  # of a part's share of merging, what one that lies beyond a window takes


def merging(
    c: Mapping[str, float], works: Works, tile: Tiles, cut: Cut, anew: npt.NDArray[np.bool_],
    processors: float,
) -> FloatArray:  # fmt: skip
    """Seconds of merging the parts of sequences, [ops], of a kernel that cuts them whatever it costs."""
    passed = 0.0 if c["skips"] else _PASSED * (cut.count - cut.inside)
    parts = np.where(anew, cut.inside + passed, cut.count if c["whole_tiles"] else tile.parts)
    walk_s = c["per_split_s"] * parts
    # A thread block that ends a sequence's last part merges it, while others of its processor's wait.
    turn_s = c["merge_s"] * tile.count / processors * tile.wide / WIDTH
    tile_s = np.where(anew & cut.any, turn_s, 0.0)
    if c["merged_rows"]:
        walk_s = walk_s + _idle(c, works, tile, parts, processors)
        launched = (tile.blocks > c["whole_blocks"]) & (_own(works, tile) < _FILLED * c["whole_tiles"])
        tile_s = np.where(launched, c["merge_s"] * _merged(c, works)[0] / processors, 0.0)
    wait_s = np.where(anew | cut.dealt, c["split_s"], 0.0) + walk_s
    left_s = c["partial_s"] * (cut.left if c["whole_tiles"] else tile.left * cut.count) / processors
    return np.asarray(np.where(cut.any & (tile.parts > 1.0), wait_s + left_s, 0.0) + tile_s)


def _own(works: Works, tile: Tiles) -> FloatArray:
    """Tiles of one sequence."""
    return np.asarray(tile.count / np.maximum(works.dim("batch"), 1.0))


def _merged(c: Mapping[str, float], works: Works) -> tuple[FloatArray, FloatArray]:
    """(tiles of rows that FlashAttention-3's kernel merges, rows of these that are empty)."""
    batch = np.maximum(works.dim("batch"), 1.0)
    rows = works.dim("heads") * np.maximum(works.dim("q", 0.0), batch) / batch
    tiles = batch * np.ceil(rows / c["merged_rows"])
    return tiles, tiles * c["merged_rows"] - rows * batch


def _idle(
    c: Mapping[str, float], works: Works, tile: Tiles, there: FloatArray, processors: float
) -> FloatArray:
    """What empty rows walk longer than full ones: as many parts as a merge was compiled for, not those there are."""
    _, empty = _merged(c, works)
    most = _HELD[2] * np.minimum(_HELD[1] / _own(works, tile), tile.blocks)
    held = 2.0 ** np.ceil(np.log2(np.maximum(_HELD[0], most)))
    together = smoothmax(_BESIDE, np.ones_like(empty), empty / processors)
    return np.asarray(np.where(empty > 0, c["idle_s"] * np.maximum(0.0, held - there) * together, 0.0))
