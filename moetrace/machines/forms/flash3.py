"""FlashAttention-3 (`flash3`): attention whose tiles, blocks, parts and merge are those of its own scheduler.

    tile     = rows (query heads of a KV head x queries) of one sequence: 64 of heads up to 128 wide where that suffices and is
               built (`tile_rows`), else 192 up to 64 wide and 128 wider; blocks of KV tokens by the width (`_BLOCKS`), 1 or 2
               bytes an element
    limit    = `most_parts`; where the kernel chooses: 0.85 of the parts of one sequence that fill the processors, no more than
               its blocks, or one up to `whole_blocks` blocks or where its tiles fill 0.8 of the processors
    each     = 1.1 x all blocks / processors, rounded up; parts = blocks of a sequence / each, rounded up, at most the limit
    turns    = tiles x parts / processors        walk = turns x blocks of a part x (per_block + per_wide x width / 128)
    start    = turns x (per_tile + tile_wide x width / 128 + `several` where a tile has more than 64 rows, + what a window
               costs, window or narrow) + rows x width / 128 x (per_row x tiles / processors + tile_row x turns) + ramp
    merge    = split + (wait^4 + (partial x bytes that parts leave / processors)^4)^(1/4), wait = per_split x parts + idle x
               those that it has room for beyond them where a tile of it is not full; and merge x (its tiles / processors
               - 4) wherever the limit is above one
    expected = t0 + per_sequence x sequences + odd_head + write x bytes of a token's keys and values + merge
               + (start^p + stream^p)^(1/p), stream = one block + max of memory, arithmetic and the rest of the walk

Sources: github.com/Dao-AILab/flash-attention, hopper/ (vLLM's and SGLang's forks alike): tile_size.h, heuristics.h,
flash_prepare_scheduler.cu, flash_fwd_combine_launch_template.h and flash_fwd_combine_kernel.h. The limit of vLLM is the 32
parts that it captures graphs with (flash_attn_max_num_splits_for_cuda_graph), SGLang's is the kernel's choice. So vLLM merges
from two blocks on, and launches the merge where there is nothing to merge.
The merge takes 8 rows of the output together, 16 of heads up to 64 wide. Where these do not divide a sequence's heads x
queries, it loads no scales for the rows beyond them, takes what lies there for scales, and goes through all the parts that it
has room for (`idle_s`): the limit, rounded up to a power of two, 32 at least (16 up to 64 wide). Measured: 1.3 us more with
4 heads 128 wide than with 8, 16 or 24; where 128 parts have room up to 5 us.
Under a window it walks the blocks that the window touches, cut in as many parts as all the context would be (the scheduler
counts blocks without the window, the limit with it). Inferred: the window's cost (its masks), of heads 64 wide and of wider
ones; that few heads 64 wide take tiles of 64 rows too, since their times step every 192 tokens; that four tiles of the merge
wait on a processor beside the tiles before them.
SGLang stores each token's keys and values first, a warp to a token (store_kvcache in its jit_kernel, kvcache.cuh): 50 ps for a
byte, as H100's times of 12 to 64 KV heads over caches of both types have it, however many sequences.
SGLang's 64 wide heads take the tile of 192 rows for one query too (`tile_rows`; its fork,
github.com/sgl-project/sgl-flash-attn, has none of 64 rows for them): a single block takes 1.4 us longer there than of heads
128 wide, in vLLM 1.5 less. Over an fp8 cache queries are converted and multiplied in 8 bits. What lies in cache SGLang's fp8
blocks wait 0.75 of the time for (`cached`), from memory at least `least_s`, since it keeps single tokens and reads each one's
place first (both inferred: heads 128 wide take 0.95 us a block from cache, 1.43 from memory, 64 wide ones 1.0 and 1.4; vLLM's
no longer from memory).
Prompts, whose rows exceed a tile, keep matrix units and exponentials busy (machines/forms/prompts): walk is the latter, and a
turn is a processor's share of the tiles. What limits their parts is the kernel's choice.
Steps: in heads and queries where tiles or the merge's rows are full, in context where a block begins (under a window, where
that begins with a block, one less is touched and a longer context takes less; so may it with a fifth, from which on the kernel
cuts), in sequences and KV heads where a processor's share of blocks rounds up. Where one sequence's tiles come to fill 0.8 of
the processors no merge is launched: a batch of prompts takes up to half as long as with a few queries less (by its rule; only
decoding was measured). Parts are those of the processors measured (`set_for`): a processor more never makes a merge due.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.machines.forms import prompts
from moetrace.machines.forms.base import Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import PAGED, filled, from_memory, turns_of, unawaited
from moetrace.op import FloatArray, Works

_WIDTH = 128.0  # of a head, that seconds are told for
_WIDTHS = np.array([64.0, 128.0, 192.0])  # of heads, up to which kernels are built; and any wider one
_FEW = 64.0  # rows of the tile of one group of warps, of the first two of these
# KV tokens of a block by bytes of an element, and rows of a tile: of those widths, then of the first two with more rows.
_BLOCKS = {
    1.0: np.array([128.0, 96.0, 160.0, 128.0, 160.0, 160.0]),
    2.0: np.array([192.0, 128.0, 96.0, 80.0, 160.0, 128.0]),
}
_ROWS = np.array([_FEW, _FEW, 128.0, 128.0, 192.0, 128.0])
_SPARE = 1.1  # of a processor's share of the blocks
_ENOUGH = 0.85  # of the parts that fill most processors
_FILLED = 0.8  # of the processors, from which on tiles are not cut
_RESIDENT = 4.0  # tiles of the merge that wait on a processor
_EDGE = 1e-9  # rounding of blocks
_AHEAD, _SHARP = 4.0, 8.0


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Tiles of ops, [ops] each.

    How many, whether they are a prompt's and what such walk, rows that one has and is built for, FLOPs of whole tiles over
    those asked for, blocks that are walked and that the scheduler counts, width over 128, tiles of the merge, whether one of
    these is not full, the parts that the merge has room for at least, and bytes that a part of all sequences leaves.
    """

    count: FloatArray
    prompt: npt.NDArray[np.bool_]
    walks: prompts.Walks
    rows: FloatArray
    built: FloatArray
    padding: FloatArray
    blocks: FloatArray
    whole: FloatArray
    wide: FloatArray
    merged: FloatArray
    ragged: npt.NDArray[np.bool_]
    room: FloatArray
    left: FloatArray


def _tiles(works: Works, c: Mapping[str, float]) -> _Tiles:
    width, value = works.dim("head_dim"), works.dim("v_dim", 0.0)
    value = np.where(value > 0, value, width)
    batch, heads, kv_heads = np.maximum(works.dim("batch"), 1.0), works.dim("heads"), works.dim("kv_heads")
    context = np.maximum(works.dim("kv") / batch, 1.0)
    uncut = np.fmax(works.dim("context"), context)
    queries = works.dim("q", 0.0)
    queries = np.where(queries > 0, queries, batch)
    rows = heads / kv_heads * queries / batch
    kind = np.searchsorted(_WIDTHS, width)
    few = np.where(kind == 0, _FEW * (c["tile_rows"] <= _FEW), _FEW)
    kind = np.where((kind < 2) & (rows > few), kind + 4, kind)
    block, built = _BLOCKS[c["flash3"]][kind], _ROWS[kind]
    whole = np.ceil(uncut / block)
    blocks = np.where(works.dim("window", 0.0) > 0, whole - np.floor((uncut - context) / block), whole)
    walks = prompts.walks(works, built, block)
    of_head = walks.of_head
    # Of a few queries not all see the last keys.
    asked = 2.0 * heads * (width + value) * queries * context
    seen = np.minimum(1.0, np.divide(works["flops"], asked, out=np.ones_like(asked), where=asked > 0))
    blocks = np.maximum(1.0, blocks * np.where(seen > 0, seen, 1.0))
    together = np.where(value <= _WIDTHS[0], 16.0, 8.0)
    out_rows = heads * queries / batch
    return _Tiles(
        count=walks.count, prompt=of_head > 1.0, walks=walks, rows=np.minimum(rows, built), built=built,
        padding=built * of_head / rows,
        blocks=np.where(of_head > 1.0, np.minimum(walks.blocks, whole), blocks), whole=whole, wide=width / _WIDTH,
        merged=batch * np.ceil(out_rows / together) * np.ceil(value / _WIDTH), ragged=out_rows % together != 0,
        room=np.where(value <= _WIDTHS[0], 16.0, 32.0), left=4.0 * heads * queries * value,
    )  # fmt: skip


def _limit(c: Mapping[str, float], tile: _Tiles, kv_heads: FloatArray) -> FloatArray:
    """Parts of a sequence at most: what an engine tells, of decoding, or what the kernel chooses."""
    fill = c["set_for"] / (kv_heads * tile.walks.of_head)
    cuts = (tile.blocks > max(c["whole_blocks"], 4.0)) & (_FILLED * fill > 1.0)
    chosen = np.ceil(_ENOUGH * np.minimum(np.minimum(128.0, tile.blocks), np.maximum(1.0, fill)) - _EDGE)
    chosen = np.where(cuts, np.maximum(1.0, chosen), 1.0)
    return np.where((c["whole_blocks"] > 0) | tile.prompt, chosen, c["most_parts"])


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    tile, processors, told = _tiles(works, c), at.hw.multiprocessors, c["set_for"]
    limit = _limit(c, tile, works.dim("kv_heads"))
    each = np.maximum(1.0, np.ceil(_SPARE * tile.count * tile.whole / told - _EDGE))
    parts = np.maximum(1.0, np.minimum(np.ceil(tile.whole / each), limit))
    cut = parts > 1.0
    turns = turns_of(tile.count * parts, told, processors)
    # A machine of more processors cuts finer what is cut, in as many turns, and takes fewer turns of what is not.
    walked = np.ceil(tile.blocks / parts - _EDGE) * np.where(cut, min(1.0, told / processors), 1.0)
    walked = np.maximum(1.0, walked)
    walks = np.where(cut, turns_of(tile.count * parts, told, min(told, processors)), turns) * walked
    turns = np.where(tile.prompt, np.maximum(1.0, tile.count * parts / processors), turns)
    matrix_s, special_s = prompts.busy(tile.walks, at, parts, 1.0, told)
    read_s, memory_s, far = _memory(c, works, at, np.where(cut, tile.left * parts, 0.0))
    block_s = (c["per_block_s"] + c["per_wide_s"] * tile.wide) * (c["cached"] + (1.0 - c["cached"]) * far)
    block_s = np.maximum(
        block_s, c["writes"] * c["least_s"] * far
    )  # single tokens' places are read before they are
    walk_s = np.where(tile.prompt, special_s, walks * block_s)
    compute_s = np.where(tile.prompt, matrix_s, _padded(c, works, at, tile))
    start_s = _start(c, works, tile, turns, processors) + c["ramp_s"] * far * filled(works["bytes"], at)
    # Rows beyond the last are merged from all the parts that there is room for.
    room = np.maximum(tile.room, np.exp2(np.ceil(np.log2(limit))))
    done = np.minimum(parts, tile.blocks)
    wait_s = c["per_split_s"] * done + np.where(tile.ragged, c["idle_s"] * (room - done), 0.0)
    merge_s = c["split_s"] + smoothmax(_AHEAD, wait_s, c["partial_s"] * tile.left * parts / processors)
    launched_s = c["merge_s"] * np.maximum(0.0, tile.merged / processors - _RESIDENT)
    merge_s = np.where(cut, merge_s, 0.0) + np.where(limit > 1.0, launched_s, 0.0)
    fixed_s = c["t0_s"] * works["launches"] + c["per_sequence_s"] * works.dim("batch", 0.0)
    fixed_s = fixed_s + np.where(np.log2(tile.wide) % 1 != 0, c["odd_head_s"], 0.0)
    fixed_s = fixed_s + c["writes"] * c["write_s"] * works["kv_bytes"] / np.maximum(works.dim("kv"), 1.0)
    rest = 1.0 - np.divide(block_s, walk_s, out=np.ones_like(walk_s), where=walk_s > block_s)
    streamed_s = block_s + smoothmax(_SHARP, read_s, compute_s * rest, walk_s * rest)
    streamed_s = np.where(tile.prompt, smoothmax(_SHARP, read_s, matrix_s + special_s), streamed_s)
    terms = {
        "launch": fixed_s, "memory": memory_s, "compute": compute_s, "start": start_s, "walk": walk_s, "split": merge_s,
    }  # fmt: skip
    expected_s = fixed_s + np.maximum(memory_s, merge_s + smoothmax(c["blend"], start_s, streamed_s))
    serial_s, further = start_s + walk_s + merge_s, np.where(tile.prompt, prompts.FURTHER, 0.0)
    return Parts(compute_s, memory_s, fixed_s + serial_s, expected_s, terms=terms, further=further)


def _memory(
    c: Mapping[str, float], works: Works, at: Setting, left: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(seconds of what a call waits for from memory, of all that memory moves, the share of the bytes that it gives)."""
    far = from_memory(works["bytes"] + left, 0.0, at, PAGED)
    byte_s = far / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    return (works["bytes"] - unawaited(works, at)) * byte_s, works["bytes"] * byte_s, far


def _padded(c: Mapping[str, float], works: Works, at: Setting, tile: _Tiles) -> FloatArray:
    """Arithmetic of decoding's whole tiles; over a cache of 8 bits it is of 8 bits too."""
    peak = at.peak if c["flash3"] > 1.0 else np.maximum(at.peak, at.hw.peaks.get("fp8", 0.0))
    return np.asarray(works["flops"] * np.maximum(1.0 / at.peak, tile.padding / (c["eta_flops"] * peak)))


def _start(
    c: Mapping[str, float], works: Works, tile: _Tiles, turns: FloatArray, processors: float
) -> FloatArray:
    """Starting and ending all turns' tiles."""
    window_s = np.where(tile.wide * _WIDTH <= _WIDTHS[0], c["narrow_s"], c["window_s"])
    tile_s = c["per_tile_s"] + c["tile_wide_s"] * tile.wide + window_s * (works.dim("window", 0.0) > 0)
    tile_s = tile_s + c["several_s"] * (tile.built > _FEW)
    row_s = tile.rows * tile.wide * (tile.count / processors * c["per_row_s"] + turns * c["tile_row_s"])
    return np.asarray(turns * tile_s + row_s)
