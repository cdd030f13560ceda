"""TensorRT-LLM's attention with a thread block for each query head (its masked multi-head attention kernel).

    tiles    = sequences x query heads; told = set_for, the processors that the kernel was set up for
    slots    = tiles of a processor at once: 1, 2 or 4, so that 4 x told / tiles is filled, of 1024, 512 or 256 threads
    parts    = below `told` tiles: told / tiles, rounded up, of no fewer tokens than 512 x 128 / width
    walk     = slots x tokens of a part x width / 128 at block_tokens in per_block x alone, at least least_s x wide once
               every thread has a token; wide = slots x width / 128, at most 1; of a last turn less, as processors have fewer
    memory   = bytes / (eta_bw x bandwidth): all keys, then all values of a tile
    expected = t0 + turns x (per_tile + tile_wide x wide) + max(memory + what a last, partial turn walks longer,
               turns x (walk + alone_split where cut))

The rule is that of decoderMaskedMultiheadAttentionLaunch.h (multi_block_grid_setup; 32 warps on a processor) and
AttentionOp::getMaxNumSeqLenTile (github.com/NVIDIA/TensorRT-LLM). So 128 tiles cut in two fill 132 processors twice and take
longer than 256 that are not cut; the public tables have these steps in tiles and in context. Rounding up to processors is by
the `told` ones: a processor more never makes a cut due. Inferred: that 1024 threads take less time of heads 64 wide than of
heads 128 wide, and 512 do not (on H100 a tile alone on a processor takes 7.6 and 8.5 us, from 64 tokens on 8.7 and 11; one of
two 8.4 and 11, both). Where a benchmark keeps keys and values in one place (`fetched` below 1), values come from the cache as
far as the keys of the tiles under way fit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moetrace.machines.forms.attention_tiles import WIDTH, Tiles
from moetrace.machines.forms.base import Setting, smoothmax
from moetrace.machines.forms.tiles import PAGED, from_memory, turns_of
from moetrace.op import FloatArray, Works

_WARPS = 4.0  # thread blocks of the fewest threads, 256, that the registers of a processor hold
_LOOP = 512.0  # tokens, of heads 128 wide, that the most threads, 1024, take in a round: of a part at least
_FIRST = 64.0  # the same of one step of the round, which values are read in
_SHARP = 8.0
_EDGE = 1e-9  # rounding of tiles


@dataclass(frozen=True, slots=True)
class Alone:
    """Seconds of these ops by what they are spent on, [ops]: see the formula."""

    memory_s: FloatArray
    start_s: FloatArray
    walk_s: FloatArray
    split_s: FloatArray
    overlapped_s: FloatArray


def seconds(c: Mapping[str, float], works: Works, at: Setting, token_s: FloatArray) -> Alone:
    """Seconds of query heads that are alone; `token_s`: what a token of a tile takes a processor, [ops]."""
    told = c["set_for"]
    batch = np.maximum(works.dim("batch"), 1.0)
    tiles, width = batch * works.dim("heads"), works.dim("head_dim")
    context = np.maximum(works.dim("kv") / batch, 1.0)
    uncut = np.fmax(works.dim("context"), context)
    slots = np.where(tiles <= told, 1.0, np.where(tiles < _WARPS * told, 2.0, _WARPS))
    threads = _WARPS / slots
    parts = np.minimum(np.ceil(told / tiles), np.floor(uncut * width / (_LOOP * 128.0)) + 1.0)
    tokens = context / parts
    turns = tiles * parts / slots
    whole = turns_of(turns, told, at.hw.multiprocessors)
    # Of heads 64 wide 1024 threads add up as many rows at once as there are at all.
    wide = np.minimum(1.0, slots * width / 128.0)
    least_s = c["least_s"] * np.minimum(wide, tokens * width / (128.0 * _FIRST / _WARPS * threads))
    walk_s = np.maximum(least_s, slots * tokens * token_s)
    start_s = whole * (c["per_tile_s"] + c["tile_wide_s"] * wide)
    split_s = whole * c["alone_split_s"] * (parts > 1.0)
    # Where keys and values lie in one place: the keys of the tiles under way wait in the cache for their values' turn.
    kept = c["fetched"] if at.cache == "warm" else 1.0
    under_way = works["kv_bytes"] * kept * np.minimum(1.0, told / turns)
    read = kept + (1.0 - kept) * from_memory(under_way, 0.0, at, PAGED)
    far = from_memory(works["bytes"] * c["fetched"], 0.0, at, PAGED)
    memory_s = works["bytes"] * read * far / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    full = np.floor(turns / told)
    rest = np.where(full > 0, turns / told - full, 0.0)
    # A last turn of fewer tiles: each processor shares its rate out over those it has.
    share = np.where(rest > 0, np.ceil(rest * slots - _EDGE) / slots, full < 1.0)
    tail_s = np.where(rest > 0, np.maximum(0.0, walk_s * share - memory_s * rest * told / turns), 0.0)
    walks = whole * (full + share) / np.ceil(turns / told)
    walked_s = split_s + walks * walk_s
    # The tail is a walk's, which walked_s has too: no more than memory and all walks.
    streamed_s = np.minimum(smoothmax(_SHARP, memory_s + tail_s, walked_s), memory_s + walked_s)
    return Alone(memory_s, start_s, walks * walk_s, split_s, start_s + streamed_s)


def instead(
    c: Mapping[str, float], works: Works, at: Setting, tile: Tiles, terms: Mapping[str, FloatArray],
    overlapped_s: FloatArray,
) -> None:  # fmt: skip
    """Puts the seconds of the kernel for heads that are alone in the place of the other's."""
    rows = np.flatnonzero(tile.alone)
    block_s = (c["block_s"] or c["per_block_s"]) + c["even_blocks"] * c["per_wide_s"]
    token_s = c["alone"] * block_s / c["block_tokens"] * tile.wide[rows] / WIDTH
    own = seconds(c, works.take(rows), at, token_s)
    terms["memory"][rows], terms["compute"][rows], terms["start"][rows] = own.memory_s, 0.0, own.start_s
    terms["walk"][rows], terms["split"][rows], overlapped_s[rows] = own.walk_s, own.split_s, own.overlapped_s
