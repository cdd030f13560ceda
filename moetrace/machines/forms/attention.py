"""The form of attention (MHA, GQA, MLA; decode and prefill): tiles of query rows that walk blocks of KV tokens.

    tile     = up to tile_rows rows (queries x heads) of one sequence and KV head, all heads of MLA (value_tiles of it)
    blocks   = KV tokens of a sequence / (block_tokens x 128 / width, at most 160 where more than a block 128 wide has), rounded
               up: kernels size a block to what a processor holds; those that a window touches; as many tokens at any width in
               even_blocks
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs of whole tiles and blocks / (eta_flops x peak)
    start    = (turns x (per_tile + rows of a tile x tile_row) + tiles / processors x rows of a tile x per_row) x width / 128
               + ramp, turns = tiles / processors; turns x empty x empty part of the last block; and window x turns x
               (128 / width)^2 where a window cuts sequences; and `crowd`
    walks    = turns, up to at_once of a processor's tiles beside each other: all but the first add `beside` of a walk
    stream   = one block + max of memory, the other blocks' compute and their serial walk: walks x blocks x per_block,
               and `later` from a second block on
    expected = t0 + per_sequence x sequences + (start^p + stream^p)^(1/p) + odd_head where a head is no power of two wide
               + recast of the cache
    split    = if it takes less: split_s + per_split and partial_s x parts more, and a sequence's KV cut so that idle
               processors walk too

Why: many short sequences cost per tile, and per row where many query heads share a KV head; few long ones are cut (flash
decoding), long batches stream at the memory's rate. Nothing hides the first block of a tile, and `ramp` is what memory takes
to stream: in the public tables 64 MB and 1 GB both take FlashAttention-3 on H100 12 to 15 us more than their bytes at 0.93 of
the bandwidth. A walk is latency: tiles of one processor hide each other's (`beside`; inferred: TensorRT-LLM's MLA on A100
takes 1.00, 1.36, 2.36, 3.7 and 6.9 of one tile's time with 1, 2, 3, 5 and 10 on a processor, at every context).

Given, not fitted. In decode a walk, memory and padded arithmetic are all in proportion to the bytes, and one chip's rows
cannot tell which of them it is; another chip's can. So what is known of a kernel is given: `block_s`, since H100's times of
one, two and four blocks, whose bytes lie in cache, rise by 1.1 us a block in FlashAttention-3 (1.4 here, nearer to the best
fit, 1.7) and 1.6 in its MLA (2.4 from memory: the fourth and the fifth block of 38 MB, of which memory gives a part, take 2.3
to 2.7); `eta_flops`, 0.67 as FlashMLA reaches (660 of 989 TFLOP/s: github.com/deepseek-ai/FlashMLA). Then memory limits what
reached 0.9 of its bandwidth. The parts of a sequence leave rows x width of values in float32, which merging reads: partial_s
of these bytes per processor, most where MLA has many heads.

Two kernels. Some libraries have one for query heads that share a KV head, and one with each query head alone, taken where
nothing is shared and where more share than the first holds (`grouped_rows`; 32 in TensorRT-LLM: at 64 its time jumps to that
of as many heads alone), or where the first would have fewer than `grouped_tiles` tiles and parts of 128 tokens (a quarter of
the processors in TensorRT-LLM, whose times jump there). The other has a form of its own where `set_for` is told
(machines/forms/masked), else its tiles are `alone` times as long.

Cut whatever it costs. TensorRT-LLM's first kernel cuts a sequence whatever that costs, into parts of 128 tokens until
`split_turns` turns of `set_for` processors are full (eight), no more than the root of eight times their number, rounded down,
and each part starts anew (`per_part`): more sequences may take less time. It cuts all the context; parts that lie beyond a
window start too, but walk nothing and take half of the others' time in merging (inferred). Its tiles are filled to 16 rows, 16
more take `several` (warpTile in xqa/mha.cu). While a processor starts a part, memory gives others their bytes: the longer of
memory and all turns, starts and walks, and no ramp. What ends a tile's last part merges them all, as often as a processor has
tiles, while others wait (`merge_s`; inferred: cut in two, tiles take 1.8 us more in one turn, 3.4 in two or more). A kernel
before it makes queries and keys ready (`shared`), which the other one does itself. (github.com/NVIDIA/TensorRT-LLM,
decoderXQAConstants.h and computeMultiBlockCount.) Over an fp8 cache, where there is no other kernel, `at_once` of its parts
start beside each other on a processor (three, inferred: 256, 512, 1,024 and 2,048 of them take 1, 2, 3 and 6 times 3.4 us; of
heads 64 wide four, `narrow_at_once`: 512 in one turn; one less where a tile has more than 16 rows: 32 heads 128 wide take four
turns of 1,024 parts), a block takes `query_s` longer for each query head, and parts beyond a window end at once, in a tenth of
the time (`skips`, inferred: a window of 128 tokens takes 8 us whether its context has two parts or 90, and 512 of them take
the second turn of 1,024 parts).

Drafted tokens and prompts. Both are kernels of decoding. Several queries of a sequence, whatever their heads share, are
drafted tokens up to 32: tiles of 16 rows (of 32 from 17 queries on) that read what their sequence's others do, cut as so many
tiles are (multi_query_tokens in decoderXQAImplPrecompiled.cpp; none was fitted, so that what fills more than a tile has the
prompts' further error). More are a prompt, of a kernel of its own (its fmha_v2), which cuts nothing: the 33rd query of one
long sequence takes up to ten times as long, and heads that are alone less with two queries than with one. Where `prompt_flops`
is told, several queries that fill more than a tile of decoding keep matrix units and exponentials busy
(machines/forms/prompts), and begin a tile as decoding does. The shares are of published speeds, not fitted: 0.89 of
FlashAttention-2 on A100 (73 % of the peak, arXiv 2307.08691; taken for FlashInfer and TensorRT-LLM there too), 0.49 of Triton
and 0.87 of cuDNN on H100 (395 and 617 TFLOP/s of heads 128 wide, arXiv 2407.08608, figure 5), the latter for TensorRT-LLM.

FlashAttention-2 and Triton. The former cuts only where query heads share a KV head and each sequence has one query
(`alone_whole`; mha_varlen_fwd in its flash_api.cpp: vLLM on A100), so that one sequence of 32,768 tokens takes 20 times as long
with two queries as with one (by its rule; no such row was fitted). There it takes the heads' queries for as many tokens of one
head, which copies queries and results into another order where there are several sequences and several KV heads (`turn_s`:
vLLM's times on A100 jump by 6 us from one sequence to two, but not with one KV head). vLLM's Triton kernel of MLA cuts every
sequence (`most_parts`) in four parts (num_kv_splits in triton_mla.py), none of less than a block. That number of parts is not
rounded here, so that a processor more never costs. most_parts of 1: a kernel that never cuts. SGLang's Triton kernels have a
form of their own where `triton` is told (machines/forms/triton).

Blocks dealt out. Others deal blocks out (`whole_tiles`), so many to each processor, rounded up, that a sequence of n is cut in
ceil(n / each) parts, and in none where that is one. FlashMLA (TensorRT-LLM's MLA on H100) counts five more for the start of
each sequence (`start_blocks`; payload in its get_mla_metadata): each = ceil(tiles (n + 5) / processors), one sequence after
another, the next with what is left of a processor's share. FlashAttention-3 (SGLang's MLA on H100) leaves a tenth of the
processors spare and makes a sequence's parts of one length (flash_prepare_scheduler.cu: each = ceil(1.1 tiles n /
processors)), of more than four blocks, in no more parts than fill 0.85 of what 128 would (num_splits_heuristic in its
heuristics.h). So a fifth block, from which on it cuts, may take less than four walked one after the other: with keys from
memory 2 us less, in the tables, where they lie in cache, 0.6 less (8 heads) to 0.6 more. Into how many parts is told by the
processors measured, as a fact, so that a processor more never makes a merge due; how far each walks, by the machine's own.
What parts leave lies in the cache beside the keys, which therefore leave it sooner: 128 parts of 64 heads are 17 MB. Where a
processor's share becomes a whole sequence nothing is merged, so that a few more sequences or queries take less time, with 128
heads up to a half less (64 were measured). FlashAttention-3 launches the kernel that merges wherever sequences have more than
those four blocks and fewer tiles of queries than fill 0.8 of the processors: for every eight rows of all of them, which end at
once where nothing was cut (`merge_s`). Rows that eight heads lack walk as many parts as the kernel was compiled for (32, 64 or
128, whichever holds 0.85 of the blocks), not those that there are, since it leaves their shared memory as it was and takes
that for parts (`idle_s`; flash_fwd_combine_kernel.h, and kBlockM in its launch template: `merged_rows`). So one head takes
longer than eight: 64 sequences of 8,192 tokens 230 us, not 217. The same holds of MHA and GQA, in SGLang and in vLLM
(machines/forms/flash3).

Starting together. Kernels that deal blocks out have one tile on a processor, and the more of them start together, the later
comes what each loads first, its queries and a block (`crowd`, for each 40 rows beyond 40 and each doubling of tiles and parts
beyond 16; inferred: SGLang's times of 64 tokens grow by 0.5 us more than those of 32 from 16 sequences to 32, and by 0.9 to
128, those of 64 heads as much more than those of eight). From a second block on a walk runs code that the first, which alone
is masked, did not (`later`; inferred: FlashMLA's second block takes 2.7 us, the next ones 2). What parts leave costs 0.3 us a
MB in the cache and up to 0.5 beyond it: half of it is written to memory as far as that gives the bytes (inferred).

Rows, sequences, ends. Inferred too: a tile's rows cost where there are few tiles (tile_row), since no other hides them; all
sequences cost per_sequence, which a scheduler that looks through them in groups explains (FlashAttention-3's
tile_scheduler.hpp); TensorRT-LLM's MLA takes 1.7 us less of 64 tokens than of two: FlashMLA, unlike FlashAttention-3, clears
the values of a last block's empty rows, which might be no numbers (`empty`; fill_oob_V in its splitkv_mla.cuh). So within a
block a longer context takes less, by up to empty for each turn; of a prompt's tiles only those that reach the last block clear
it.

Other costs of a call. vLLM's rows of MLA on A100 take 0.33 ms at any context until kernels take longer: launched one by one
(`eager`), t0 is the host's, and the longer of the two shows (a norm of p = 8). A turn of its kernel is a tile a processor:
times go in whole ones. SGLang reads MLA's fp8 cache by FlashAttention-3 in bf16: it converts all of it before each call
(get_key_buffer(..).to(q.dtype) in its flashattention_backend.py), at a rate that a cache in L2 does not raise (`recasts`,
recast_s), and no sooner than one element takes to pass (recast_least_s); what is read then is the copy, and both take room in
the cache.

Sources and steps. Blocks and splits: flash decoding (pytorch.org/blog/flash-decoding); FlashAttention-3 (arXiv 2407.08608) has
a form of its own where `flash3` is told (machines/forms/flash3). Steps: in context where a block or a part begins, in tiles
where a turn does or a processor's share of blocks, in heads per KV head, queries and tiles where the kernel changes, from one
sequence to two where queries are turned round.

Warm cache. Memory gives nothing of what lies in it. A call waits for no results, whose writing back goes on beside the next
call's start, but takes no less than memory needs for all bytes that leave the cache, results too. A kernel that waits for each
block takes `cached` of its time. Where a benchmark keeps keys and values in one place, memory gives the share `fetched` of the
bytes, a half: the public tables of TensorRT-LLM are of a cache of type SELFKONLY, whose blocks of values are those of the keys
(WindowBlockManager::setOffsets in its kvCacheManager.cpp). Not modelled: a last turn of few tiles, paged layouts' own cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms import flash3, masked, prompts, triton
from moetrace.machines.forms.attention_merge import merging
from moetrace.machines.forms.attention_tiles import WIDTH, Cut, Tiles, cuts, shapes
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import PAGED, filled, from_memory, together, turns_of, unawaited
from moetrace.op import FloatArray, Works

# Inferred of kernels that deal out blocks: rows, of queries and keys, that load while a tile starts; tiles that load at once
# without delay; of what parts leave and memory gave back, the share that is written there.
_UNSEEN, _FREE, _BACK = 40.0, 16.0, 0.5
_NARROW = 64.0  # width up to which a head is narrow
_PADDED = 16.0  # rows that tiles of parts that start anew are filled to
_ENDED = 0.1  # of a part's time in its place, that of one which lies beyond a window and ends at once
_LATENCY = 3.0  # p of an element's way through a kernel and of how many there are
_SHARP = 8.0  # p of the overlap within a tile's loop: near the maximum


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of attention ops, [ops]; nan where batch, heads or context is not known."""
    if c["flash3"]:
        return flash3.seconds(c, works, at)
    priced = triton.seconds if c["triton"] else _tiled
    fixed_s, terms, overlapped_s = priced(c, works, at)
    further = prompts.instead(c, works, at, terms, overlapped_s) if c["prompt_flops"] else None
    serial_s = terms["start"] + terms["walk"] + terms["split"]
    # A call that is launched eagerly takes the host's time, beside which its kernels run.
    apart = _SHARP if c["eager"] else 1.0
    expected_s = smoothmax(apart, fixed_s, overlapped_s)
    return Parts(
        terms["compute"], terms["memory"], fixed_s + serial_s, expected_s, terms=terms, further=further
    )


def _tiled(
    c: Mapping[str, float], works: Works, at: Setting
) -> tuple[FloatArray, dict[str, FloatArray], FloatArray]:
    """(seconds of the launch, of each term, and of all but the launch) of the kernels that have no form of their own."""
    tile, processors = shapes(works, c), at.hw.multiprocessors
    turns = tile.count / processors
    # A kernel that cuts whatever it costs: into as many parts as its context has, until so many turns are full.
    every = c["most_parts"] > 0
    anew = ~(tile.alone | tile.prompt) & (c["split_turns"] > 0) & (not every)
    cut = cuts(c, tile, processors, anew, every)
    read_s, memory_s, far = _memory(c, works, at, tile, cut)
    compute_s = works["flops"] * tile.padding / (c["eta_flops"] * at.peak)
    wide = tile.wide / WIDTH
    share = np.where(tile.alone, c["alone"], 1.0)
    block_s = (c["block_s"] or c["per_block_s"]) * share + c["even_blocks"] * c["per_wide_s"] * wide
    block_s = block_s + np.where(anew, c["query_s"], 0.0) * tile.rows * wide
    block_s = block_s * (c["cached"] + (1.0 - c["cached"]) * far)
    # A kernel that starts each part anew has at_once of them on a processor from the start.
    held = np.where(tile.wide <= _NARROW, c["narrow_at_once"] or c["at_once"], c["at_once"])
    held = np.maximum(1.0, held - (tile.rows > _PADDED))
    slots = np.where(anew, held, 1.0)
    begun = cut.inside + (_ENDED if c["skips"] else 1.0) * (cut.count - cut.inside)
    whole = turns_of(tile.count * begun / slots, c["set_for"], processors)
    walking = turns_of(tile.count * cut.inside, c["set_for"], processors)
    # What is dealt out is all that a processor walks, in however many pieces.
    walks = np.where(cut.dealt, 1.0, together(walking, c["at_once"], c["beside"]))
    later_s = c["later_s"] * np.minimum(1.0, cut.walked - 1.0) if c["whole_tiles"] else 0.0
    walk_s = walks * (cut.walked * block_s + later_s)
    row_s = tile.rows * wide * (turns * c["per_row_s"] + whole * c["tile_row_s"])
    under = (works.dim("window", 0.0) > 0) * wide**-2.0
    tile_s = np.where(
        anew,
        c["per_part_s"] + c["several_s"] * wide * (np.ceil(tile.rows / _PADDED) - 1.0),
        share * c["per_tile_s"] * wide,
    )
    cleared_s = 0.0 if c["whole_blocks"] else c["empty_s"]
    start_s = whole * (tile_s + c["window_s"] * under + cleared_s * tile.empty)
    ramp_s = np.where(anew, 0.0, c["ramp_s"] * far * filled(works["bytes"], at))
    start_s = start_s + row_s + _crowded(c, works, tile, cut) + ramp_s
    merge_s = merging(c, works, tile, cut, anew, processors)
    cut_s = _cut(c, tile, turns, block_s, c["per_split_s"] + c["partial_s"] * tile.left / processors)
    fixed_s = _fixed(c, works, tile, processors) + np.where(anew, c["shared_s"], 0.0)
    one_s = merge_s + np.where(
        anew,
        smoothmax(_SHARP, read_s, compute_s, start_s + walk_s),
        smoothmax(c["blend"], start_s, _streamed(read_s, compute_s, walk_s, block_s)),
    )
    split_s = c["split_s"] + smoothmax(c["blend"], start_s, _streamed(read_s, compute_s, cut_s, block_s))
    # Whether it is cut is no matter of what that costs.
    settled = anew | every | ((c["alone_whole"] > 0) & (tile.alone | _several(works)))
    overlapped_s = np.maximum(memory_s, np.where(settled, one_s, np.minimum(one_s, split_s)))
    split = ~settled & (c["split_s"] + cut_s < walk_s)
    terms = {
        "launch": fixed_s, "memory": memory_s, "compute": compute_s, "start": start_s,
        "walk": np.where(split, cut_s, walk_s), "split": np.where(split, c["split_s"], merge_s),
    }  # fmt: skip
    if c["set_for"] and tile.alone.any():
        masked.instead(c, works, at, tile, terms, overlapped_s)
    return fixed_s, terms, overlapped_s


def _memory(
    c: Mapping[str, float], works: Works, at: Setting, tile: Tiles, cut: Cut
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(seconds of what a call waits for from memory, of all that memory moves, the share of the bytes that it gives).

    A cache that is converted is read as its copy.
    """
    copied = c["recasts"] * 2.0 * works["kv_bytes"]
    far = from_memory(works["bytes"] * c["fetched"] + cut.left + copied, 0.0, at, PAGED)
    fetched = np.where(tile.alone | (at.cache == "cold"), 1.0, c["fetched"])
    moved = works["bytes"] + _BACK * cut.left + copied / 2.0
    byte_s = fetched * far / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    return (moved - unawaited(works, at)) * byte_s, moved * byte_s, far


def _crowded(c: Mapping[str, float], works: Works, tile: Tiles, cut: Cut) -> FloatArray:
    """What tiles and parts that start together wait for what they load first, of a kernel that deals out blocks."""
    if not c["whole_tiles"]:
        return np.zeros_like(tile.count)
    tokens = np.minimum(works.dim("kv") / np.maximum(works.dim("batch"), 1.0), c["block_tokens"])
    seen = np.maximum(0.0, tile.rows + tokens - _UNSEEN) / _UNSEEN
    return np.asarray(c["crowd_s"] * seen * np.log2(np.maximum(1.0, tile.count * cut.count / _FREE)))


def _fixed(c: Mapping[str, float], works: Works, tile: Tiles, processors: float) -> FloatArray:
    """What a call takes whatever it streams."""
    out = c["t0_s"] * works["launches"] + np.where(tile.alone, c["alone_s"], 0.0)
    out = out + c["per_sequence_s"] * works.dim("batch", 0.0)
    out = out + np.where(np.log2(tile.wide) % 1 != 0, c["odd_head_s"], 0.0)
    if c["recasts"]:
        cast_s = c["recast_s"] * works["kv_bytes"] / processors
        out = out + smoothmax(_LATENCY, np.full_like(cast_s, c["recast_least_s"]), cast_s)
    turned = ~tile.alone & ~_several(works) & (works.dim("batch") > 1.0) & (works.dim("kv_heads") > 1.0)
    return np.asarray(out + c["alone_whole"] * c["turn_s"] * turned)


def _several(works: Works) -> npt.NDArray[np.bool_]:
    """Whether sequences have more than one query, [ops]."""
    return np.asarray(works.dim("q", 0.0) > np.maximum(works.dim("batch"), 1.0))


def _streamed(
    memory_s: FloatArray, compute_s: FloatArray, walk_s: FloatArray, first_s: FloatArray
) -> FloatArray:
    """The first block, which nothing hides, then the longest of what goes on beside each other."""
    rest = 1.0 - np.divide(first_s, walk_s, out=np.ones_like(walk_s), where=walk_s > first_s)
    return np.asarray(first_s + smoothmax(_SHARP, memory_s, compute_s * rest, walk_s * rest))


def _cut(
    c: Mapping[str, float], tile: Tiles, turns: FloatArray, per_block_s: FloatArray, per_part_s: FloatArray
) -> FloatArray:
    """The walk and merge of a sequence cut in as many parts as idle processors, unless merging one more costs what it saves."""
    nothing = np.full_like(turns, np.inf)
    most = np.sqrt(np.divide(tile.blocks * per_block_s, per_part_s, out=nothing, where=per_part_s > 0))
    parts = np.minimum(np.minimum(tile.blocks, np.minimum(most, c["max_splits"])), 1.0 / turns)
    parts = np.maximum(1.0, parts)
    return np.asarray(tile.blocks * np.maximum(turns, 1.0 / parts) * per_block_s + per_part_s * parts)


FORM = Form(SCHEMAS["attention"], seconds, ("context",))
