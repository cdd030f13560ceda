"""How attention's kernels cut ops: tiles of query rows, blocks of KV tokens, parts of a sequence. Why: `attention`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.op import FloatArray, Works

WIDTH = 128.0  # of a head, that blocks are told for
_ANY_GROUP = 1024.0  # `grouped_rows` of a library with one kernel for any number of query heads
# Of kernels that cut whatever it costs: tokens of a part at least; no more parts than the root of so many times their number.
_PART, _FEWER = 128.0, 8.0
_ENOUGH = 0.85  # of the parts that use most processors, the share that FlashAttention-3 is content with
# Queries of a sequence that TensorRT-LLM takes for drafted tokens, tiles of as many rows up to 16, then of 32 (mTileSize).
DRAFTED, _DRAFTED_ROWS = 32.0, 16.0
_PROMPT_ROWS = 128.0  # of a tile, queries, of a prompt's kernel where decoding has others
_MOST = 160.0  # tokens of a block, however narrow the head
_FIRST = 8  # sequences that tell how many parts those have that are dealt out in turn


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of attention ops, [ops] each.

    How many, rows of one, blocks that one walks, FLOPs of whole tiles and blocks over those asked for, width of a head
    (MLA's as 128), parts that its context can be cut into and its blocks, both with what lies beyond a window, bytes that
    each part leaves for the merge, the part of the last block that is empty (of a prompt's tiles, as many as reach it), the
    share of its context inside a window, and whether each query head has tiles of its own, or they are those of a prompt's
    kernel.
    """

    count: FloatArray
    rows: FloatArray
    blocks: FloatArray
    padding: FloatArray
    wide: FloatArray
    parts: FloatArray
    whole: FloatArray
    left: FloatArray
    empty: FloatArray
    inside: FloatArray
    alone: npt.NDArray[np.bool_]
    prompt: npt.NDArray[np.bool_]


def shapes(works: Works, c: Mapping[str, float]) -> Tiles:
    """How a kernel cuts attention ops: by rows of a tile, tokens of a block 128 wide, query heads that may share a KV head.

    Below `grouped_tiles` tiles and parts of them each query head has tiles of its own.
    """
    grouped_rows = c["grouped_rows"]
    lora = works.dim("kv_lora")
    mla = ~np.isnan(lora)
    wide = np.where(mla, lora + works.dim("rope"), works.dim("head_dim"))
    value = np.where(mla, lora, works.dim("v_dim", 0.0))
    value = np.where(value > 0, value, wide)
    batch, heads = np.maximum(works.dim("batch"), 1.0), works.dim("heads")
    kv_heads = np.where(mla, 1.0, works.dim("kv_heads"))
    group = heads / kv_heads
    context = np.maximum(works.dim("kv") / batch, 1.0)
    uncut = np.fmax(works.dim("context"), context)
    parts = np.maximum(1.0, np.floor(uncut / _PART))
    few = batch * kv_heads * parts < c["grouped_tiles"]
    queries = works.dim("q", 0.0)
    queries = np.where(queries > 0, queries, batch)
    # Kernels that were set up for decoding take drafted tokens too, in tiles of their own; prompts have another.
    several = (c["set_for"] > 0) & (queries > batch)
    each = queries / batch
    prompt = several & (each > DRAFTED)
    drafted_rows = np.where(each <= _DRAFTED_ROWS, _DRAFTED_ROWS, c["tile_rows"])
    tile_rows = np.where(several, np.where(prompt, _PROMPT_ROWS, drafted_rows), c["tile_rows"])
    alone = (grouped_rows < _ANY_GROUP) & ((group <= 1.0) | ~mla & ((group > grouped_rows) | few)) & ~several
    kv_heads = np.where(alone, heads, kv_heads)
    rows = heads / kv_heads * each
    shown = np.where(mla, WIDTH, np.maximum(wide, 1.0))
    most = max(_MOST, c["block_tokens"])
    block = c["block_tokens"] if c["even_blocks"] else np.minimum(most, c["block_tokens"] * WIDTH / shown)
    blocks = np.ceil(uncut / block) - np.floor((uncut - context) / block)
    # Under a causal mask a tile of a prefill walks half of the blocks.
    asked = 2.0 * heads * (wide + value) * queries * context
    seen = np.minimum(1.0, np.divide(works["flops"], asked, out=np.ones_like(asked), where=asked > 0))
    seen = np.where(seen > 0, seen, 1.0)
    row_tiles = np.ceil(rows / tile_rows)
    limit = (
        np.minimum(c["most_parts"], blocks * (_ENOUGH if c["whole_blocks"] else 1.0))
        if c["most_parts"]
        else np.minimum(parts, np.rint(np.sqrt(_FEWER * parts)))
    )
    padding = row_tiles * tile_rows / rows * np.maximum(1.0, blocks * block / context)
    return Tiles(
        count=batch * kv_heads * row_tiles * np.where(mla, c["value_tiles"], 1.0), rows=np.minimum(rows, tile_rows),
        blocks=np.maximum(1.0, blocks * seen), padding=padding, wide=shown, parts=limit,
        whole=blocks if c["most_parts"] else np.ceil(uncut / block), alone=alone,
        left=4.0 * heads * queries * value,
        empty=(np.ceil(context / block) - context / block) * np.minimum(1.0, block / each), inside=context / uncut,
        prompt=prompt,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cut:
    """What a kernel that cuts whatever it costs makes of ops, [ops] each.

    Whether it cuts, into how many parts a sequence, how many of these lie inside a window, blocks that one part walks (of a
    kernel that deals blocks out: that a processor does, and whether it did so), and bytes that all parts of one leave in
    such a kernel's cache.
    """

    any: npt.NDArray[np.bool_]
    count: FloatArray
    inside: FloatArray
    walked: FloatArray
    dealt: npt.NDArray[np.bool_]
    left: FloatArray


def cuts(
    c: Mapping[str, float],
    tile: Tiles,
    processors: float,
    anew: npt.NDArray[np.bool_],
    every: bool,
) -> Cut:
    """Where a kernel cuts whatever it costs: `anew` where it starts each part anew, `every` if it cuts all ops."""
    if c["set_for"]:
        return _anew(c, tile, anew)
    return _dealt(c, tile, processors) if c["whole_tiles"] else _even(c, tile, processors, anew | every)


def _even(c: Mapping[str, float], tile: Tiles, processors: float, always: npt.NDArray[np.bool_]) -> Cut:
    """Parts until so many turns are full; no rounding, so that a processor more never costs."""
    count = np.where(
        always, np.maximum(1.0, np.minimum(tile.parts, c["split_turns"] * processors / tile.count)), 1.0
    )
    walked = np.where(always, np.minimum(tile.blocks, np.maximum(1.0, tile.whole / count)), tile.blocks)
    return Cut(always, count, count, walked, np.zeros_like(always), np.zeros_like(count))


def _anew(c: Mapping[str, float], tile: Tiles, anew: npt.NDArray[np.bool_]) -> Cut:
    """Whole parts until so many turns of the processors that the kernel was set up for are full, so that a processor more
    never makes a merge due. Those that lie beyond a window walk nothing; it begins inside one."""
    count = np.floor(np.minimum(tile.parts, c["split_turns"] * c["set_for"] / tile.count))
    count = np.where(anew, np.maximum(1.0, count), 1.0)
    inside = np.where(anew, np.minimum(count, 1.0 + np.floor(tile.inside * count)), count)
    walked = np.where(anew, np.minimum(tile.blocks, np.maximum(1.0, tile.whole / count)), tile.blocks)
    # The part that a window begins in and the others together walk no more than the window's blocks.
    inside = np.where(tile.inside < 1.0, np.minimum(inside, tile.blocks / walked), inside)
    return Cut(count > 1.0, count, inside, walked, np.zeros_like(anew), np.zeros_like(count))


def _dealt(c: Mapping[str, float], tile: Tiles, processors: float) -> Cut:
    """Each processor takes its share of all blocks.

    That a merge is due, and of how much, is told by the processors of the machine measured (`whole_tiles`), so that one
    more never makes it slower; how far each walks by the machine's own.
    """
    blocks = tile.blocks + c["start_blocks"]
    least = np.ceil(tile.blocks / tile.parts)
    each = np.maximum(np.ceil(tile.count * blocks / c["whole_tiles"]), least)
    count = np.where(tile.blocks > c["whole_blocks"], np.maximum(1.0, np.ceil(tile.blocks / each)), 1.0)
    if c["start_blocks"]:
        count = _in_turn(tile, each, c["start_blocks"], count)
    cuts = count > 1.0
    # Where sequences are not dealt out in turn, parts are of one length.
    walked = each if c["start_blocks"] else np.ceil(tile.blocks / np.ceil(tile.blocks / each))
    # Of more or fewer processors each has a share in proportion: rounded up, it would step wherever that is a whole number.
    walked = np.maximum(least, walked * c["whole_tiles"] / (c["split_turns"] * processors))
    walked = np.where(cuts, np.minimum(tile.blocks, walked), tile.blocks)
    return Cut(cuts, count, count, walked, cuts, np.where(cuts, tile.left * count, 0.0))


def _in_turn(tile: Tiles, each: FloatArray, start: float, count: FloatArray) -> FloatArray:
    """Parts of a sequence, in the mean of the first ones: a processor that ends one has room for more of the next if its share
    has room for another start too."""
    rest = each - (tile.blocks - (count - 1.0) * each) - start
    rows = np.flatnonzero((count > 1.0) & (rest > 0.0))
    if not rows.size:
        return count
    blocks, share, many = tile.blocks[rows], each[rows], np.minimum(_FIRST, np.ceil(tile.count[rows]))
    room, parts = share, np.zeros_like(share)
    for i in range(_FIRST):
        more = np.ceil(np.maximum(0.0, blocks - room) / share)
        parts = parts + (1.0 + more) * (i < many)
        left = room + more * share - blocks - start
        room = np.where(left > 0.0, left, share)
    out = count.copy()
    out[rows] = parts / many
    return out
