"""The form of attention (MHA, GQA, MLA; decode and prefill): tiles of query rows that walk blocks of KV tokens.

    tile     = up to tile_rows rows (queries x heads) of one sequence and KV head, all heads of MLA
    blocks   = KV tokens of a sequence / block_tokens, rounded up, one more where a window cuts a sequence inside a block
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs of whole tiles and blocks / (eta_flops x peak)
    stream   = max of memory, compute and the serial walk: turns x blocks x per_block, turns = tiles / processors
    expected = t0 + ((turns x per_tile x width / 128)^p + stream^p)^(1/p) + odd_head where a head is no power of two wide
    split    = if it takes less: split_s + per_split x parts more, and a sequence's KV cut so that idle processors walk too

Why: many short sequences cost per tile, few long ones are cut (flash decoding), long batches stream at the memory's rate.
Blocks and splits: FlashAttention-3 (arXiv 2407.08608, and tile_size.h of its code), flash decoding
(pytorch.org/blog/flash-decoding). Steps: in context where a block begins, in tiles where a turn does. Not modelled: which
number of splits a library's heuristic picks for one shape, its switches between kernels, paged layouts' own cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import from_memory, waves
from moetrace.op import FloatArray, Works

_WIDTH = 128.0
_SHARP = 8.0  # p of the overlap within a tile's loop: near the maximum


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    tiles, blocks, padding, wide = shapes(works, c["tile_rows"], c["block_tokens"])
    turns = tiles / at.hw.multiprocessors
    nbytes = works["bytes"]
    memory_s = nbytes / (c["eta_bw"] * at.hw.memory.bytes_per_s) * from_memory(nbytes, c["cached"], at)
    compute_s = works["flops"] * padding / (c["eta_flops"] * at.peak)
    whole = waves(turns)
    start_s, walk_s = whole * c["per_tile_s"] * wide / _WIDTH, whole * blocks * c["per_block_s"]
    # As many parts as idle processors, unless merging one more costs what its walk saves.
    most = np.sqrt(blocks * c["per_block_s"] / c["per_split_s"]) if c["per_split_s"] > 0 else np.inf
    parts = np.maximum(1.0, np.minimum(np.minimum(blocks, np.minimum(most, c["max_splits"])), 1.0 / turns))
    cut_s = blocks * np.maximum(turns, 1.0 / parts) * c["per_block_s"] + c["per_split_s"] * parts
    odd = np.log2(wide) % 1 != 0
    fixed_s = c["t0_s"] * works["launches"] + np.where(odd, c["odd_head_s"], 0.0)
    overlapped_s = np.minimum(
        smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, walk_s)),
        c["split_s"] + smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, cut_s)),
    )
    serial_s = start_s + np.minimum(walk_s, c["split_s"] + cut_s)
    return Parts(compute_s, memory_s, fixed_s + serial_s, fixed_s + overlapped_s)


def shapes(
    works: Works, tile_rows: float, block: float
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(tiles, blocks that one tile walks, FLOPs of whole tiles over those asked for, width of a head; MLA's as 128)."""
    lora = works.dim("kv_lora")
    mla = ~np.isnan(lora)
    wide = np.where(mla, lora + works.dim("rope"), works.dim("head_dim"))
    value = np.where(mla, lora, works.dim("v_dim", 0.0))
    value = np.where(value > 0, value, wide)
    batch, heads = np.maximum(works.dim("batch"), 1.0), works.dim("heads")
    kv_heads = np.where(mla, 1.0, works.dim("kv_heads"))
    queries = works.dim("q", 0.0)
    queries = np.where(queries > 0, queries, batch)
    rows, context = heads / kv_heads * queries / batch, np.maximum(works.dim("kv") / batch, 1.0)
    blocks = np.ceil(context / block) + (works.dim("window", 0.0) > 0)
    # Under a causal mask a tile of a prefill walks half of the blocks.
    asked = 2.0 * heads * (wide + value) * queries * context
    seen = np.minimum(1.0, np.divide(works["flops"], asked, out=np.ones_like(asked), where=asked > 0))
    seen = np.where(seen > 0, seen, 1.0)
    row_tiles = np.ceil(rows / tile_rows)
    padding = row_tiles * tile_rows / rows * np.maximum(1.0, blocks * block / context)
    tiles = batch * kv_heads * row_tiles
    return tiles, np.maximum(1.0, blocks * seen), padding, np.where(mla, _WIDTH, np.maximum(wide, 1.0))


FORM = Form(SCHEMAS["attention"], seconds, ("batch", "heads", "kv"))
