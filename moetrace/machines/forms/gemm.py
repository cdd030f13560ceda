"""The form of dense and batched GEMMs: tiles of rows x columns of the output, each with a serial loop over the reduction.

    tile     = by the kernel's rule, or of those that a library has (64 x 64 to 128 x 256) the one that takes least; no more
               rows than the next power of two, at least `least_rows`
    one      = per_tile x area + k x (per_k + per_k_row x 128 x area), area = rows x columns / (128 x 128)
    serial   = one x turns, turns = tiles / processors, whole ones
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs / (eta_flops x peak)
    convert  = of activations below 16 bits, convert x (2 bytes in, their own type out) / bandwidth, before the GEMM
    expected = t0 + convert + (memory^p + compute^p + serial^p)^(1/p) + misaligned where four does not divide the rows
    split-K  = if it takes less: split_s more and the reduction shared out, one x tiles / processors + split_tile x area
    ragged   = serial and compute times 1 + ragged x (share of the tiles' rows that are empty) x crowding, above `ragged_rows`

Why: time at few rows is flat in them and, for few outputs, linear in k whatever the bytes: one tile's loop. Beyond some k a
library that can splits it, and adds up partial sums, as large as its tiles (tiles, split-K, waves: NVIDIA CUTLASS
documentation, "Efficient GEMM in CUDA"). Many outputs of a short reduction cost by the tile, which begins by waiting for
memory and ends by writing. Engines convert activations to FP8 in a kernel of its own, which the measured modules include:
with many rows of a long reduction it takes as long as the GEMM.
Rules: vLLM's CUTLASS FP8 kernel has 64 columns up to 64 rows (tiles of 16 rows up to 16, and up to 1,280 columns), 64 x 128
up to 128 rows, then 128 x 128 (its scaled_mm_sm90_fp8_dispatch.cuh), with scales of blocks always 128 x 128
(scaled_mm_blockwise_sm90_fp8_dispatch.cuh). The former's processors take two tiles of rows together (clusters of 2 x 1 above 64
rows), so that 257 rows take as many as 512; so do SGLang's, whose times step at 64 and 128 rows too, those of TensorRT-LLM's
block FP8 at 64. No FP8 kernel but cuBLAS (TensorRT-LLM's) shows a split.
SGLang's DeepGEMM picks, of 64 rows at least (its heuristics/sm90.hpp has smaller ones up to 32 rows, which times do not show).
Inferred: ragged. FP8 kernels take up to half as long again at 129 rows as at 256 and get faster from row to row between, where
more than `crowd` tiles of columns read the same rows; cuBLAS and few outputs do not. DeepGEMM notes a limit of loads beyond the
rows (its heuristics/sm90.hpp). Steps: in rows where a tile's rows or columns change, and wherever a further tile begins.
Warm cache: the benchmark of the public tables calls as many `copies` of the weights in turn (five for TensorRT-LLM, six for
vLLM and SGLang, as its collect_gemm.py says and fits find): where all of these lie in the cache, they cost the share `cached`.
Not modelled: SGLang's DeepGEMM where it picks blocks of 128 x 192 or 256 x 128 for a single turn (2.5 times as long as others),
stream-K, clocks, scales of odd layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import from_memory, waves
from moetrace.op import FloatArray, Works

_TILES = (
    (64.0, 64.0),
    (64.0, 128.0),
    (128.0, 128.0),
    (128.0, 256.0),
)  # rows, columns, of a library that picks
_FEWEST, _SHORT, _FULL = 16.0, 64.0, 128.0
_WIDE = 2.0  # bytes of an activation that is not converted
_ALIGNED = 4.0


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of GEMMs, [ops]; nan where m, n or k is not known."""
    m, n, k = (np.maximum(works.dim(name), 1.0) for name in ("m", "n", "k"))
    batch = np.maximum(works.dim("b", 1.0), 1.0)
    weights = works["weight_bytes"] * _from_memory(c, works, at)
    memory_s = (weights + works["act_bytes"]) / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    compute_s = works["flops"] / (c["eta_flops"] * at.peak)
    alone_s = shared_s = np.full(m.shape, np.inf)
    for rows, columns in _tiles(c, m, n):
        area = rows * columns / _FULL**2
        down, across = _row_tiles(c, m, rows), np.ceil(n / columns)
        turns = batch * down * across / at.hw.multiprocessors
        one_s = c["per_tile_s"] * area + k * (c["per_k_s"] + c["per_k_row_s"] * _FULL * area)
        slower = _ragged(c, m, down * rows, across)
        alone_s = np.minimum(alone_s, waves(turns) * one_s * slower)
        if c["splits"]:
            shared_s = np.minimum(shared_s, turns * one_s * slower + c["split_tile_s"] * area)
    compute_s = compute_s * slower  # of the one tile, or of the largest that a library has
    overlapped_s = smoothmax(c["blend"], memory_s, compute_s, alone_s)
    walk_s, split_s = alone_s, np.zeros_like(alone_s)
    if c["splits"]:
        together_s = smoothmax(c["blend"], memory_s, compute_s, shared_s)
        overlapped_s = np.minimum(overlapped_s, c["split_s"] + together_s)
        split = c["split_s"] + shared_s < alone_s
        walk_s, split_s = np.where(split, shared_s, alone_s), np.where(split, c["split_s"], 0.0)
    launch_s = c["t0_s"] * works["launches"] + np.where(m % _ALIGNED == 0, 0.0, c["misaligned_s"])
    convert_s = c["convert"] * _converted(works, batch * m * k) / at.hw.memory.bytes_per_s
    terms = {
        "launch": launch_s, "memory": memory_s, "convert": convert_s, "compute": compute_s, "tiles": walk_s, "split": split_s,
    }  # fmt: skip
    fixed_s = launch_s + walk_s + split_s
    return Parts(compute_s, memory_s + convert_s, fixed_s, launch_s + convert_s + overlapped_s, terms=terms)


def _tiles(
    c: Mapping[str, float], m: FloatArray, n: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray | float]]:
    """(rows, columns) of each tile that the kernel may take, [ops]; one if it follows a rule."""
    if c["picks"]:
        enough = np.maximum(np.exp2(np.ceil(np.log2(m))), c["least_rows"])
        yield from ((np.minimum(enough, rows), columns) for rows, columns in _TILES)
        return
    narrow = m <= c["narrow_rows"]
    few = (m <= c["few_rows"]) | (narrow & (n <= c["few_columns"]))
    rows = np.where(few, _FEWEST, np.where(m <= c["short_rows"], _SHORT, _FULL))
    yield rows, np.where(narrow, _SHORT, _FULL)


def _row_tiles(c: Mapping[str, float], m: FloatArray, rows: FloatArray) -> FloatArray:
    """Tiles that m rows take, [ops]; whole pairs of them where a kernel's processors take two together."""
    tiles = np.ceil(m / rows)
    return np.where(m > c["paired_rows"], 2.0 * np.ceil(tiles / 2.0), tiles) if c["paired_rows"] else tiles


def _ragged(
    c: Mapping[str, float], m: FloatArray, held: FloatArray, across: FloatArray
) -> FloatArray | float:
    """How many times longer tiles take where some of the rows that they hold are empty and `across` tiles of columns read the
    same ones."""
    if not c["crowd"]:
        return 1.0
    empty = 1.0 - m / held
    crowding = np.clip((across - 1.0) / c["crowd"], 0.0, 1.0)
    return np.where(m > c["ragged_rows"], 1.0 + c["ragged"] * empty * crowding, 1.0)


def _from_memory(c: Mapping[str, float], works: Works, at: Setting) -> FloatArray | float:
    """What weights take of their time from memory: of a benchmark that calls `copies` of them in turn, all lie in the cache."""
    return from_memory(c["copies"] * works["weight_bytes"], c["cached"], at) if c["copies"] else 1.0


def _converted(works: Works, elements: FloatArray) -> FloatArray:
    """Bytes that converting the activations moves: 16 bits in, the type of the GEMM out."""
    read = works["act_read_bytes"]
    return np.where(read < _WIDE * elements, _WIDE * elements + read, 0.0)


FORM = Form(SCHEMAS["gemm"], seconds)
