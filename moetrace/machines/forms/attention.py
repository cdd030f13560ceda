"""The form of attention (MHA, GQA, MLA; decode and prefill): tiles of query rows that walk blocks of KV tokens.

    tile     = up to 64 rows (queries x heads) of one sequence and KV head; a row tile of MLA covers heads alike
    blocks   = KV tokens of a sequence / 128 (MLA: 64), rounded up, one more where a window cuts a sequence inside a block
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs of whole blocks and 16 rows / (eta_flops x peak)
    stream   = max of memory, compute and the serial walk: turns x blocks x per_block, turns = tiles / processors
    split    = where it saves more than split_s + per_split x parts: a sequence's KV cut so that idle processors walk too
    expected = t0 + ((turns x per_tile)^p + stream^p)^(1/p) + what a split costs + odd_head where a head is no power of two wide

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
from moetrace.machines.forms.tiles import from_memory, shared_out, waves
from moetrace.op import FloatArray, Works

_ROWS, _MMA_ROWS = 64.0, 16.0
_BLOCK, _BLOCK_MLA = 128.0, 64.0
_SHARP = 8.0  # p of the overlap within a tile's loop: near the maximum


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    tiles, blocks, padding, odd = shapes(works)
    turns = tiles / at.hw.multiprocessors
    kv_bytes = works["kv_read_bytes"] * (c["repeated"] if at.cache == "warm" else 1.0)
    nbytes = works["bytes"] - works["kv_read_bytes"] + kv_bytes
    memory_s = nbytes / (c["eta_bw"] * at.hw.memory.bytes_per_s) * from_memory(nbytes, c["cached"], at)
    compute_s = works["flops"] * padding / (c["eta_flops"] * at.peak)
    start_s, walk_s = waves(turns) * c["per_tile_s"], waves(turns) * blocks * c["per_block_s"]
    parts = np.minimum(np.minimum(blocks, c["max_splits"]), np.maximum(1.0, 1.0 / turns))
    cut_s = np.maximum(np.maximum(blocks / c["max_splits"], 1.0), blocks * turns) * c["per_block_s"]
    walk_s, merge_s = shared_out(walk_s, cut_s, c["split_s"] + c["per_split_s"] * parts)
    fixed_s = c["t0_s"] * works["launches"] + c["odd_head_s"] * odd + merge_s
    overlapped_s = smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, walk_s))
    return Parts(compute_s, memory_s, fixed_s + start_s + walk_s, fixed_s + overlapped_s)


def shapes(works: Works) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(tiles, blocks that one tile walks, FLOPs of whole blocks and rows over those asked for, 1 where the head is odd)."""
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
    block = np.where(mla, _BLOCK_MLA, _BLOCK)
    blocks = np.ceil(context / block) + (works.dim("window", 0.0) > 0)
    # Under a causal mask a tile of a prefill walks half of the blocks.
    asked = 2.0 * heads * (wide + value) * queries * context
    seen = np.minimum(1.0, np.divide(works["flops"], asked, out=np.ones_like(asked), where=asked > 0))
    seen = np.where(seen > 0, seen, 1.0)
    padding = np.ceil(rows / _MMA_ROWS) * _MMA_ROWS / rows * np.maximum(1.0, blocks * block / context)
    odd = np.where(~mla & (np.log2(np.maximum(wide, 1.0)) % 1 != 0), 1.0, 0.0)
    return batch * kv_heads * np.ceil(rows / _ROWS), np.maximum(1.0, blocks * seen), padding, odd


FORM = Form(SCHEMAS["attention"], seconds, ("batch", "heads", "kv"))
