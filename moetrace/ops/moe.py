"""The MoE block: top-k, align/permute, expert GEMMs, the activation between them, combine.

`tokens`, `experts` and `topk` are global, `inter` is one rank's share. What an expert GEMM costs in decode follows the
number of *distinct* experts its tokens touch: see `distinct_experts`. Experts are taken as gated (gate, up and down),
which holds for every architecture in the catalogue. How dims are found: `moetrace.ops.moe_dims`.
"""

from __future__ import annotations

import numpy as np

from moetrace.op import Amounts, FloatArray, Op, OpGroup, element_bytes
from moetrace.ops.base import Kind, act
from moetrace.ops.moe_dims import dims as dims  # every family's module has one
from moetrace.routing import uniform_distinct

_WIDE = element_bytes("bf16")
_NEEDS = ("tokens", "hidden", "inter", "experts", "topk")


def distinct_experts(op: Op) -> tuple[float, float]:
    """(expected, certain) number of distinct experts that one rank reads for an op: see `touched`."""
    expected, certain = touched(OpGroup.of(op))
    return float(expected[0]), float(certain[0])


def local_experts(op: OpGroup) -> FloatArray | float:
    """Experts that one rank holds: all of them unless the op says otherwise."""
    return op.given("local_experts", op["experts"])


def touched(op: OpGroup) -> tuple[FloatArray, FloatArray]:
    """(expected, certain) number of distinct experts that one rank reads, arrays of the group's size.

    Expected: the counted number (`distinct`), else an estimate (`distinct_est`), else E(1-(1-k/E)^T) for uniform and
    independent routing (arXiv 2505.03531 assumes it; arXiv 2511.02237 measures how far real text is below). Certain: the
    counted number, else the k of a single token; none under expert parallelism, where a rank may get no token at all.
    """
    experts, topk, tokens = op["experts"], op["topk"], op["tokens"]
    local = local_experts(op)
    counted, estimate = op.get("distinct"), op.get("distinct_est")
    if counted is not None:
        return counted, counted
    certain = np.where(tokens >= 1, np.maximum(0.0, topk - (experts - local)), 0.0)
    if estimate is not None:
        return estimate, certain
    return uniform_distinct(experts, topk, tokens) * local / experts, certain


def expert_rows(op: OpGroup) -> FloatArray:
    """Token rows that one rank's experts multiply: tokens x k, times the rank's share of the experts."""
    rows = op.get("rows")
    if rows is not None:
        return rows
    return np.asarray(op["tokens"] * op["topk"] * local_experts(op) / op["experts"])


def _experts(op: OpGroup, matrices: int, reads: FloatArray, writes: FloatArray) -> Amounts:
    expected, certain = touched(op)
    rows = expert_rows(op)
    matrix = op["hidden"] * op["inter"]
    one = matrices * matrix * element_bytes(op.weight_dtype)
    return Amounts(
        flops=2.0 * rows * matrices * matrix,
        weight_bytes=expected * one,
        weight_bytes_min=certain * one,
        resident_bytes=local_experts(op) * one,
        act_read_bytes=rows * reads * act(op),
        act_write_bytes=rows * writes * act(op),
        experts=expected,
        rows=rows,
    )


def gate_up_work(op: OpGroup) -> Amounts:
    """Two matrices of every touched expert; each row reads `hidden` and writes 2 `inter`, or their product if `fused`."""
    return _experts(
        op, 2, op["hidden"], np.where(np.equal(op.get("fused", 0.0), 0.0), 2.0, 1.0) * op["inter"]
    )


def down_work(op: OpGroup) -> Amounts:
    """One matrix of every touched expert; each row reads `inter` and writes `hidden`."""
    return _experts(op, 1, op["inter"], op["hidden"])


def experts_work(op: OpGroup) -> Amounts:
    """All three matrices in one op: each row reads and writes `hidden`, the width between stays on the chip."""
    return _experts(op, 3, op["hidden"], op["hidden"])


def module_work(op: OpGroup) -> Amounts:
    """The whole module on one rank: top-k, align, gate_up, activation, down and combine.

    `gated` 0 stands for experts of two matrices. In and out go the tokens' rows; what the kernels hand to each other in
    between (GEMM inputs in the op's type, all else in 16 bits) is `inner_bytes`.
    """
    rows, hidden, inter = expert_rows(op), op["hidden"], op["inter"]
    sides = np.where(np.not_equal(op.get("gated", 1.0), 0.0), 2.0, 1.0)
    out = _experts(op, 1, hidden, inter)
    for name in ("flops", "weight_bytes", "weight_bytes_min", "resident_bytes"):
        out[name] = out[name] * (1.0 + sides)
    token = op["tokens"] * hidden * _WIDE
    gemms = rows * (2 * hidden + (1 + sides) * inter) * act(op)
    ids = op["tokens"] * (op["experts"] * _WIDE + op["topk"] * 16)
    out["inner_bytes"] = gemms + rows * ((1 + sides) * inter + hidden) * _WIDE + ids - token
    out["inner_bytes"] = np.maximum(out["inner_bytes"], 0.0)
    out["act_read_bytes"] = out["act_write_bytes"] = token
    return out


def act_work(op: OpGroup) -> Amounts:
    """Each row reads gate and up (`reads`, default 2) and writes their product."""
    rows = expert_rows(op) if op.has("experts") else op["tokens"] * op["topk"]
    return Amounts(
        flops=4.0 * rows * op["inter"],
        act_read_bytes=op.given("reads", 2.0) * rows * op["inter"] * act(op),
        act_write_bytes=rows * op["inter"] * act(op),
        rows=rows,
    )


def align_work(op: OpGroup) -> Amounts:
    """Sorting tokens by expert: ids in and out (int32); with `hidden`, the rows too, written `copies` times (default 1)."""
    ids = op["tokens"] * op["topk"] * 4
    rows = op["tokens"] * op.get("hidden", 0.0) * act(op)
    return Amounts(act_read_bytes=ids + rows, act_write_bytes=ids + rows * op.given("copies", 1.0))


def topk_work(op: OpGroup) -> Amounts:
    """Scores in, k ids (int32) and weights (fp32) out."""
    return Amounts(
        flops=4.0 * op["tokens"] * op["experts"],
        act_read_bytes=op["tokens"] * op["experts"] * act(op),
        act_write_bytes=op["tokens"] * op["topk"] * 8,
    )


def combine_work(op: OpGroup) -> Amounts:
    """k rows of each token in, their weighted sum out."""
    rows = op["tokens"] * op["topk"]
    return Amounts(
        flops=2.0 * rows * op["hidden"],
        act_read_bytes=rows * op["hidden"] * act(op),
        act_write_bytes=op["tokens"] * op["hidden"] * act(op),
    )


KINDS = (
    Kind("moe_gate_up", "experts", _NEEDS, gate_up_work),
    Kind("moe_down", "experts", _NEEDS, down_work),
    Kind("moe_experts", "experts", _NEEDS, experts_work),
    Kind("moe_module", "experts", _NEEDS, module_work),
    Kind("moe_act", "experts", ("tokens", "inter", "topk"), act_work),
    Kind("topk", "routing", ("tokens", "experts", "topk"), topk_work),
    Kind("moe_align", "routing", ("tokens", "topk"), align_work),
    Kind("moe_combine", "routing", ("tokens", "hidden", "topk"), combine_work),
)

KERNELS = (
    # fused gate_up (+ activation), then down: the name's own suffix tells them apart where it can
    (
        r"_matmul_ogs_.*_(swiglu|silu)|bmm_Mx?E?\w*_Fp32.*(swiGlu|gated)|bmm_.*_Fp32_.*swiGlu|fused_moe::run_global<.*Fused_Moe_Kernel",
        "moe_gate_up",
    ),
    (
        r"_matmul_ogs_|^bmm_(Bfloat16|Fp16)_.*dynBatch|MoeFCGemm|moe_gemm2|ck_moe_stage2|kernel_moe_gemm_2",
        "moe_down",
    ),
    (r"^bmm_\w+_Fp32_t\d+.*dynBatch|ck_moe_stage1|kernel_moe_gemm(?!_2)|moe_gemm1", "moe_gate_up"),
    # gate_up, activation and down in one kernel, or in two stages
    (r"fmoe_stage1", "moe_gate_up"),
    (r"fmoe_stage2", "moe_down"),
    (r"(?<![a-z])fmoe_", "moe_experts"),
    # the same kernel name twice a layer: gate_up first, down second (the parser orders them)
    (
        r"^fused_moe_kernel|fused_moe_kernel_gptq_awq|moe_wna16|m_grouped_\w*|grouped_gemm::(?!cuda::fp8_ptp)|GroupedGemm|GroupProblemShape|GemmType\)[1-9]|grouped_mm_kernel|marlin_moe|moe_marlin|fp8_gemm_kernel.*[Gg]rouped|_grouped_mm",
        "moe_gemm",
    ),
    (
        r"topkGating|_topk_forward|topk_sum_and_topk_idx|moe_fused_gate|grouped_topk|topk_softmax|topk_with_k2|biased_grouped_topk|_gemma4_routing_kernel|routingRenormalize.*ScoresKernel|routingMainKernel|topk_sigmoid",
        "topk",
    ),
    (
        r"moe_align_block_size|count_and_sort_expert_tokens|_combined_routing_(memset|compute)|_sum_bitmatrix_rows|routingIndices\w*|fusedBuildExpertMaps|expandInputRows|clean_and_count_expert|get_dispatch_layout|moe_permute|moe::permute|permute_copy_scale|sort_tokens|MoeSorting|moe_sorting|_expt_data_|computeExpertOffsets|blockExpertPrefixSum|globalExpertPrefixSum|mergeExpertPrefixSum|ep_scatter|_fwd_kernel_ep_",
        "moe_align",
    ),
    (
        r"moe_quant|silu_and_mul_masked_post_quant|triton_poi_fused_constant_pad_nd_moe_forward|triton_\w*moe_forward\w*",
        "moe_align",
    ),
    (
        r"finalizeMoeRouting|finalizeKernel|_finalize_matmul_scatter|moe_sum|moe_unpermute|unpermute|moe_combine_kernel|ep_gather|post_reorder",
        "moe_combine",
    ),
    (r"do(Gated)?ActivationKernel|activationDeepSeekKernel", "moe_act"),
)
OPERATORS = (
    (r"aten::_grouped_mm|_grouped_mm_fallback|grouped_mm", "moe_gemm"),
    (r"aten::topk$", "topk"),
)
