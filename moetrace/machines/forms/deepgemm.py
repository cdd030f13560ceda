"""Blocks of outputs that DeepGEMM takes for a GEMM, by the rules of its own heuristics: today's and its former one.

Of 64, 128 or 256 rows and 16 to 192 columns it takes the block whose turns take the fewest cycles of reading and writing
shared memory and L2 (github.com/deepseek-ai/DeepGEMM, csrc/jit_kernels/heuristics/sm90.hpp, get_layout_info and
get_layout_candidates). Blocks of 16 and 32 rows, for as few, do the arithmetic of 64 in its time, but read no more (`loaded`).
Where there are several turns, two neighbours share what they read, which halves one side of it: the columns, where these are
as many as the rows or more.
Blocks then go in pairs of rows; the row of blocks that an odd number of them leaves over comes after all others and reads the
weights once more (deep_gemm/include/deep_gemm/common/scheduler.cuh, get_swizzled_block_idx).

Formerly, and in the copy that TensorRT-LLM keeps (get_best_gemm_config of its deep_gemm; fp8_blockscale_gemm_kernel.cuh), it
took, with 64 rows up to 64 of them and 128 above, the columns, 16 to 128 by eights, whose blocks take the fewest turns; of
these the ones that fill the last turn most, of these the narrowest. Fewer than 32 rows TensorRT-LLM multiplies the other way
round: 128 columns of the weights by 16, 24 or 32 rows.

Both rules count the blocks of all GEMMs of a batch (num_groups) and the processors of the GPU at hand. Here the latter are a
fact of the kernel as it was measured (`chosen_for`), so
that a processor more never makes a worse choice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moetrace.op import FloatArray

_L1, _L2_EACH, _L2_MOST = 128.0, 64.0, 8e6 / 1.3e3  # bytes per cycle: of a processor, and of the chip at most
_SHARED, _STAGE_K, _OUT = (
    232448,
    128,
    2,
)  # bytes of shared memory, of a stage's reduction in FP8, of an output
_HIGH, _WIDE, _WIDE_STEP = (64, 128, 256), 192, 16
_COMMON, _LARGE = (
    128 * 128,
    128 * 192,
)  # outputs of a block: from which on one alone is slow, and as slow as they get
_STEEP = 3.0  # power of its rise between
_TIE = 1.0 + 1e-9  # of equal cycles, those of blocks that share nothing come first
_TURNED, _FEW, _FULL, _EIGHT = 32.0, 64.0, 128.0, 8  # of the former rule
_AT_ONCE = 8192  # ops, as many as a processor's cache holds

Blocks = tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[np.bool_]]


def blocks(m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, processors: float) -> Blocks:
    """(rows, columns, how much of the slowness of the largest blocks in their only turn it has, whether pairs of rows of blocks
    share their columns) of each op's block, [ops]."""
    if m.size <= _AT_ONCE:
        return _blocks(m, n, k, batch, processors)
    parts = (slice(at, at + _AT_ONCE) for at in range(0, m.size, _AT_ONCE))
    found = [_blocks(m[part], n[part], k[part], batch[part], processors) for part in parts]
    rows, columns, slow, paired = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(slow), np.concatenate(paired)


def loaded(m: FloatArray, held: FloatArray) -> FloatArray:
    """Rows that blocks read, [ops], of those that blocks of at least 64 rows would hold."""
    return np.asarray(np.select([m <= 16, m <= 32], [16.0, 32.0], held), dtype=np.float64)


def former_blocks(
    m: FloatArray, n: FloatArray, batch: FloatArray, processors: float
) -> tuple[FloatArray, FloatArray]:
    """(rows, columns) of each op's block by the former rule, [ops]."""
    turned = m < _TURNED
    high = np.where(turned | (m > _FEW), _FULL, _FEW)
    down, across = batch * np.ceil(np.where(turned, n, m) / high), np.where(turned, m, n)
    fewest, fullest, taken = np.full(m.shape, np.inf), np.zeros(m.shape), np.zeros(m.shape)
    for wide in range(_WIDE_STEP, int(_FULL) + 1, _EIGHT):
        blocks = down * np.ceil(across / wide)
        turns = np.ceil(blocks / processors)
        last = blocks - (turns - 1.0) * processors
        better = (turns < fewest) | ((turns == fewest) & (last > fullest))
        for best, found in ((fewest, turns), (fullest, last), (taken, wide)):
            np.copyto(best, found, where=better)
    return np.where(turned, taken, high), np.where(turned, _FULL, taken)


def _blocks(m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, processors: float) -> Blocks:
    k = np.maximum(k, _STAGE_K)  # a stage is read whole
    least, taken, lone = (
        np.full(m.shape, np.inf),
        np.zeros(m.shape, dtype=np.int64),
        np.zeros(m.shape, dtype=bool),
    )
    for at, (high, wide) in enumerate(_CANDIDATES):
        if wide == _WIDE_STEP:
            down = batch * np.ceil(m / high)
        turns = np.ceil(down * np.ceil(n / wide) / processors)
        one = turns <= 1.0
        cycles = turns * _cycles(high, wide, k, one, processors)
        less = cycles < least
        np.copyto(least, cycles, where=less)
        np.copyto(taken, at, where=less)
        np.copyto(lone, one, where=less)
    rows, columns = np.array(_CANDIDATES, dtype=np.float64).T
    slow = np.clip((rows * columns - _COMMON) / (_LARGE - _COMMON), 0.0, 1.0) ** _STEEP
    return rows[taken], columns[taken], lone * slow[taken], ~lone & (columns >= rows)[taken]


def _cycles(high: int, wide: int, k: FloatArray, one: npt.NDArray[np.bool_], processors: float) -> FloatArray:
    """Cycles of one turn, [ops]."""
    l1, l2, out = _L1 * processors, min(_L2_EACH * processors, _L2_MOST), high * wide * _OUT
    shared = min(high / 2 + wide, high + wide / 2) * _TIE
    far = k * np.where(one, (high + wide) / l2, shared / l2) + out / l2
    return np.asarray(np.maximum(far, k * (2 * (high + wide) / l1) + 2 * out / l1), dtype=np.float64)


def _candidates() -> Iterator[tuple[int, int]]:
    """(rows, columns) of the blocks that registers, the unrolled loop and four stages of shared memory allow, three of the
    largest."""
    for high in _HIGH:
        for wide in range(_WIDE_STEP, _WIDE + 1, _WIDE_STEP):
            beyond = wide - _STAGE_K
            rolled = beyond <= 0 or wide % beyond == 0 or _STAGE_K % beyond == 0
            stage = (high + wide) * _STAGE_K + high * 4
            stages = (_SHARED - high * wide * _OUT - 1024) // stage
            if rolled and min(high, wide) <= _STAGE_K and stages >= (3 if high * wide >= _LARGE else 4):
                yield high, wide


_CANDIDATES = tuple(_candidates())
