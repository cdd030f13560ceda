"""The form of dense and batched GEMMs: tiles of rows x columns of the output, each with a serial loop over the reduction.

    tile     = by the kernel's rule, or of those that a library has (64 x 64 to 128 x 256) the one that takes least; no more
               rows than the next power of two, at least `least_rows`
    loop     = k x (per_k + per_k_row x 128 x area), area = rows x columns / (128 x 128)
    serial   = per_tile x area + loop of the first turn + (per_turn x area + loop) x further turns, of kernels that persist
               (per_turn^2 + loop^2)^(1/2) x further turns; turns = tiles / processors, whole ones
    launch   = t0 + misaligned where four does not divide the rows + reach, of the kernel, where the weights come from memory
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs / (eta_flops x peak)
    convert  = of activations below 16 bits, convert x (2 bytes in, their own type out) / bandwidth, before the GEMM; of rows
               that are padded (`pads`) as much for their own type in and out
    fill     = bytes of the rows that tiles hold and the GEMM has not, once for each tile of columns, x per_empty, and once
               x per_empty_tile: not below crowd / 2 tiles, in full from `crowd` on
    delivered = (memory^p + (serial + fill)^p)^(1/p)         waited = waits x serial + fill
    expected = launch + convert + (delivered^q + (compute + waited)^q - waited^q)^(1/q)
    split-K  = if it takes less: split_s more and the reduction shared out, `serial` of turns that are not whole
               + split_tile x area

Why: time at few rows is flat in them and, for few outputs, linear in k whatever the bytes: one tile's loop. Beyond some k a
library that can splits it, and adds up partial sums, as large as its tiles (tiles, split-K, waves: NVIDIA CUTLASS
documentation, "Efficient GEMM in CUDA"). Many outputs of a short reduction cost by the tile, which begins by waiting for
memory and ends by writing; a kernel that persists (CUTLASS's and DeepGEMM's on Hopper; a library's need not, and A100's do
not) does so for one tile while another's loop runs, so that each further turn takes the longer of both (their root of
squares). Such a start takes a tile of 64 x 64 as long as one of 128 x 128 (measured: 1.9 us a turn of vLLM's CUTLASS FP8
with 1 row and 128 k, 1.6 with 256). Arithmetic hides what memory delivers and, of a tile's loop, all but the share `waits`:
what it waits for, which is next to all of it where tiles are a library's (cuBLAS, whose arithmetic the second term has),
half of it where `per_k_row` has some of their arithmetic. Results are written in 16 bits also where 8 were multiplied.
Engines convert activations to FP8 in a kernel of its own, which the measured modules include: with many rows of a long
reduction it takes as long as the GEMM.
Rules: vLLM's CUTLASS FP8 kernel has 64 columns up to 64 rows (tiles of 16 rows up to 16, and up to 1,280 columns), 64 x 128
up to 128 rows, then 128 x 128 (its scaled_mm_sm90_fp8_dispatch.cuh), with scales of blocks always 128 x 128
(scaled_mm_blockwise_sm90_fp8_dispatch.cuh). The former does not persist up to 64 rows, where it is turned round (its schedules
without Pingpong); beyond it takes a quarter of a tile's start longer to set up, and its processors take two tiles of rows
together (clusters of 2 x 1), so that 257 rows take as many as 512. SGLang's does the same, but for tiles of 32 rows from 17 to
32 of them, and of 64 x 64 from 65 to 128 rows and up to 4,096 columns (its sgl-kernel, fp8_gemm_sm90_dispatch.cuh, pull request
25532). No FP8 kernel but cuBLAS (TensorRT-LLM's) shows a split. A kernel set up for `chosen_for` processors takes whole
turns of these: 400 tiles on 132 are four.
MLA's two absorbed projections, a matrix for each head in one launch (`batched_gemm`), have coefficients of their own where a
profile has them, else a dense GEMM's; an op's provenance says which. A dense GEMM's are 1 us too low for up to 8 heads on
H100, 2 on A100.
SGLang's DeepGEMM picks by its heuristics, TensorRT-LLM's copy by their former ones (forms/deepgemm). Where its blocks of rows
are odd in number and share their columns, the last reads the weights again unless a cache holds them: 192 rows of 16,384
columns take 1.9 times as long as the weights do. Columns that do not divide 128 have scales of two blocks of weights, which the
kernel then picks between (its kMustUseUniformedScaleB), and take a tenth longer (`uneven`). Inferred: its largest blocks
(128 x 192, 256 x 128), which it takes where they fill a single turn, take four times as long there (`alone`), with 256 rows of
16,384 columns as with 768 of 4,096, 128 x 160 half as much again, and not where several turns share what they read.
Inferred: fill. FP8 kernels take up to twice as long at 129 rows as at 256 and get faster from row to row between, cuBLAS's do
not. What more they take is proportional to the empty rows and to k. It is the same where one tile in five is ragged as where
half are, and grows with those that are beyond: zeros come to a processor at 120 to 200 GB/s (5 to 8 ps a byte; half of SGLang's
and vLLM's FP8 kernels') and to all at 5 to 6 TB/s, the rate of L2 (TensorRT-LLM's block FP8: 20 ps a byte of one row with 64
ragged tiles, 120 with 460). Below 40 tiles on 132 processors there is none, from 90 on all (65 rows in 32, 48 and 64 tiles of
TensorRT-LLM's block FP8, 129 in 48, 56 and 80 of vLLM's FP8). DeepGEMM notes a limit of loads beyond the
rows (its heuristics/sm90.hpp), and reads few rows in blocks of 16 or 32. Steps: in rows where a tile's rows or columns change,
and wherever a further tile begins.
Warm cache: the benchmark of the public tables calls as many `copies` of the weights in turn (five for TensorRT-LLM, six for
vLLM and SGLang, as its collect_gemm.py says and fits find), all on the same activations: where all of these lie in the cache,
they cost the share `cached`, and so do the activations that are read where they lie there beside one call's weights and
results. Where its weights come from memory an FP8 kernel begins later (`reach`): as six copies of them come to exceed 30 MB,
times at 1 to 256 rows step by 1.3 us (SGLang's, vLLM's block FP8) or 0.7 (vLLM's FP8, TensorRT-LLM's block FP8) whatever the
shape, cuBLAS's hardly. A benchmark of one copy leaves a call's results there too: all that it moves costs that share where all
of it fits (64 matrices of 512 x 128 on H100: 320 rows move 35 MB in 9 us, 512 rows 50 MB in 23). Serving's lie nowhere.
Copies: vLLM's block FP8 pads rows that four does not divide, and their scales, in kernels that take 5 us, a third of it with
one row, and longer by the byte, at the pace of its conversion (161 rows of 65,536 k take 11 us longer than 160 do); where
the reduction is a single block of 128 all its calls take half of that more (10.9 us of 128 k, 8.7 of 256).
Not modelled: stream-K, clocks, scales of odd layouts, vLLM's tiles of 256 rows (from 8,192 rows and a reduction of 6,144 on),
what CUTLASS reads again where an operand exceeds the cache (50,000 columns).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms import deepgemm
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import beyond_cache, from_memory, turns_of, waves
from moetrace.op import FloatArray, Works

_TILES = (
    (64.0, 64.0),
    (64.0, 128.0),
    (128.0, 128.0),
    (128.0, 256.0),
)  # rows, columns, of a library that picks
_FEWEST, _FEW, _SHORT, _FULL = 16.0, 32.0, 64.0, 128.0
_LATER = 0.25  # of a tile of 128 x 128: two groups of warps that take turns are set up
_WIDE = 2.0  # bytes of an activation that is not converted
_ALIGNED = 4.0  # rows that need no padding
_ONE_ROW, _ONE_BLOCK = (
    1 / 3,
    0.5,
)  # of what padding costs: that of one row, and what a reduction of one block costs besides
_LIBRARY, _DEEPGEMM, _FORMER_DEEPGEMM = 1.0, 2.0, 3.0  # what `picks` may be


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of GEMMs, [ops]; nan where m, n or k is not known."""
    m, n, k = (np.maximum(works.dim(name), 1.0) for name in ("m", "n", "k"))
    batch = np.maximum(works.dim("b", 1.0), 1.0)
    # Results are of 16 bits, whatever type was multiplied.
    written = np.maximum(works["act_write_bytes"], _WIDE * batch * m * n)
    memory_s = _from_memory(c, works, written, at) / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    compute_s = works["flops"] / (c["eta_flops"] * at.peak)
    alone_s = shared_s = np.full(m.shape, np.inf)
    persists = c["picks"] != _LIBRARY
    for rows, columns, drag, pairs in _tiles(c, m, n, k, batch):
        area = rows * columns / _FULL**2
        down, across, paired = _row_tiles(c, m, rows), np.ceil(n / columns), pairs
        tiles = batch * down * across
        turns = tiles / at.hw.multiprocessors
        whole = turns_of(tiles, c["chosen_for"], at.hw.multiprocessors) if persists else waves(turns)
        loop_s = k * (c["per_k_s"] + c["per_k_row_s"] * _FULL * area)
        first_s = c["per_tile_s"] * (area + _set_up(c, m)) + loop_s
        next_s = c["per_turn_s"] * (1.0 if persists else area) + loop_s
        if persists:
            next_s = np.where(m > c["narrow_rows"], np.hypot(c["per_turn_s"], loop_s), next_s)
        alone_s = np.minimum(alone_s, _walk(whole, first_s, next_s) * drag)
        if c["splits"]:
            shared_s = np.minimum(shared_s, _walk(turns, first_s, next_s) * drag + c["split_tile_s"] * area)
    if c["picks"] == _DEEPGEMM:
        again = paired & (down > 1.0) & (down % 2.0 == 1.0)
        weights = works["weight_bytes"] * beyond_cache(works["weight_bytes"], at)
        memory_s = memory_s + np.where(again, weights, 0.0) / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    # Of the one tile, or of the largest that a library has.
    held = deepgemm.loaded(m, down * rows) if c["picks"] == _DEEPGEMM else down * rows
    fill_s = _fill(c, batch * across, down) * (held / m - 1.0) * works["act_read_bytes"] / batch
    overlapped_s = _overlapped(c, memory_s, compute_s, alone_s, fill_s)
    walk_s, split_s = alone_s, np.zeros_like(alone_s)
    if c["splits"]:
        together_s = c["split_s"] + _overlapped(c, memory_s, compute_s, shared_s, fill_s)
        overlapped_s = np.minimum(overlapped_s, together_s)
        split = c["split_s"] + shared_s < alone_s
        walk_s, split_s = np.where(split, shared_s, alone_s), np.where(split, c["split_s"], 0.0)
    # What a kernel waits for is its own, not its launch's.
    reach_s = c["reach_s"] * _far(c, works, at)
    walk_s = walk_s + fill_s + reach_s
    launch_s = c["t0_s"] * works["launches"] + c["misaligned_s"] * _padded(m, k)
    converted = _converted(works, batch * m * k) + _copied(c, works, m)
    convert_s = c["convert"] * converted / at.hw.memory.bytes_per_s
    terms = {
        "launch": launch_s, "memory": memory_s, "convert": convert_s, "compute": compute_s, "tiles": walk_s, "split": split_s,
    }  # fmt: skip
    fixed_s = launch_s + walk_s + split_s
    return Parts(
        compute_s, memory_s + convert_s, fixed_s, launch_s + reach_s + convert_s + overlapped_s, terms=terms
    )


def _far(c: Mapping[str, float], works: Works, at: Setting) -> FloatArray:
    """Of the weights, [ops], the share that comes from memory: all but those whose copies lie in a warm cache."""
    copies = c["copies"] * works["weight_bytes"]
    return from_memory(copies, 0.0, at) if c["copies"] else np.ones_like(copies)


def _padded(m: FloatArray, k: FloatArray) -> FloatArray:
    """What is copied into place beside the activations, [ops], over what padding rows costs."""
    rows = np.where(m % _ALIGNED == 0, 0.0, np.where(m == 1.0, _ONE_ROW, 1.0))
    return np.asarray(rows + np.where(k <= _FULL, _ONE_BLOCK, 0.0))


def _walk(turns: FloatArray, first_s: FloatArray, next_s: FloatArray) -> FloatArray:
    """Seconds of that many turns, [ops], the first as long as its share."""
    return np.asarray(np.minimum(turns, 1.0) * first_s + np.maximum(turns - 1.0, 0.0) * next_s)


def _tiles(
    c: Mapping[str, float], m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray | float, FloatArray | float, npt.NDArray[np.bool_] | bool]]:
    """(rows, columns, how many times longer its walk takes, whether an odd row of them reads the weights again) of each tile
    that the kernel may take, [ops]; one if it follows a rule."""
    if c["picks"] == _FORMER_DEEPGEMM:
        rows, columns = deepgemm.former_blocks(m, n, batch, c["chosen_for"])
        yield rows, columns, _uneven(c, columns), False
    elif c["picks"] == _DEEPGEMM:
        rows, columns, alone, paired = deepgemm.blocks(m, n, k, batch, c["chosen_for"])
        yield rows, columns, (1.0 + c["alone"] * alone) * _uneven(c, columns), paired
    elif c["picks"]:
        enough = np.maximum(np.exp2(np.ceil(np.log2(m))), c["least_rows"])
        yield from ((np.minimum(enough, rows), columns, 1.0, False) for rows, columns in _TILES)
    else:
        narrow = m <= c["narrow_rows"]
        few = (m <= c["few_rows"]) | (narrow & (n <= c["few_columns"]))
        short = m <= c["short_rows"]
        rows = np.select([few, m <= c["half_rows"], short], [_FEWEST, _FEW, _SHORT], _FULL)
        yield rows, np.where(narrow | (short & (n <= c["narrow_columns"])), _SHORT, _FULL), 1.0, False


def _set_up(c: Mapping[str, float], m: FloatArray) -> FloatArray | float:
    """What a kernel that persists only from some rows on takes more to begin with, [ops], as a share of a tile of 128 x 128."""
    return np.where(m > c["narrow_rows"], _LATER, 0.0) if c["narrow_rows"] else 0.0


def _uneven(c: Mapping[str, float], columns: FloatArray) -> FloatArray:
    """How many times longer blocks of so many columns take, [ops], where these have scales of two blocks of weights."""
    return np.where(_FULL % columns == 0, 1.0, 1.0 + c["uneven"])


def _row_tiles(c: Mapping[str, float], m: FloatArray, rows: FloatArray) -> FloatArray:
    """Tiles that m rows take, [ops]; whole pairs of them where a kernel's processors take two together."""
    tiles = np.ceil(m / rows)
    return np.where(m > c["paired_rows"], 2.0 * np.ceil(tiles / 2.0), tiles) if c["paired_rows"] else tiles


def _fill(c: Mapping[str, float], across: FloatArray, down: FloatArray) -> FloatArray | float:
    """Seconds per byte that is missing in the last of `down` tiles of rows, which `across` tiles of columns read, [ops]."""
    if not c["crowd"]:
        return 0.0
    crowding = np.clip(2.0 * across * down / c["crowd"] - 1.0, 0.0, 1.0)
    return np.asarray((c["per_empty_s"] * across + c["per_empty_tile_s"]) * crowding)


def _overlapped(
    c: Mapping[str, float],
    memory_s: FloatArray,
    compute_s: FloatArray,
    walk_s: FloatArray,
    fill_s: FloatArray | float,
) -> FloatArray:
    """Seconds of arithmetic that begins once its operands are there, [ops]: neither below the longest of these times, nor
    above their sum, since what is waited for is part of what is delivered."""
    delivered_s = smoothmax(c["blend"], memory_s, walk_s + fill_s)
    waited_s, power = c["waits"] * walk_s + fill_s, c["blend_flops"]
    most = delivered_s + compute_s
    shares = ((part / most) ** power for part in (delivered_s, compute_s + waited_s, waited_s))
    delivered, worked, waited = shares
    least = np.maximum(delivered_s, compute_s)
    return np.asarray(np.clip(most * (delivered + worked - waited) ** (1.0 / power), least, most))


def _from_memory(c: Mapping[str, float], works: Works, written: FloatArray, at: Setting) -> FloatArray:
    """Bytes moved, [ops], as many as take their time from memory: of a benchmark that calls `copies` of the weights in turn on
    the same activations, all copies lie in the cache, or the activations beside one; of one copy all that a call moves."""
    weights, read = works["weight_bytes"], works["act_read_bytes"]
    if not c["copies"]:
        return weights + read + written
    if c["copies"] == 1:
        moved = weights + read + written
        return moved * from_memory(moved, c["cached"], at)
    beside = weights + works["act_bytes"]
    return (
        weights * from_memory(c["copies"] * weights, c["cached"], at)
        + read * from_memory(beside, c["cached"], at)
        + written
    )


def _converted(works: Works, elements: FloatArray) -> FloatArray:
    """Bytes that converting the activations moves: 16 bits in, the type of the GEMM out."""
    read = works["act_read_bytes"]
    return np.where(read < _WIDE * elements, _WIDE * elements + read, 0.0)


def _copied(c: Mapping[str, float], works: Works, m: FloatArray) -> FloatArray | float:
    """Bytes that padding the activations moves, [ops]: in and out again."""
    return np.where(m % _ALIGNED == 0, 0.0, 2.0 * works["act_read_bytes"]) if c["pads"] else 0.0


FORM = Form(SCHEMAS["gemm"], seconds)
