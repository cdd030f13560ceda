"""The form of attention (MHA, GQA, MLA; decode and prefill): tiles of query rows that walk blocks of KV tokens.

    tile     = up to tile_rows rows (queries x heads) of one sequence and KV head, all heads of MLA
    blocks   = KV tokens of a sequence / (block_tokens x 128 / width), rounded up: kernels size a block to what a processor
               holds; one more where a window cuts a sequence inside a block
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs of whole tiles and blocks / (eta_flops x peak)
    start    = (turns x per_tile + tiles / processors x rows of a tile x per_row) x width / 128, turns = tiles / processors
    stream   = max of memory, compute and the serial walk: turns x blocks x per_block
    expected = t0 + (start^p + stream^p)^(1/p) + odd_head where a head is no power of two wide
    split    = if it takes less: split_s + per_split x parts more, and a sequence's KV cut so that idle processors walk too

Why: many short sequences cost per tile, and per row where many query heads share a KV head; few long ones are cut (flash
decoding), long batches stream at the memory's rate. Some libraries have two kernels: one for query heads that share a KV
head, and one with each query head alone, taken where nothing is shared and where more share than the first holds
(`grouped_rows`; 32 in TensorRT-LLM: at 64 its time jumps to that of as many heads alone); its tiles are `alone` times as long.
Blocks and splits: FlashAttention-3 (arXiv 2407.08608, and tile_size.h of its code), flash decoding
(pytorch.org/blog/flash-decoding). Steps: in context where a block begins, in tiles where a turn does, in heads per KV head
where the kernel changes. Warm cache: bytes that lie in it cost the share `cached`, in the walk too; where a benchmark reads
keys and values from one place, memory gives the share `fetched` of the grouped kernel's bytes. Not modelled: which
number of splits a library's heuristic picks for one shape, paged layouts' own cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import from_memory, waves
from moetrace.op import FloatArray, Works

_WIDTH = 128.0
_ANY_GROUP = 1024.0  # `grouped_rows` of a library with one kernel for any number of query heads
_SHARP = 8.0  # p of the overlap within a tile's loop: near the maximum


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    tile = shapes(works, c["tile_rows"], c["block_tokens"], c["grouped_rows"])
    turns = tile.count / at.hw.multiprocessors
    share = np.where(tile.alone, c["alone"], 1.0)
    fetched = np.where(tile.alone | (at.cache == "cold"), 1.0, c["fetched"])
    near = from_memory(works["bytes"], c["cached"], at)
    memory_s = works["bytes"] * fetched * near / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    compute_s = works["flops"] * tile.padding / (c["eta_flops"] * at.peak)
    per_block_s, whole = c["per_block_s"] * share * near, waves(turns)
    start_s = (whole * share * c["per_tile_s"] + turns * tile.rows * c["per_row_s"]) * tile.wide / _WIDTH
    walk_s = whole * tile.blocks * per_block_s
    # As many parts as idle processors, unless merging one more costs what its walk saves.
    most = np.sqrt(tile.blocks * per_block_s / c["per_split_s"]) if c["per_split_s"] > 0 else np.inf
    parts = np.minimum(np.minimum(tile.blocks, np.minimum(most, c["max_splits"])), 1.0 / turns)
    parts = np.maximum(1.0, parts)
    cut_s = tile.blocks * np.maximum(turns, 1.0 / parts) * per_block_s + c["per_split_s"] * parts
    odd = np.log2(tile.wide) % 1 != 0
    fixed_s = c["t0_s"] * works["launches"] + np.where(odd, c["odd_head_s"], 0.0)
    overlapped_s = np.minimum(
        smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, walk_s)),
        c["split_s"] + smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, cut_s)),
    )
    serial_s = start_s + np.minimum(walk_s, c["split_s"] + cut_s)
    return Parts(compute_s, memory_s, fixed_s + serial_s, fixed_s + overlapped_s)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of attention ops, [ops] each.

    How many, rows of one, blocks that one walks, FLOPs of whole tiles and blocks over those asked for, width of a head
    (MLA's as 128), and whether each query head has tiles of its own.
    """

    count: FloatArray
    rows: FloatArray
    blocks: FloatArray
    padding: FloatArray
    wide: FloatArray
    alone: npt.NDArray[np.bool_]


def shapes(works: Works, tile_rows: float, block_tokens: float, grouped_rows: float) -> Tiles:
    """How a kernel cuts attention ops: by rows of a tile, tokens of a block 128 wide, query heads that may share a KV head."""
    lora = works.dim("kv_lora")
    mla = ~np.isnan(lora)
    wide = np.where(mla, lora + works.dim("rope"), works.dim("head_dim"))
    value = np.where(mla, lora, works.dim("v_dim", 0.0))
    value = np.where(value > 0, value, wide)
    batch, heads = np.maximum(works.dim("batch"), 1.0), works.dim("heads")
    kv_heads = np.where(mla, 1.0, works.dim("kv_heads"))
    group = heads / kv_heads
    alone = ~mla & (grouped_rows < _ANY_GROUP) & ((group > grouped_rows) | (group <= 1.0))
    kv_heads = np.where(alone, heads, kv_heads)
    queries = works.dim("q", 0.0)
    queries = np.where(queries > 0, queries, batch)
    rows, context = heads / kv_heads * queries / batch, np.maximum(works.dim("kv") / batch, 1.0)
    shown = np.where(mla, _WIDTH, np.maximum(wide, 1.0))
    block = block_tokens * _WIDTH / shown
    blocks = np.ceil(context / block) + (works.dim("window", 0.0) > 0)
    # Under a causal mask a tile of a prefill walks half of the blocks.
    asked = 2.0 * heads * (wide + value) * queries * context
    seen = np.minimum(1.0, np.divide(works["flops"], asked, out=np.ones_like(asked), where=asked > 0))
    seen = np.where(seen > 0, seen, 1.0)
    row_tiles = np.ceil(rows / tile_rows)
    padding = row_tiles * tile_rows / rows * np.maximum(1.0, blocks * block / context)
    return Tiles(
        count=batch * kv_heads * row_tiles, rows=np.minimum(rows, tile_rows), blocks=np.maximum(1.0, blocks * seen),
        padding=padding, wide=shown, alone=alone,
    )  # fmt: skip


FORM = Form(SCHEMAS["attention"], seconds)
