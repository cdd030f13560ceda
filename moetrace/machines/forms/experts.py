"""The form of an MoE module: top-k, align, the expert GEMMs with their activation, combine.

    fixed   = t0 + per_expert E + per_local_expert E_local + per_row T k + serial x block bytes of both GEMMs
              + operators where E exceeds what the engine's own kernel routes
    memory  = weights of the distinct experts / (eta_bw x bandwidth) + act_passes x activation bytes / bandwidth
              + remote_passes x (T k - rows) x (hidden + width) in 16 bits / bandwidth
    compute = FLOPs, each expert's rows padded to tiles of 16 or crowded_rows / (eta_flops or tuned_flops x peak)
    blocks  = per_block D hidden / block columns / multiprocessors, of the down GEMM, whose reduction is short
    odd     = misaligned x per_block x tiles of 64 rows x hidden / 64 / multiprocessors, where 16 does not divide the width
    time    = fixed + memory + compute + odd; where blocks are wide, block bytes times 1 + wide_serial, weights and FLOPs times
              1 + above_wide; streaming the down GEMM's weights and its blocks hide each other: (memory^3 + blocks^3)^(1/3) of
              the two; what they leave of the weights, w, and arithmetic c hide the share `overlap` of w + c - (w^2 + c^2)^(1/2)

A module was measured as a whole, so each of its ops carries the share of the fixed terms that is its own: a sixth of t0 for
each launch, per_expert in top-k and align, operators in top-k, per_row in align and combine, the rest in the GEMMs. The parts
of a module add up to `moe_module` where no other rank holds experts. Block bytes: what one thread block streams one after
another, K rows of 64 columns, which no number of idle neighbours shortens. Blocks: each starts and ends before a
multiprocessor takes the next, which narrow experts wait for.
Rows of other ranks' experts: SGLang's and vLLM's Triton kernels keep a row for each of the T k choices whoever holds the
expert, fill those of other ranks with zeros, and pass over them in the activation and in the sum (``write_zeros_to_output`` in
vLLM's fused_moe.py). TensorRT-LLM's do not, and its coefficient is next to nothing. It is a term of `moe_module` alone: all T
tokens are on the rank there, while the parts of a recorded or served step may have been sent only the rows that are theirs.

Steps, where kernels switch: misaligned where 16 does not divide the width, so that Triton cannot know that rows of the down
GEMM's operands begin where wide loads may, and each of its blocks takes longer, whether 84, 88 or 168 wide (measured: 2.4 to
3.6 times per_block more in SGLang and vLLM, on H100 and A100 alike; that it is the down GEMM alone is inferred); crowded_rows
where the tokens exceed the experts on the rank, from where on SGLang's Triton kernel takes tiles of 64 rows, empty ones
multiplied too, in blocks twice as wide with a loop half as deep (16 x 32 x 64 before, 64 x 64 x 32 then: its
get_default_config, vLLM's too up to 0.14), unless tiles were tuned for that number of experts and that width on that GPU (the
profile's [tuned]), which reach tuned_flops of the peak for any number of tokens; wide_tokens, above which blocks have 128
columns instead of 64: 64 tokens in vLLM (its get_default_config since github.com/vllm-project/vllm/pull/34846), none in other
engines; operators above routed_experts: 128 in TensorRT-LLM, whose routing kernel takes no more and leaves them to PyTorch's
top-k and softmax (its _torch/modules/fused_moe/routing.py, RenormalizeMoeRoutingMethod; measured: the same floor with 8 and
with 128 experts, 11 us more with 256. Later versions' kernel takes 512). Wide blocks are half as many and take block_wide of
the time each.
Warm cache: weights that fit half of it cost the share `cached` of their time, smoothly in the size, since each of its two
partitions keeps what its own processors read (NVIDIA A100 Tensor Core GPU Architecture, whitepaper, "L2 cache"); and from
untuned_ranks on weights stream at the share `untuned` of the bandwidth, as the public benchmark of TensorRT-LLM shows and
serving, which tunes its kernels when it starts, need not (inferred, docs/accuracy.md).
In decode the sum of weights and arithmetic fits as well as any blend; with thousands of tokens it is a fifth too long in vLLM
and SGLang, and right in TensorRT-LLM: `overlap`. Measured on H100: tiles tuned for some size, wave quantisation and the blocks
of the GEMM over hidden add nothing (held-out errors: the profiles). SGLang's bf16 kernel with default tiles does 1.3 thousand
FLOPs in a cycle of a processor on H100 and 1.2 on A100, a third and six tenths of their peaks: `by_cycles`, for other chips
that take its coefficients; with tuned tiles it reaches 0.65 and 0.68 of them. Not modelled: kernels tuned for one shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting
from moetrace.op import FloatArray, Works, dtypes, element_bytes
from moetrace.routing import padded_rows

# Share of each term that a kind of op carries: launches (of six), per_expert, per_row, the terms of the GEMMs.
_SHARES = {
    "moe_module": (6, 1.0, 1.0, 1.0),
    "moe_experts": (3, 0.0, 0.0, 1.0),
    "moe_gate_up": (1, 0.0, 0.0, 0.5),
    "moe_down": (1, 0.0, 0.0, 0.5),
    "moe_act": (1, 0.0, 0.0, 0.0),
    "topk": (1, 0.5, 0.0, 0.0),
    "moe_align": (1, 0.5, 0.5, 0.0),
    "moe_combine": (1, 0.0, 0.5, 0.0),
}
_OVER_HIDDEN = ("moe_gate_up", "moe_experts", "moe_module")  # GEMMs whose reduction is over that dim
_OVER_INTER = ("moe_down", "moe_experts", "moe_module")
_ROUTES = ("topk", "moe_module")
_LAUNCHES = 6.0
_FEW = 4  # experts on a rank: weights stream by kernels that an autotuner picked, a term of its own
_TILE, _BLOCK_COLUMNS, _WIDE_COLUMNS, _WIDTH_MULTIPLE = 16.0, 64.0, 128.0, 16.0
_ODD_ROWS = 64.0  # of a block whose reduction is not a multiple of 16
_ROW_BYTES = 2.0  # of a value that kernels of a module hand on
_PAIR = 1 << 20  # above any width: makes one number of experts and width
# Of the cache, what weights can hold where two partitions keep copies; and how sudden they fall out of it.
_CACHE_SHARE, _CACHE_SHARPNESS = 0.5, 4.0


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of an MoE module or of one of its ops, [ops]."""
    shares = [_SHARES.get(op.kind, (1, 0.0, 0.0, 0.0)) for op in works.ops.types]
    launches, expert, row, gemm = (works.ops.by_type([share[i] for share in shares]) for i in range(4))
    tokens, experts = works.dim("tokens", 0.0), works.dim("experts", 0.0)
    local = works.dim("local_experts")
    local = np.where(np.isnan(local), experts, local)
    switched, tuned = _tiles(c, works, gemm, local, at)
    wide = switched | ((gemm > 0) & (c["wide_tokens"] > 0) & (tokens > c["wide_tokens"]))
    extra = 1.0 + c["above_wide"] * wide
    bandwidth = at.hw.memory.bytes_per_s
    untuned = (gemm > 0) & _untuned(c, experts, local, at)
    reached = np.where(untuned, np.minimum(c["untuned"], c["eta_bw"]), c["eta_bw"]) * bandwidth
    weights_s = works["weight_bytes"] / reached * _from_memory(c, works, at) * extra
    moved = works["act_bytes"] + works["kv_bytes"] + works["inner_bytes"]
    activations_s, remote_s = (
        passes * nbytes / bandwidth
        for passes, nbytes in ((c["act_passes"], moved), (c["remote_passes"], _remote_bytes(works)))
    )
    memory_s = weights_s + activations_s + remote_s
    rows = works["rows"]
    padding = np.divide(
        padded_rows(rows, works["experts"], np.where(switched, c["crowded_rows"], _TILE)),
        rows,
        out=np.ones_like(rows),
        where=(rows > 0) & (gemm > 0),
    )
    share = np.where(tuned, c["tuned_flops"] or c["eta_flops"], c["eta_flops"])
    compute_s = works["flops"] * padding / (share * at.peak) * extra
    terms = {
        "launch": c["t0_s"] * launches / _LAUNCHES * works["launches"],
        "experts": c["per_expert_s"] * expert * experts
        + c["per_local_expert_s"] * gemm * local
        + _operators(c, works, experts),
        "rows": c["per_row_s"] * row * tokens * works.dim("topk", 0.0),
        "serial": c["serial_s"] * _block_bytes(works) * (1.0 + c["wide_serial"] * wide),
        "blocks": _blocks(c, works, at, wide) if c["per_block_s"] else np.zeros(len(works)),
    }
    hidden_s: FloatArray | float = 0.0
    if c["per_block_s"]:
        hidden_s = _hidden(weights_s * _down_share(works), terms["blocks"])
        terms["blocks"] = terms["blocks"] + _misaligned(c, works, at)
    fixed_s = sum(terms.values(), np.zeros(len(works)))
    if c["overlap"]:
        # Of weights that blocks hide nothing is left to hide behind arithmetic: both would save more than the weights take.
        left_s = weights_s - hidden_s
        hidden_s = hidden_s + c["overlap"] * (
            left_s + compute_s - np.sqrt(left_s * left_s + compute_s * compute_s)
        )
    few = (local <= _FEW) & (experts > _FEW)
    terms |= {
        "weights": np.where(few | untuned, 0.0, weights_s), "few": np.where(few & ~untuned, weights_s, 0.0),
        "untuned": np.where(untuned, weights_s, 0.0), "activations": activations_s, "remote": remote_s,
        "compute": compute_s,
    }  # fmt: skip
    return Parts(compute_s, memory_s, fixed_s, fixed_s + memory_s + compute_s - hidden_s, terms=terms)


def _operators(c: Mapping[str, float], works: Works, experts: FloatArray) -> FloatArray | float:
    """Seconds of the framework's operators that route where the engine's own kernel does not, [ops]."""
    if not c["routed_experts"]:
        return 0.0
    routes = works.ops.by_type([float(op.kind in _ROUTES) for op in works.ops.types])
    return np.asarray(c["operators_s"] * routes * (experts > c["routed_experts"]))


def _untuned(
    c: Mapping[str, float], experts: FloatArray, local: FloatArray, at: Setting
) -> npt.NDArray[np.bool_]:
    """Whether experts are shared out over so many ranks that the benchmark missed what was tuned for them, [ops]."""
    if at.cache == "cold" or not c["untuned_ranks"]:
        return np.zeros(experts.shape, dtype=bool)
    return np.asarray(experts >= c["untuned_ranks"] * local)


def _remote_bytes(works: Works) -> FloatArray:
    """Bytes of one pass over the rows of choices that other ranks' experts take, hidden and width wide, [ops]."""
    whole = works.ops.by_type([_ROW_BYTES * (op.kind == "moe_module") for op in works.ops.types])
    chosen = works.dim("tokens", 0.0) * works.dim("topk", 0.0)
    wide = works.dim("hidden", 0.0) + works.dim("inter", 0.0)
    return np.asarray(whole * np.maximum(chosen - works["rows"], 0.0) * wide)


def _down_share(works: Works) -> FloatArray:
    """Share of an op's weights that are the down GEMM's, [ops]: one matrix of three, of a plain expert's two."""
    among = works.ops.by_type(
        [1.0 if op.kind in ("moe_module", "moe_experts") else 0.0 for op in works.ops.types]
    )
    matrices = 1.0 + among * np.where(works.dim("gated", 1.0) != 0, 2.0, 1.0)
    return works.ops.by_type([float(op.kind in _OVER_INTER) for op in works.ops.types]) / matrices


def _blocks(c: Mapping[str, float], works: Works, at: Setting, wide: npt.NDArray[np.bool_]) -> FloatArray:
    """Seconds that a multiprocessor's blocks of the down GEMM take one after another, [ops]."""
    columns = np.where(wide, _WIDE_COLUMNS, _BLOCK_COLUMNS)
    down = works.ops.by_type([float(op.kind in _OVER_INTER) for op in works.ops.types])
    turns = down * works["experts"] * works.dim("hidden", 0.0) / columns / at.hw.multiprocessors
    return np.asarray(c["per_block_s"] * turns * np.where(wide, c["block_wide"], 1.0))


def _misaligned(c: Mapping[str, float], works: Works, at: Setting) -> FloatArray:
    """Seconds more that the down GEMM's blocks, of `_ODD_ROWS` of an expert, take where 16 does not divide its width, [ops]."""
    odd = np.mod(works.dim("inter", 0.0), _WIDTH_MULTIPLE) != 0
    odd &= works.ops.by_type([float(op.kind in _OVER_INTER) for op in works.ops.types]) > 0
    if not odd.any():
        return np.zeros(len(works))
    tiles = padded_rows(works["rows"], works["experts"], _ODD_ROWS) / _ODD_ROWS
    turns = tiles * works.dim("hidden", 0.0) / _BLOCK_COLUMNS / at.hw.multiprocessors
    return np.where(odd, c["per_block_s"] * c["misaligned"] * turns, 0.0)


def _hidden(one: FloatArray, other: FloatArray) -> FloatArray:
    """What two times that run at once save of their sum, [ops]: nearly all of the shorter where they differ much."""
    both = np.cbrt(one * one * one + other * other * other)
    # Rounding must not bring what is left below the longer.
    return np.asarray(np.clip(one + other - both, 0.0, np.minimum(one, other)))


def _tiles(
    c: Mapping[str, float], works: Works, gemm: FloatArray, local: FloatArray, at: Setting
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether an op's GEMMs run with an engine's default tiles for many tokens, and whether with tuned ones, [ops] each."""
    looks = (gemm > 0) & (c["crowded_rows"] > 0)
    tuned = np.zeros_like(looks)
    if not looks.any():
        return tuned, tuned
    asked = local * _PAIR + works.dim("inter", 0.0)
    for code, op in enumerate(works.ops.types):
        dtype = "bf16" if op.weight_dtype == "fp16" else op.weight_dtype
        known = at.hw.tuned.get(f"{dtype}@{at.engine}", at.hw.tuned.get(dtype))
        mine = looks & (works.ops.code == code)
        if known and mine.any():
            pairs = np.sort([float(experts * _PAIR + width) for experts, width in known])
            tuned |= mine & (pairs[np.minimum(np.searchsorted(pairs, asked), pairs.size - 1)] == asked)
    return looks & ~tuned & (works.dim("tokens", 0.0) > local), tuned


def _from_memory(c: Mapping[str, float], works: Works, at: Setting) -> FloatArray | float:
    """Share of the streaming time that the weights take: 1 from memory, less as far as a warm cache holds them."""
    if at.cache == "cold" or at.hw.memory.cache_bytes <= 0:
        return 1.0
    full = works["weight_bytes"] / (_CACHE_SHARE * at.hw.memory.cache_bytes)
    return 1.0 - (1.0 - c["cached"]) / (1.0 + full**_CACHE_SHARPNESS)


def _block_bytes(works: Works) -> FloatArray:
    """Bytes that one thread block streams one after another in an op's GEMMs, [ops]."""
    # A type that is not known has no known work either.
    width = [element_bytes(d) if (d := op.weight_dtype) in dtypes() else np.nan for op in works.ops.types]
    hidden, inter = (
        works.ops.by_type([w * (op.kind in kinds) for op, w in zip(works.ops.types, width, strict=True)])
        for kinds in (_OVER_HIDDEN, _OVER_INTER)
    )
    depth = hidden * works.dim("hidden", 0.0) + inter * works.dim("inter", 0.0)
    return np.asarray(depth * _BLOCK_COLUMNS)


FORM = Form(SCHEMAS["experts"], seconds)
