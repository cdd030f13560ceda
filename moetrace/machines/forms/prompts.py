"""Attention of prompts: tiles that queries fill, of a kernel for many queries (MHA, GQA, and MLA where it is not absorbed).

    tiles    = KV heads x rows (query heads of a KV head x queries) / rows of a tile, rounded up, of each sequence
    blocks   = those that a tile walks in the mean: of a causal mask what its queries see, and the rest of the last blocks
    pairs    = tiles x rows of one x blocks x tokens of one, the empty ones too
    uneven   = the longest tile over a processor's share of all, at least 1; of arithmetic by the processors measured, so that
               more of them, which share one peak, never take longer
    compute  = uneven x 2 (head_dim + v_dim) pairs / (share x peak)
    walk     = uneven x pairs / (16 x processors x clock): one exponential for each pair
    time     = compute + walk, or what memory takes

Matrix units and the units of special functions, 16 a cycle of each processor (CUDA C++ Programming Guide, throughput of
arithmetic instructions), take turns on a tile; the next tile goes where one has ended (FlashAttention-3's
DynamicPersistentTileScheduler in flash_fwd_launch_template.h), so that processors end together, but for the longest. What a
block takes in decoding, where it waits for its own results, the other warps of a tile hide. That turns are taken and not
hidden is inferred from speeds of FlashAttention-3 (arXiv 2407.08608, figure 5; docs/accuracy.md has the errors).
`share`, of the peak, that matrix units reach: 1 in FlashAttention-3, elsewhere `prompt_flops`. Not known: what pages cost.
Such an op errs by more than the decoding that its coefficients were fitted on (`FURTHER`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moetrace.machines.forms.attention_tiles import DRAFTED, WIDTH
from moetrace.machines.forms.base import Setting, smoothmax
from moetrace.op import FloatArray, Works

ROWS = BLOCK = 128.0  # rows of a tile and tokens of a block where nothing else is known
_EXPONENTIALS = 16.0  # of a processor in a cycle
_CLOCK = 1.5e9  # of a machine whose clock no profile says
# The error of prompts beside that of the decoding which coefficients were fitted on: with it an interval holds 23 of the 30
# speeds that FlashAttention-3's authors published; of other kernels, whose speeds gave their share, it is an assumption.
FURTHER, FURTHER_OTHERS = 0.15, 0.3
# Where a kernel's coefficients do not tell them: between the 108 and the 132 of those measured.
_PROCESSORS = 120.0
_SHARP = 8.0  # p of memory beside arithmetic


@dataclass(frozen=True, slots=True)
class Walks:
    """What tiles of prompts walk, [ops] each: tiles of a KV head and of all, blocks of one in the mean, of the longest, and
    pairs of a row and a key in all of them; arithmetic of one pair."""

    of_head: FloatArray
    count: FloatArray
    blocks: FloatArray
    longest: FloatArray
    pairs: FloatArray
    pair_flops: FloatArray


def walks(works: Works, built: FloatArray | float, block: FloatArray | float) -> Walks:
    """Of tiles `built` for so many rows, that walk blocks of so many tokens; nan where batch, heads or context is not known."""
    width, value = works.dim("head_dim"), works.dim("v_dim", 0.0)
    value = np.where(value > 0, value, width)
    batch, heads, kv_heads = np.maximum(works.dim("batch"), 1.0), works.dim("heads"), works.dim("kv_heads")
    context = np.maximum(works.dim("kv") / batch, 1.0)
    queries = works.dim("q", 0.0)
    queries = np.where(queries > 0, queries, batch)
    of_head = np.ceil(heads / kv_heads * queries / batch / built)
    tokens = built * kv_heads / heads
    asked = 2.0 * heads * (width + value) * queries * context
    seen = np.divide(works["flops"], asked, out=np.ones_like(asked), where=asked > 0)
    window = works.dim("window", 0.0)
    most = np.where(window > 0, np.minimum(context, window + tokens + block), context)
    longest = np.maximum(1.0, np.ceil(most / block))
    ahead = np.where(seen < 1.0, np.maximum(tokens, block) / 2.0, 0.0)
    blocks = np.minimum(np.maximum(1.0, (np.minimum(seen, 1.0) * context + ahead) / block), longest)
    count = batch * kv_heads * of_head
    return Walks(of_head, count, blocks, longest, count * built * blocks * block, 2.0 * (width + value))


def busy(
    walk: Walks, at: Setting, parts: FloatArray | float, share: float, told: float
) -> tuple[FloatArray, FloatArray]:
    """(seconds of matrix units, of exponentials) on the processor that is busy longest, of tiles cut in so many parts; `told`:
    the processors that the kernel was measured on, 0 where that is not said."""
    processors, blocks = at.hw.multiprocessors, np.maximum(walk.count, 1.0) * walk.blocks
    longest = walk.longest / parts / blocks  # of all blocks, the share of the longest tile
    compute_s = (
        walk.pair_flops * walk.pairs / (share * at.peak) * np.maximum(1.0, longest * (told or _PROCESSORS))
    )
    special_s = (
        walk.pairs / (_EXPONENTIALS * (at.hw.clock_hz or _CLOCK)) * np.maximum(1.0 / processors, longest)
    )
    return compute_s, special_s


def instead(
    c: Mapping[str, float],
    works: Works,
    at: Setting,
    terms: Mapping[str, FloatArray],
    overlapped_s: FloatArray,
) -> FloatArray:
    """Puts the seconds of a kernel for prompts in the place of the other's, where queries fill more than a tile; their further
    error, [ops]."""
    queries, batch = works.dim("q", 0.0), np.maximum(works.dim("batch"), 1.0)
    filled = works.dim("heads") / works.dim("kv_heads") * queries / batch > c["tile_rows"]
    prompt = filled & (queries > batch)
    further = np.where(prompt, FURTHER_OTHERS, 0.0)
    drafted = (c["set_for"] > 0) & (not c["triton"]) & (queries <= DRAFTED * batch)
    rows = np.flatnonzero(prompt & ~drafted)
    if not rows.size:
        return further
    walk = walks(works.take(rows), ROWS, BLOCK)
    own = Setting(at.hw, at.peak[rows], at.cache, at.engine)
    compute_s, walk_s = busy(walk, own, 1.0, c["prompt_flops"], c["set_for"])
    turns = np.maximum(1.0, walk.count / at.hw.multiprocessors)
    start_s = turns * c["per_tile_s"] * walk.pair_flops / (4.0 * WIDTH)
    streamed_s = smoothmax(_SHARP, terms["memory"][rows], compute_s + walk_s)
    terms["compute"][rows], terms["walk"][rows] = compute_s, walk_s
    terms["start"][rows], terms["split"][rows] = start_s, 0.0
    overlapped_s[rows] = smoothmax(c["blend"], start_s, streamed_s)
    return further
