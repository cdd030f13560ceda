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
(`grouped_rows`; 32 in TensorRT-LLM: at 64 its time jumps to that of as many heads alone), or where the first would have fewer
than `grouped_tiles` tiles and parts of 128 tokens (a quarter of the processors in TensorRT-LLM, whose times jump there); its
tiles are `alone` times as long. TensorRT-LLM's first kernel cuts a sequence whatever that costs, into parts of 128 tokens until
`split_turns` turns are full (eight), no more than the root of eight times their number, and each part starts anew
(`per_part`): more sequences may take less time. It cuts all the context, and parts that lie beyond a window start too.
(github.com/NVIDIA/TensorRT-LLM, decoderXQAConstants.h and computeMultiBlockCount.)
Blocks and splits: FlashAttention-3 (arXiv 2407.08608, and tile_size.h of its code), flash decoding
(pytorch.org/blog/flash-decoding). Steps: in context where a block or a part begins, in tiles where a turn does, in heads per KV
head and tiles where the kernel changes. Warm cache: bytes that lie in it cost the share `cached`, in the walk too; where a
benchmark reads keys and values from one place, memory gives the share `fetched` of the grouped kernel's bytes. Not modelled:
which number of splits FlashAttention's heuristic picks for one shape, paged layouts' own cost.
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
# Of kernels that cut whatever it costs: tokens of a part at least; no more parts than the root of so many times their number.
_PART, _FEWER = 128.0, 8.0
_SHARP = 8.0  # p of the overlap within a tile's loop: near the maximum


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    tile = shapes(works, c["tile_rows"], c["block_tokens"], c["grouped_rows"], c["grouped_tiles"])
    turns = tile.count / at.hw.multiprocessors
    share = np.where(tile.alone, c["alone"], 1.0)
    fetched = np.where(tile.alone | (at.cache == "cold"), 1.0, c["fetched"])
    near = from_memory(works["bytes"], c["cached"], at)
    memory_s = works["bytes"] * fetched * near / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    compute_s = works["flops"] * tile.padding / (c["eta_flops"] * at.peak)
    per_block_s, whole = c["per_block_s"] * share * near, waves(turns)
    start_s = (whole * share * c["per_tile_s"] + turns * tile.rows * c["per_row_s"]) * tile.wide / _WIDTH
    walk_s = whole * tile.blocks * per_block_s
    # A kernel that cuts whatever it costs: into as many parts as its context has, until so many turns are full. That a
    # merge is due follows from the context alone, so that no processor more makes it slower.
    always = ~tile.alone & (c["split_turns"] > 0)
    count = np.maximum(1.0, np.minimum(tile.parts, c["split_turns"] / turns))
    start_s = np.where(
        always, waves(turns * count) * c["per_part_s"] + turns * tile.rows * c["per_row_s"], start_s
    )
    walked = np.minimum(tile.blocks, np.maximum(1.0, tile.whole / count))
    walk_s = np.where(always, waves(turns * count) * walked * per_block_s, walk_s)
    merge_s = np.where(always & (tile.parts > 1.0), c["split_s"], 0.0)
    # As many parts as idle processors, unless merging one more costs what its walk saves.
    most = np.sqrt(tile.blocks * per_block_s / c["per_split_s"]) if c["per_split_s"] > 0 else np.inf
    parts = np.minimum(np.minimum(tile.blocks, np.minimum(most, c["max_splits"])), 1.0 / turns)
    parts = np.maximum(1.0, parts)
    cut_s = tile.blocks * np.maximum(turns, 1.0 / parts) * per_block_s + c["per_split_s"] * parts
    odd = np.log2(tile.wide) % 1 != 0
    fixed_s = c["t0_s"] * works["launches"] + np.where(odd, c["odd_head_s"], 0.0)
    one_s = merge_s + smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, walk_s))
    split_s = c["split_s"] + smoothmax(c["blend"], start_s, smoothmax(_SHARP, memory_s, compute_s, cut_s))
    overlapped_s = np.where(always, one_s, np.minimum(one_s, split_s))
    split = ~always & (c["split_s"] + cut_s < walk_s)
    terms = {
        "launch": fixed_s, "memory": memory_s, "compute": compute_s, "start": start_s,
        "walk": np.where(split, cut_s, walk_s), "split": np.where(split, c["split_s"], merge_s),
    }  # fmt: skip
    serial_s = start_s + terms["walk"] + terms["split"]
    return Parts(compute_s, memory_s, fixed_s + serial_s, fixed_s + overlapped_s, terms=terms)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of attention ops, [ops] each.

    How many, rows of one, blocks that one walks, FLOPs of whole tiles and blocks over those asked for, width of a head
    (MLA's as 128), parts that its context can be cut into and its blocks, both with what lies beyond a window, and whether
    each query head has tiles of its own.
    """

    count: FloatArray
    rows: FloatArray
    blocks: FloatArray
    padding: FloatArray
    wide: FloatArray
    parts: FloatArray
    whole: FloatArray
    alone: npt.NDArray[np.bool_]


def shapes(
    works: Works, tile_rows: float, block_tokens: float, grouped_rows: float, grouped_tiles: float = 0.0
) -> Tiles:
    """How a kernel cuts attention ops: by rows of a tile, tokens of a block 128 wide, query heads that may share a KV head.

    Below `grouped_tiles` tiles and parts of them each query head has tiles of its own.
    """
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
    few = batch * kv_heads * parts < grouped_tiles
    alone = ~mla & (grouped_rows < _ANY_GROUP) & ((group > grouped_rows) | (group <= 1.0) | few)
    kv_heads = np.where(alone, heads, kv_heads)
    queries = works.dim("q", 0.0)
    queries = np.where(queries > 0, queries, batch)
    rows = heads / kv_heads * queries / batch
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
        padding=padding, wide=shown, parts=np.minimum(parts, np.rint(np.sqrt(_FEWER * parts))),
        whole=np.ceil(uncut / block), alone=alone,
    )  # fmt: skip


FORM = Form(SCHEMAS["attention"], seconds, ("context",))
