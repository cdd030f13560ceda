"""The form of attention (MHA, GQA, MLA; decode and prefill): tiles of query rows that walk blocks of KV tokens.

    tile     = up to tile_rows rows (queries x heads) of one sequence and KV head, all heads of MLA (value_tiles of it)
    blocks   = KV tokens of a sequence / (block_tokens x 128 / width, at most 160 where more than a block 128 wide has), rounded
               up: kernels size a block to what a processor holds; one more where a window cuts a sequence inside a block; as
               many tokens at any width in even_blocks
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs of whole tiles and blocks / (eta_flops x peak)
    start    = (turns x (per_tile + rows of a tile x tile_row) + tiles / processors x rows of a tile x per_row) x width / 128
               + ramp, turns = tiles / processors; turns x empty x empty part of the last block; and window x turns x
               (128 / width)^2 where a window cuts sequences
    walks    = turns, up to at_once of a processor's tiles beside each other: all but the first add `beside` of a walk
    stream   = one block + max of memory, the other blocks' compute and their serial walk: walks x blocks x per_block
    expected = t0 + per_sequence x sequences + (start^p + stream^p)^(1/p) + odd_head where a head is no power of two wide
               + recast of the cache
    split    = if it takes less: split_s + per_split and partial_s x parts more, and a sequence's KV cut so that idle
               processors walk too

Why: many short sequences cost per tile, and per row where many query heads share a KV head; few long ones are cut (flash
decoding), long batches stream at the memory's rate. Nothing hides the first block of a tile, and `ramp` is what memory takes
to stream: in the public tables 64 MB and 1 GB both take FlashAttention-3 on H100 12 to 15 us more than their bytes at 0.93 of
the bandwidth. A walk is latency: tiles of one processor hide each other's (`beside`; inferred: TensorRT-LLM's MLA on A100
takes 1.00, 1.36, 2.36, 3.7 and 6.9 of one tile's time with 1, 2, 3, 5 and 10 on a processor, at every context). In decode a
walk, memory and padded arithmetic are all in proportion to the bytes, and one chip's rows cannot tell which of them it is;
another chip's can. So what is known of a kernel is given: `block_s`, since H100's times of one, two and four blocks, whose
bytes lie in cache, rise by 1.1 us a block in FlashAttention-3 (1.4 here, nearer to the best fit, 1.7) and 1.7 in MLA, and
0.9 in TensorRT-LLM's, whose times on A100 leave no more than 0.6 for a block of 128 tokens;
`eta_flops`, 0.67 as FlashMLA reaches (660 of 989 TFLOP/s: github.com/deepseek-ai/FlashMLA). Then memory limits what reached
0.9 of its bandwidth. The parts of a sequence leave rows x width of values in float32, which merging reads: partial_s of these
bytes per processor, most where MLA has many heads.

Some libraries have two kernels: one for query heads that share a KV
head, and one with each query head alone, taken where nothing is shared and where more share than the first holds
(`grouped_rows`; 32 in TensorRT-LLM: at 64 its time jumps to that of as many heads alone), or where the first would have fewer
than `grouped_tiles` tiles and parts of 128 tokens (a quarter of the processors in TensorRT-LLM, whose times jump there). The
other has a form of its own where `set_for` is told (machines/forms/masked), else its tiles are `alone` times as long.
TensorRT-LLM's first kernel cuts a sequence whatever that costs, into parts of 128 tokens until `split_turns` turns of
`set_for` processors are full (eight), no more than the root of eight times their number, rounded down, and each part starts
anew (`per_part`): more sequences may take less time. It cuts all the context; parts that lie beyond a window start too, but
walk nothing. (github.com/NVIDIA/TensorRT-LLM, decoderXQAConstants.h and computeMultiBlockCount.) Over an fp8 cache, where there
is no other kernel, `at_once` of its parts start beside each other on a processor (three, inferred: 256, 512, 1,024 and 2,048 of
them take 1, 2, 3 and 6 times 3.4 us), and a block takes `query_s` longer for each query head.
Both are kernels of decoding; prompts, whose queries exceed a tile, have one of their own (its fmha_v2). Nothing of it was
measured: tiles of 128 rows that walk the blocks of the first (assumed). A few queries more than a tile holds, which is priced
by that kernel, may take half as long as the tile that is full.
FlashAttention-2 cuts only where query heads share a KV head (`alone_whole`; mha_varlen_fwd in its flash_api.cpp: vLLM on A100).
There it takes their queries for as many tokens of one head, which copies queries and results into another order where there are
several sequences and several KV heads (`turn_s`: vLLM's times on A100 jump by 6 us from one sequence to two, but not with one
KV head).
Triton's kernels cut every sequence (`most_parts`): four parts in vLLM's MLA (num_kv_splits in triton_mla.py), in SGLang up
to eight, until max(1, log2(context / 64)) turns are full (its get_num_kv_splits_triton), none of less than a block. That
number of parts is not rounded here, so that a processor more never costs. most_parts of 1: a kernel that never cuts.
Others deal blocks out (`whole_tiles`), so many to each processor, rounded up, that a sequence of n is cut in ceil(n / each)
parts, and in none where that is one. FlashMLA (TensorRT-LLM's MLA on H100) counts five more for the start of each sequence
(`start_blocks`; payload in its get_mla_metadata): each = ceil(tiles (n + 5) / processors), one sequence after another.
FlashAttention-3 (SGLang's MLA on H100) leaves a tenth of the processors spare and makes a sequence's parts of one length
(flash_prepare_scheduler.cu: each = ceil(1.1 tiles n / processors)), of more than four blocks, in no more parts than fill
0.85 of what 128 would (num_splits_heuristic in its heuristics.h). Into how many parts is told by the processors measured, as
a fact, so that a processor more never makes a merge due; how far each walks, by the machine's own. What parts leave lies in
the cache beside the keys, which therefore leave it sooner: 128 parts of 64 heads are 17 MB. Where a
processor's share becomes a whole sequence nothing is merged, so that a few more sequences or queries take less time, with 128
heads up to a half less (64 were measured). Inferred: where parts have one
length, the kernel that merges them reads ahead, so that the longer of its wait and its bytes shows; FlashMLA's adds both up.
Inferred too: a tile's rows cost where there are few tiles (tile_row), since no other hides them; all sequences cost
per_sequence, which a scheduler that looks through them in groups explains (FlashAttention-3's tile_scheduler.hpp);
TensorRT-LLM's MLA takes 1.7 us less of 64 tokens than of two: FlashMLA clears the values of a last block's empty rows, which
might be no numbers (`empty`; fill_oob_V in its splitkv_mla.cuh). So within a block a longer context takes less, by up to empty
for each turn; of a prompt's tiles only those that reach the last block clear it.
vLLM's rows of MLA on A100 take 0.33 ms at any context until kernels take longer: launched one by one (`eager`), t0 is the
host's, and the longer of the two shows (a norm of p = 8). A turn of its kernel is a tile a processor: times go in whole ones.
SGLang reads MLA's fp8 cache by FlashAttention-3 in bf16: it converts all of it before each call (get_key_buffer(..).to(q.dtype)
in its flashattention_backend.py), at a rate that a cache in L2 does not raise (`recasts`, recast_s); what is read then is the
copy, and both take room in the cache.
Blocks and splits: FlashAttention-3 (arXiv 2407.08608, and hopper/tile_size.h of its code: of pages smaller than a block 160
tokens of width 64, 128 of 128, 96 of 192, 64 or 80 of 256, and without overlap of softmax and GEMM for 64 wide under a window),
what a window costs beside (`window_s`, inferred: in vLLM's times 4 us of 64 wide, 1 to 2 of 128, none in SGLang's), flash
decoding (pytorch.org/blog/flash-decoding). Steps: in context where a block or a part begins, in tiles where a turn does or a
processor's share of blocks, in heads per KV head, queries and tiles where the kernel changes, from one sequence to two where
queries are turned round.
Warm cache: memory gives nothing of what lies in it and waits for no results (their writing back goes on beside the next
call's start), and a kernel that waits for each block takes `cached` of its time (SGLang's Triton 0.62: a walk of heads 512
wide takes 1.6 times as long from where the cache leaves L2). Where a benchmark keeps keys and values in one place, memory
gives the share `fetched` of the bytes, a half: the public tables of TensorRT-LLM are of a cache of type SELFKONLY, whose
blocks of values are those of the keys (WindowBlockManager::setOffsets in its kvCacheManager.cpp). Not
modelled: which number of splits FlashAttention's heuristic picks for other heads than MLA's (it cuts below 0.8 of a turn and
beyond four blocks even where merging costs more), a last turn of few tiles, paged layouts' own cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms import masked
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import filled, from_memory, turns_of, waves
from moetrace.op import FloatArray, Works

_WIDTH = 128.0
_ANY_GROUP = 1024.0  # `grouped_rows` of a library with one kernel for any number of query heads
# Of kernels that cut whatever it costs: tokens of a part at least; no more parts than the root of so many times their number.
_PART, _FEWER = 128.0, 8.0
_ENOUGH = 0.85  # of the parts that use most processors, the share that FlashAttention-3 is content with
_PROMPT_ROWS = 128.0  # of a tile, queries, of a prompt's kernel where decoding has others
_MOST = 160.0  # tokens of a block, however narrow the head
_EXACT = 0.005  # of a turn: dealing rounds up wherever the processors are a whole number
_AHEAD = 4.0  # p of the overlap of a merge that reads ahead
_SHARP = 8.0  # p of the overlap within a tile's loop: near the maximum


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    tile, processors = shapes(works, c), at.hw.multiprocessors
    turns = tile.count / processors
    # A kernel that cuts whatever it costs: into as many parts as its context has, until so many turns are full.
    every = c["most_parts"] > 0
    anew = ~(tile.alone | tile.prompt) & (c["split_turns"] > 0) & (not every)
    cut = _dealt(c, tile, turns) if c["whole_tiles"] else _even(c, tile, turns, anew | every)
    if c["set_for"]:
        cut = _anew(c, tile, anew)
    memory_s, far = _memory(c, works, at, tile, cut)
    compute_s = works["flops"] * tile.padding / (c["eta_flops"] * at.peak)
    wide = tile.wide / _WIDTH
    share = np.where(tile.alone, c["alone"], 1.0)
    block_s = (c["block_s"] or c["per_block_s"]) * share + c["even_blocks"] * c["per_wide_s"] * wide
    block_s = block_s + np.where(anew, c["query_s"], 0.0) * tile.rows * wide
    block_s = block_s * (c["cached"] + (1.0 - c["cached"]) * far)
    # A kernel that starts each part anew has at_once of them on a processor from the start.
    slots = np.where(anew, c["at_once"], 1.0)
    whole = turns_of(tile.count * cut.count / slots, c["set_for"], processors)
    walking = turns_of(tile.count * cut.inside, c["set_for"], processors)
    # What is dealt out is all that a processor walks, in however many pieces.
    walks = np.where(cut.dealt, 1.0, _together(walking, c["at_once"], c["beside"]))
    walk_s = walks * cut.walked * block_s
    row_s = tile.rows * (turns * c["per_row_s"] * np.where(anew, 1.0, wide) + whole * c["tile_row_s"] * wide)
    narrow = (works.dim("window", 0.0) > 0) * wide**-2.0
    tile_s = np.where(anew, c["per_part_s"], share * c["per_tile_s"] * wide)
    start_s = whole * (tile_s + c["window_s"] * narrow + c["empty_s"] * tile.empty)
    start_s = start_s + row_s + c["ramp_s"] * far * filled(works["bytes"], at)
    merge_s = _merge(c, tile, cut, anew, processors)
    cut_s = _cut(c, tile, turns, block_s, c["per_split_s"] + c["partial_s"] * tile.left / processors)
    fixed_s = _fixed(c, works, tile, processors)
    one_s = merge_s + smoothmax(c["blend"], start_s, _streamed(memory_s, compute_s, walk_s, block_s))
    split_s = c["split_s"] + smoothmax(c["blend"], start_s, _streamed(memory_s, compute_s, cut_s, block_s))
    # Whether it is cut is no matter of what that costs.
    settled = anew | every | (tile.alone & (c["alone_whole"] > 0))
    overlapped_s = np.where(settled, one_s, np.minimum(one_s, split_s))
    split = ~settled & (c["split_s"] + cut_s < walk_s)
    terms = {
        "launch": fixed_s, "memory": memory_s, "compute": compute_s, "start": start_s,
        "walk": np.where(split, cut_s, walk_s), "split": np.where(split, c["split_s"], merge_s),
    }  # fmt: skip
    if c["set_for"] and tile.alone.any():
        _mask(c, works, at, tile, terms, overlapped_s)
    serial_s = start_s + terms["walk"] + terms["split"]
    # A call that is launched eagerly takes the host's time, beside which its kernels run.
    apart = _SHARP if c["eager"] else 1.0
    expected_s = smoothmax(apart, fixed_s, overlapped_s)
    return Parts(compute_s, memory_s, fixed_s + serial_s, expected_s, terms=terms)


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


def _even(c: Mapping[str, float], tile: Tiles, turns: FloatArray, always: npt.NDArray[np.bool_]) -> Cut:
    """Parts until so many turns are full; no rounding, so that a processor more never costs."""
    full = c["split_turns"] * (tile.growth if c["turns_grow"] else 1.0)
    count = np.where(always, np.maximum(1.0, np.minimum(tile.parts, full / turns)), 1.0)
    walked = np.where(always, np.minimum(tile.blocks, np.maximum(1.0, tile.whole / count)), tile.blocks)
    return Cut(always, count, count, walked, np.zeros_like(always), np.zeros_like(turns))


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


def _dealt(c: Mapping[str, float], tile: Tiles, turns: FloatArray) -> Cut:
    """Each processor takes its share of all blocks.

    That a merge is due, and of how much, is told by the processors of the machine measured (`whole_tiles`), so that one
    more never makes it slower; how far each walks by the machine's own.
    """
    blocks = tile.blocks + c["start_blocks"]
    least = np.ceil(tile.blocks / tile.parts)
    each = np.maximum(np.ceil(tile.count * blocks / c["whole_tiles"]), least)
    count = np.where(tile.blocks > c["whole_blocks"], np.maximum(1.0, np.ceil(tile.blocks / each)), 1.0)
    cuts = count > 1.0
    walked = np.maximum(waves(turns * blocks / c["split_turns"], _EXACT), least)
    if not c["start_blocks"]:  # parts of one length
        walked = waves(tile.blocks / waves(tile.blocks / walked, _EXACT), _EXACT)
    walked = np.where(cuts, np.minimum(tile.blocks, walked), tile.blocks)
    return Cut(cuts, count, count, walked, cuts, np.where(cuts, tile.left * count, 0.0))


def _memory(
    c: Mapping[str, float], works: Works, at: Setting, tile: Tiles, cut: Cut
) -> tuple[FloatArray, FloatArray]:
    """(seconds that memory takes, the share of the bytes that it gives).

    A cache that is converted is read as its copy. The next of a benchmark's calls waits for no results of the last.
    """
    copied = c["recasts"] * 2.0 * works["kv_bytes"]
    far = from_memory(works["bytes"] * c["fetched"] + cut.left + copied, 0.0, at)
    fetched = np.where(tile.alone | (at.cache == "cold"), 1.0, c["fetched"])
    moved = works["bytes"] + copied / 2.0 - (0.0 if at.cache == "cold" else works["act_write_bytes"])
    return moved * fetched * far / (c["eta_bw"] * at.hw.memory.bytes_per_s), far


def _merge(
    c: Mapping[str, float], tile: Tiles, cut: Cut, anew: npt.NDArray[np.bool_], processors: float
) -> FloatArray:
    """Merging the parts of sequences, of a kernel that cuts them whatever it costs."""
    parts = cut.count if c["start_blocks"] else tile.parts
    wait_s = np.where(anew | cut.dealt, c["split_s"], 0.0) + c["per_split_s"] * parts
    left_s = c["partial_s"] * (cut.left if c["whole_tiles"] else tile.left * cut.count) / processors
    # Parts of one length are merged by a kernel that reads ahead.
    ahead = c["whole_tiles"] and not c["start_blocks"]
    return np.where(cut.any & (tile.parts > 1.0), smoothmax(_AHEAD if ahead else 1.0, wait_s, left_s), 0.0)


def _fixed(c: Mapping[str, float], works: Works, tile: Tiles, processors: float) -> FloatArray:
    """What a call takes whatever it streams."""
    out = c["t0_s"] * works["launches"] + np.where(tile.alone, c["alone_s"], 0.0)
    out = out + c["per_sequence_s"] * works.dim("batch", 0.0)
    out = out + np.where(np.log2(tile.wide) % 1 != 0, c["odd_head_s"], 0.0)
    out = out + c["recasts"] * c["recast_s"] * works["kv_bytes"] / processors
    turned = ~tile.alone & (works.dim("batch") > 1.0) & (works.dim("kv_heads") > 1.0)
    return np.asarray(out + c["alone_whole"] * c["turn_s"] * turned)


def _streamed(
    memory_s: FloatArray, compute_s: FloatArray, walk_s: FloatArray, first_s: FloatArray
) -> FloatArray:
    """The first block, which nothing hides, then the longest of what goes on beside each other."""
    rest = 1.0 - np.divide(first_s, walk_s, out=np.ones_like(walk_s), where=walk_s > first_s)
    return np.asarray(first_s + smoothmax(_SHARP, memory_s, compute_s * rest, walk_s * rest))


def _mask(
    c: Mapping[str, float], works: Works, at: Setting, tile: Tiles, terms: Mapping[str, FloatArray],
    overlapped_s: FloatArray,
) -> None:  # fmt: skip
    """Puts the seconds of the kernel for heads that are alone in the place of the other's."""
    rows = np.flatnonzero(tile.alone)
    block_s = (c["block_s"] or c["per_block_s"]) + c["even_blocks"] * c["per_wide_s"]
    token_s = c["alone"] * block_s / c["block_tokens"] * tile.wide[rows] / _WIDTH
    own = masked.seconds(c, works.take(rows), at, token_s)
    terms["memory"][rows], terms["compute"][rows], terms["start"][rows] = own.memory_s, 0.0, own.start_s
    terms["walk"][rows], terms["split"][rows], overlapped_s[rows] = own.walk_s, own.split_s, own.overlapped_s


def _cut(
    c: Mapping[str, float], tile: Tiles, turns: FloatArray, per_block_s: FloatArray, per_part_s: FloatArray
) -> FloatArray:
    """The walk and merge of a sequence cut in as many parts as idle processors, unless merging one more costs what it saves."""
    nothing = np.full_like(turns, np.inf)
    most = np.sqrt(np.divide(tile.blocks * per_block_s, per_part_s, out=nothing, where=per_part_s > 0))
    parts = np.minimum(np.minimum(tile.blocks, np.minimum(most, c["max_splits"])), 1.0 / turns)
    parts = np.maximum(1.0, parts)
    return np.asarray(tile.blocks * np.maximum(turns, 1.0 / parts) * per_block_s + per_part_s * parts)


def _together(turns: FloatArray, at_once: float, beside: float) -> FloatArray:
    """Turns in the time of a tile alone, where up to `at_once` run on a processor and each but the first adds `beside`."""
    groups, rest = np.divmod(turns, at_once)
    more = np.minimum(rest, 1.0) + np.maximum(rest - 1.0, 0.0) * beside
    return np.asarray(groups * (1.0 + (at_once - 1.0) * beside) + more)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of attention ops, [ops] each.

    How many, rows of one, blocks that one walks, FLOPs of whole tiles and blocks over those asked for, width of a head
    (MLA's as 128), parts that its context can be cut into and its blocks, both with what lies beyond a window, how much
    further turns are filled for its context, bytes that each part leaves for the merge, the share of its context inside a
    window, and whether each query head has tiles of its own, or they are those of a prompt's kernel.
    """

    count: FloatArray
    rows: FloatArray
    blocks: FloatArray
    padding: FloatArray
    wide: FloatArray
    parts: FloatArray
    whole: FloatArray
    growth: FloatArray
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
    # Kernels that were set up for decoding take one query, or as many as a tile holds; prompts have another.
    several = (c["set_for"] > 0) & (queries > batch)
    each = queries / batch
    prompt = several & (group * each > c["tile_rows"])
    tile_rows = np.where(prompt, _PROMPT_ROWS, c["tile_rows"])
    alone = (grouped_rows < _ANY_GROUP) & ((group <= 1.0) | ~mla & ((group > grouped_rows) | few)) & ~several
    kv_heads = np.where(alone, heads, kv_heads)
    rows = heads / kv_heads * each
    shown = np.where(mla, _WIDTH, np.maximum(wide, 1.0))
    most = max(_MOST, c["block_tokens"])
    block = c["block_tokens"] if c["even_blocks"] else np.minimum(most, c["block_tokens"] * _WIDTH / shown)
    blocks = np.ceil(context / block) + (works.dim("window", 0.0) > 0)
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
        growth=np.maximum(1.0, np.log2(context / 64.0)), left=4.0 * heads * queries * value,
        empty=(np.ceil(context / block) - context / block) * np.minimum(1.0, block / each), inside=context / uncut,
        prompt=prompt,
    )  # fmt: skip


FORM = Form(SCHEMAS["attention"], seconds, ("context",))
