"""Dense matrix multiplies: projections, router, shared experts, lm_head, and single experts run one by one.

All have dims m (tokens), n (outputs), k (inputs) of one rank, and b for batched ones. What a GEMM is for comes from the
recorder's annotation or from the order of ops; a GEMM whose role is not known stays ``gemm``. Beside them runs what
belongs to one GEMM: the sum of its split-K parts, the quantising of its input.
"""

from __future__ import annotations

import math
import re

import numpy as np

from moetrace.model import ModelSpec
from moetrace.op import Amounts, Op, OpColumns, OpGroup, element_bytes
from moetrace.ops.base import Kind, Seen, act, numel, rows_and_width
from moetrace.run import GENERATING


def work(op: OpGroup) -> Amounts:
    """2 m n k FLOPs; the weights n k once; activations m k in and m n out."""
    m, n, k, b = op["m"], op["n"], op["k"], op.given("b", 1.0)
    weights = b * n * k * element_bytes(op.weight_dtype)
    return Amounts(
        flops=2.0 * b * m * n * k,
        weight_bytes=weights,
        weight_bytes_min=weights,
        resident_bytes=weights,
        act_read_bytes=b * m * k * act(op),
        act_write_bytes=b * m * n * act(op),
        rows=m,
    )


def reduce_work(op: OpGroup) -> Amounts:
    """What runs behind a GEMM on its `elements` outputs: fp32 partial sums (`splits` of them, at least two), or a bias."""
    splits = op.get("splits", 0.0)
    return Amounts(
        flops=np.maximum(1.0, splits) * op["elements"],
        act_read_bytes=op["elements"] * np.where(np.greater(splits, 0), np.multiply(4.0, splits), act(op)),
        act_write_bytes=op["elements"] * act(op),
    )


def quantize_work(op: OpGroup) -> Amounts:
    """Activations in, the same many in the narrow type out."""
    return Amounts(
        flops=2.0 * op["elements"],
        act_read_bytes=op["elements"] * act(op),
        act_write_bytes=op["elements"] * element_bytes(op.weight_dtype),
    )


def by_kernel(ops: OpColumns) -> OpColumns:
    """The ops with MLA's absorbed projections as `batched_gemm`: they keep their place's kind in a run, but one kernel runs
    all heads' matrices, and a profile may know it."""
    batched = np.isfinite(ops.column("b"))
    types, code = list(ops.types), ops.code
    for at, op in enumerate(ops.types):
        rows = batched & (ops.code == at) if op.kind in _ABSORBED else batched[:0]
        if rows.any():
            code, types = np.where(rows, len(types), code), [*types, Op("batched_gemm", op.dtype)]
    return OpColumns(tuple(types), code, ops.dims)


_MNK = ("m", "n", "k")
_ABSORBED = frozenset({"qkv_proj", "o_proj"})  # those of them that have `b`
KINDS = (
    *(
        Kind(name, "dense_gemm", _MNK, work)
        for name in ("qkv_proj", "o_proj", "dense_gate_up", "dense_down", "lm_head", "gemm")
    ),
    Kind("router", "routing", _MNK, work),
    *(Kind(name, "shared_expert", _MNK, work) for name in ("shared_gate_up", "shared_down", "shared_gate")),
    *(Kind(name, "experts", _MNK, work) for name in ("expert_up", "expert_down")),
    Kind("batched_gemm", "dense_gemm", (*_MNK, "b"), work),
    Kind("gemm_reduce", "dense_gemm", ("elements",), reduce_work),
    Kind("quantize", "dense_gemm", ("elements",), quantize_work),
)
_SPLIT_K = r"splitKreduce|split_?k_?reduce|_PostGSU\d"

KERNELS = (
    (rf"(?i){_SPLIT_K}", "gemm_reduce"),
    (
        r"(?i)^(?!.*(norm|silu|gelu|swiglu|act_and_mul|rope|cache)).*(per_token_cast_to_fp8|quantize_with_block_size|scaled_fp8_quant|per_token_group_quant|per_token_quant|dynamic_per_token_scaled)",
        "quantize",
    ),
    (
        r"^Cijk_|^nvjet_|cublasLt|^gemv|gemv2|gemvNSP|gemmSN|gemmk1|wvSplitK|LLGemm|ck_tile.*Gemm",
        "gemm",
    ),
    (
        r"(?i)(sm\d+_)?xmma_gemm|s\d+gemm|hgemm|sgemm|bf16gemm|tensorop.*gemm|cutlass.*gemm|gemm_kernel|deep_gemm|_gemm_|::gemm\b|gemm_universal",
        "gemm",
    ),
    (
        r"(?i)^triton_(?!poi|red|per).*(_mm|_addmm|_bmm)(_|$)|_scaled_mm|marlin(?!.*moe)|machete|awq_gemm|gptq_gemm|dot_kernel|matmul_kernel",
        "gemm",
    ),
    (r"gemm_fp16|gemm_bf16|fp8_ptp128c|GemmUniversal|router_gemm|dsv3_fused_a_gemm|min_latency_gemm", "gemm"),
)
OPERATORS = (
    (
        r"aten::(mm|addmm|bmm|baddbmm|linear|mv|addmv|_scaled_mm|matmul|einsum|dot|_addmm_activation|mkldnn_linear)$|mkldnn::_linear|_C::.*gemm",
        "gemm",
    ),
)


# Roles that the order of ops tells apart and that are one kind of op.
_KIND_OF_ROLE = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_part", "mla_part"), "qkv_proj"),
    **dict.fromkeys(("qkv_a", "q_a", "kv_a", "q_b", "kv_b", "absorb"), "qkv_proj"),
    **dict.fromkeys(("linear_in", "linear_heads", "linear_part"), "qkv_proj"),
    **dict.fromkeys(("v_up", "linear_out"), "o_proj"),
    "dense_half": "dense_gate_up",
    "shared_half": "shared_gate_up",
    "shared_part": "shared_gate_up",
}
_BY_PHASE = ("absorb", "kv_b", "v_up")  # in a mixed step these see only the decode or only the prefill tokens


def dims(kind: str, seen: Seen) -> Op | None:
    """The op from the operator's input shapes, else from the model and the role."""
    if kind in ("gemm_reduce", "quantize"):
        return _beside(kind, seen)
    found = _from_shapes(seen)
    role = seen.role or kind
    kind = _KIND_OF_ROLE.get(role, role)
    if found:
        (b, m, n, k), types = found
        weight, activation = types[-1] or "bf16", types[0] or "bf16"
        dtype = activation if weight == activation else f"{weight}/{activation}"
        extra = {"b": b} if b > 1 else {}
        return Op.of(kind, dtype, m=m, n=n, k=k, **extra)
    return _from_model(kind, role, seen) or (Op(kind, seen.act_dtype) if role in _KIND_OF_ROLE else None)


def _beside(kind: str, seen: Seen) -> Op | None:
    """A split-K sum or bias on the GEMM's outputs, or the quantising of its inputs; sizes as the GEMM's."""
    if kind == "quantize":
        shape = next((s for s in seen.shapes if len(s) >= 2), ())
        gemm = None if shape else _named(seen)
        elements = float(numel(shape)) if shape else gemm["m"] * gemm["k"] if gemm else 0.0
        return Op.of(kind, "fp8/bf16", elements=elements) if elements else None
    found, gemm = _from_shapes(seen), _named(seen)
    if found:
        outputs = float(math.prod(found[0][:3]))
    elif gemm:
        outputs = (gemm.get("b", 1) or 1) * gemm["m"] * gemm["n"]
    else:
        return None
    splits = {"splits": 2} if re.search(rf"(?i){_SPLIT_K}", seen.kernel) else {}
    return Op.of(kind, seen.act_dtype, elements=outputs, **splits)


def _named(seen: Seen) -> Op | None:
    """The GEMM that the role names (``reduce o_proj``), if the model gives its sizes."""
    role = seen.role.partition(" ")[2]
    return _from_model(_KIND_OF_ROLE.get(role, role), role, seen)


def width(seen: Seen) -> tuple[int, int]:
    """(outputs n, inputs k) of one GEMM by its operator's shapes; (0, 0) where they do not tell."""
    found = _from_shapes(seen)
    return (found[0][2], found[0][3]) if found else (0, 0)


def rows(seen: Seen) -> tuple[int, int]:
    """(rows m, inputs k) of one GEMM by its operator's shapes; (0, 0) where they do not tell."""
    found = _from_shapes(seen)
    return (found[0][1], found[0][3]) if found else (0, 0)


def _from_shapes(seen: Seen) -> tuple[tuple[int, int, int, int], tuple[str, str]] | None:
    tensors = [(s, t) for s, t in seen.tensors if len(s) >= 2]
    if len(tensors) < 2:
        return None
    name = seen.operator
    (a, ta), (w, tw) = tensors[0], tensors[1]
    if "addmm" in name and len(tensors) >= 3 and len(seen.shapes[0]) == 2:  # a 2-d bias comes first
        (a, ta), (w, tw) = tensors[1], tensors[2]
    if len(a) == 3 and len(w) == 3 and "linear" not in name:
        return ((a[0], a[1], w[2], a[2]), (ta, tw)) if a[2] == w[1] and a[0] == w[0] else None
    m, k = rows_and_width(a)
    if len(w) != 2 or k not in w:
        return None
    transposed = "linear" in name or w[0] != k
    return (1, m, w[0] if transposed else w[1], k), (ta, tw)


def _from_model(kind: str, role: str, seen: Seen) -> Op | None:
    model, m, tp = seen.model, seen.tokens, max(1, seen.tp)
    if model is None or m is None:
        return None
    out, kv = model.heads * model.head_dim // tp, max(model.kv_heads // tp, 1) * model.head_dim
    q, (keys, values) = model.query_width // tp, model.linear_widths
    dense, shared = model.dense_inter // tp, model.shared_inter // tp
    shapes = {
        "router": (m, model.experts, model.hidden),
        "dense_gate_up": (m, 2 * dense, model.hidden),
        "dense_half": (m, dense, model.hidden),
        "dense_down": (m, model.hidden, dense),
        "shared_gate_up": (m, 2 * shared, model.hidden),
        "shared_half": (m, shared, model.hidden),
        "shared_down": (m, model.hidden, shared),
        "shared_gate": (m, 1 if model.shared_gate else 0, model.hidden),
        "linear_in": (m, 2 * (keys + values) // tp, model.hidden),
        "linear_heads": (m, 2 * model.linear_heads // tp, model.hidden),
        "linear_out": (m, model.hidden, values // tp),
        # a decode step may verify several tokens per sequence; a prefill needs the last token's logits alone
        "lm_head": (m if seen.phase in GENERATING else seen.batch or m, model.vocab // tp, model.hidden),
    }
    if model.attention == "mla":
        shapes |= _mla_shapes(model, m, tp)
    else:
        shapes |= {"qkv_proj": (m, q + 2 * kv, model.hidden), "q_proj": (m, q, model.hidden),
                   "k_proj": (m, kv, model.hidden), "v_proj": (m, kv, model.hidden), "o_proj": (m, model.hidden, out)}  # fmt: skip
    if role not in shapes or 0 in shapes[role] or (seen.phase == "mixed" and role in _BY_PHASE):
        return None
    rows, n, k = shapes[role]
    dtype = model.act_dtype if role in ("router", "lm_head", "absorb", "v_up") else model.dtype
    heads = {"b": max(1, model.heads // tp)} if role in ("absorb", "v_up") else {}
    return Op.of(kind, dtype, m=rows, n=n, k=k, **heads)


def _mla_shapes(model: ModelSpec, m: int, tp: int) -> dict[str, tuple[int, int, int]]:
    """MLA's projections; the down-projections are whole on every rank, the two absorbed ones one GEMM per head."""
    heads, latent = max(1, model.heads // tp), model.kv_lora + model.rope_dim
    return {
        "q_a": (m, model.q_lora, model.hidden),
        "kv_a": (m, latent, model.hidden),
        "qkv_a": (m, model.q_lora + latent, model.hidden),
        "q_b": (m, heads * model.head_dim, model.q_lora),
        "kv_b": (m, heads * (model.nope_dim + model.v_dim), model.kv_lora),
        "absorb": (m, model.kv_lora, model.nope_dim),
        "v_up": (m, model.v_dim, model.kv_lora),
        "o_proj": (m, model.hidden, heads * model.v_dim),
    }
