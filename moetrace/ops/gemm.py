"""Dense matrix multiplies: projections, router, shared experts, lm_head.

All have dims m (tokens), n (outputs), k (inputs) of one rank, and b for batched ones. What a GEMM is for comes from the
recorder's annotation or from the order of ops; a GEMM whose role is not known stays ``gemm``.
"""

from __future__ import annotations

from moetrace.op import Op, Work, element_bytes
from moetrace.ops.base import Kind, Seen, act, rows_and_width


def work(op: Op) -> Work:
    """2 m n k FLOPs; the weights n k once; activations m k in and m n out."""
    m, n, k, b = op["m"], op["n"], op["k"], op.get("b", 1) or 1
    weights = b * n * k * element_bytes(op.weight_dtype)
    return Work(
        flops=2.0 * b * m * n * k,
        weight_bytes=weights,
        weight_bytes_min=weights,
        resident_bytes=weights,
        act_read_bytes=b * m * k * act(op),
        act_write_bytes=b * m * n * act(op),
        rows=m,
    )


_MNK = ("m", "n", "k")
KINDS = (
    *(
        Kind(name, "dense_gemm", _MNK, work)
        for name in ("qkv_proj", "o_proj", "dense_gate_up", "dense_down", "lm_head", "gemm")
    ),
    Kind("router", "routing", _MNK, work),
    *(Kind(name, "shared_expert", _MNK, work) for name in ("shared_gate_up", "shared_down")),
)

KERNELS = (
    (
        r"^Cijk_|^nvjet_|cublasLt|^gemv|gemv2|gemvNSP|gemmSN|gemmk1|splitKreduce|split_k_reduce|wvSplitK|LLGemm|ck_tile.*Gemm",
        "gemm",
    ),
    (
        r"(?i)(sm\d+_)?xmma_gemm|s\d+gemm|hgemm|sgemm|bf16gemm|tensorop.*gemm|cutlass.*gemm|gemm_kernel|deep_gemm|_gemm_|::gemm\b|gemm_universal",
        "gemm",
    ),
    (
        r"(?i)^triton_.*(_mm|_addmm|_bmm)(_|$)|_scaled_mm|marlin(?!.*moe)|machete|awq_gemm|gptq_gemm|dot_kernel|matmul_kernel",
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


def dims(kind: str, seen: Seen) -> Op | None:
    """The op from the operator's input shapes, else from the model and the role."""
    found = _from_shapes(seen)
    kind = seen.role or kind
    if found:
        (b, m, n, k), types = found
        weight, activation = types[-1] or "bf16", types[0] or "bf16"
        dtype = activation if weight == activation else f"{weight}/{activation}"
        extra = {"b": b} if b > 1 else {}
        return Op.of(kind, dtype, m=m, n=n, k=k, **extra)
    return _from_model(kind, seen)


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


def _from_model(kind: str, seen: Seen) -> Op | None:
    model, m, tp = seen.model, seen.tokens, max(1, seen.tp)
    if model is None or m is None:
        return None
    if model.attention == "mla" and kind in ("qkv_proj", "o_proj"):
        return None  # MLA has several projections; which one this is cannot be told without shapes
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    shapes = {
        "qkv_proj": (m, q // tp + 2 * max(kv // tp, model.head_dim), model.hidden),
        "o_proj": (m, model.hidden, q // tp),
        "router": (m, model.experts, model.hidden),
        "dense_gate_up": (m, 2 * model.dense_inter // tp, model.hidden),
        "dense_down": (m, model.hidden, model.dense_inter // tp),
        "shared_gate_up": (m, 2 * model.shared_inter // tp, model.hidden),
        "shared_down": (m, model.hidden, model.shared_inter // tp),
        "lm_head": (seen.batch or m, model.vocab // tp, model.hidden),
    }
    if kind not in shapes or 0 in shapes[kind]:
        return None
    rows, n, k = shapes[kind]
    dtype = model.act_dtype if kind in ("router", "lm_head") else model.dtype
    return Op.of(kind, dtype, m=rows, n=n, k=k)
