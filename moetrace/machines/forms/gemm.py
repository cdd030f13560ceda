"""The form of dense and batched GEMMs: tiles of rows x 128 outputs, each with a serial loop over the reduction.

    tile     = half the rows rounded up to a power of two, from 16 to 128 (what CUTLASS and cuBLAS dispatch by for few rows)
    memory   = bytes / (eta_bw x bandwidth)        compute = FLOPs of whole tiles / (eta_flops x peak)
    serial   = turns x k x (per_k + per_k_row x tile), turns = tiles / processors in whole turns of two tiles each
    expected = t0 + (memory^p + compute^p + serial^p)^(1/p) + misaligned where four does not divide the rows
    split-K  = if it takes less: split_s more, and the reduction shared out, serial = tiles / processors x k x ...

Why: time at few rows is flat in them and, for few outputs, linear in k whatever the bytes: one tile's loop. Beyond some k a
library that can splits it. The tile and its two rates are what kernels of one library have in common (split-K, waves: NVIDIA
CUTLASS documentation, "Efficient GEMM in CUDA"). Steps: in rows where the tile doubles, and wherever a further tile begins.
Not modelled: a warm cache (weights of the
measured GEMMs showed none), which of its tiles a library picks for one shape, clocks, scales of odd layouts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.machines.forms.tiles import waves
from moetrace.op import Works

_COLUMNS = 128.0
_FEWEST, _MOST = 16.0, 128.0
_TOGETHER = 2.0  # tiles that one processor holds at a time
_ALIGNED = 4.0
_NOTHING = 1e-30  # seconds


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of GEMMs, [ops]; nan where m, n or k is not known."""
    m, n, k = (np.maximum(works.dim(name), 1.0) for name in ("m", "n", "k"))
    tile = np.clip(np.exp2(np.ceil(np.log2(m)) - 1.0), _FEWEST, _MOST)
    down, across = np.ceil(m / tile), np.ceil(n / _COLUMNS)
    turns = np.maximum(works.dim("b", 1.0), 1.0) * down * across / at.hw.multiprocessors
    memory_s = works["bytes"] / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    padding = down * tile / m * (across * _COLUMNS / n)
    compute_s = works["flops"] * padding / (c["eta_flops"] * at.peak)
    serial_s = k * (c["per_k_s"] + c["per_k_row_s"] * tile)
    whole_s, shared_s = waves(turns / _TOGETHER) * serial_s, turns * serial_s
    fixed_s = c["t0_s"] * works["launches"] + np.where(m % _ALIGNED == 0, 0.0, c["misaligned_s"])
    overlapped_s = np.minimum(
        smoothmax(c["blend"], memory_s, compute_s, whole_s),
        c["split_s"] + smoothmax(c["blend"], memory_s, compute_s, shared_s),
    )
    split = c["split_s"] + shared_s < whole_s
    walk_s = np.where(split, shared_s, whole_s)
    split_s = np.where(split, c["split_s"], 0.0)
    rows_s = walk_s * (c["per_k_row_s"] * tile / np.maximum(c["per_k_s"] + c["per_k_row_s"] * tile, _NOTHING))
    terms = {
        "launch": fixed_s, "memory": memory_s, "compute": compute_s, "reduction": walk_s - rows_s, "rows": rows_s,
        "split": split_s,
    }  # fmt: skip
    fixed_s = fixed_s + walk_s + split_s
    return Parts(compute_s, memory_s, fixed_s, terms["launch"] + overlapped_s, terms=terms)


FORM = Form(SCHEMAS["gemm"], seconds)
