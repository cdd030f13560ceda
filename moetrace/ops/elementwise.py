"""Norms, activations, casts, embedding lookups, sampling and the many small element-wise ops between them."""

from __future__ import annotations

import re

import numpy as np

from moetrace.op import Amounts, Op, OpGroup, element_bytes
from moetrace.ops.base import Kind, Seen, Shape, act, is_fixed, numel, rows_and_width
from moetrace.run import GENERATING


def norm_work(op: OpGroup) -> Amounts:
    """x in and out, with `residual` that too; about 4 FLOPs an element. `writes`=0: a reduction out of an unfused norm."""
    elements = op["tokens"] * op["width"]
    streams = np.where(np.equal(op.get("residual", 0.0), 0.0), 1.0, 2.0)
    return Amounts(
        flops=4.0 * elements,
        weight_bytes=op["width"] * act(op),
        weight_bytes_min=op["width"] * act(op),
        resident_bytes=op["width"] * act(op),
        act_read_bytes=streams * elements * act(op),
        act_write_bytes=op.get("writes", streams) * elements * act(op),
        rows=op["tokens"],
    )


def elementwise_work(op: OpGroup) -> Amounts:
    """`reads` and `writes` passes over `elements` elements (default one each), one FLOP an element.

    `fixed`=1 says that the batch does not change the size: a table, not the step's tokens.
    """
    nbytes = op["elements"] * act(op)
    return Amounts(
        flops=op["elements"],
        act_read_bytes=op.get("reads", 1.0) * nbytes,
        act_write_bytes=op.get("writes", 1.0) * nbytes,
    )


def embedding_work(op: OpGroup) -> Amounts:
    """One row of the table per token, copied out."""
    nbytes = op["tokens"] * op["hidden"] * act(op)
    table = op.get("vocab", 0.0) * op["hidden"] * element_bytes(op.weight_dtype)
    return Amounts(weight_bytes=nbytes, weight_bytes_min=0.0, act_write_bytes=nbytes, resident_bytes=table)


def sampling_work(op: OpGroup) -> Amounts:
    """Logits read once."""
    return Amounts(
        flops=op["tokens"] * op["vocab"],
        act_read_bytes=op["tokens"] * op["vocab"] * act(op),
        act_write_bytes=op["tokens"] * 8,
    )


KINDS = (
    Kind("norm", "norm", ("tokens", "width"), norm_work),
    Kind("activation", "elementwise", ("elements",), elementwise_work),
    Kind("expert_act", "experts", ("elements",), elementwise_work),
    Kind("shared_act", "shared_expert", ("elements",), elementwise_work),
    Kind("elementwise", "elementwise", ("elements",), elementwise_work),
    Kind("attention_plan", "attention", ("elements",), elementwise_work),
    Kind("embedding", "embedding", ("tokens", "hidden"), embedding_work),
    Kind("sampling", "sampling", ("tokens", "vocab"), sampling_work),
)

KERNELS = (
    (
        r"(?i)rms_?norm|layer_?norm|add_rmsnorm|Rmsnorm2d|norm_fuse|fused_add_norm|^triton_(red|per)_fused\w*rsqrt|rsqrt_kernel",
        "norm",
    ),
    (r"(?i)act_and_mul|silu_and_mul|gelu_and_mul|swiglu|silu_kernel|gelu_kernel|silu_mul", "activation"),
    (
        r"(?i)ArgMaxOps|argmax|gatherTopK|sbtopk|mbtopk|radixFindKthValues|multinomial|sampling|top_p|top_k_top_p|cunn_SoftMax|softmax_warp_forward|RadixSort|radixSortKVInPlace|logits|log_softmax|exponential_|distribution_elementwise|bincount|min_p",
        "sampling",
    ),
    (r"(?i)embedding", "embedding"),
    (
        r"elementwise|vectorized_|unrolled_|CatArrayBatched|reduce_kernel|multi_tensor_apply|index_kernel|gather_kernel|scatter_gather|indexSelect|index_elementwise|index_put|fill_|arange|copy_kernel|memcpy32_post|transpose|where_kernel|tensor_scan|DeviceScan|DeviceReduce|DeviceSelect|trampoline_kernel|segmented_max_reduction|quant_kernel|cast_kernel|triton_(poi|red|per|tem)_|^triton__?\d|resolve_future_token|clamp_position|convert_|pointwise|softmax|CompactNonZero|cumsum|advance_step|elementwise_kernel_with_index|distribution_nullary|_fused_",
        "elementwise",
    ),
)
OPERATORS = (
    (r"rms_?norm|layer_?norm|group_norm|aten::rsqrt$|^triton_(red|per)_fused\w*rsqrt", "norm"),
    (r"(silu|gelu|act)_and_mul|aten::(silu|gelu|sigmoid|relu)_?$", "activation"),
    (r"aten::(argmax|multinomial|sort|softmax|_softmax|log_softmax|bincount)$", "sampling"),
    (r"aten::embedding$|triton_\w*embedding", "embedding"),
    (
        r"aten::(add|sub|mul|div|neg|pow|rsqrt|sqrt|exp|mean|sum|cat|copy_|clone|fill_|zero_|index|index_select|index_put_|_index_put_impl_|index_add_?|index_copy_|scatter\w*|gather|where|masked_\w+|cumsum|arange|bitwise_\w+|logical_\w+|lt|le|gt|ge|eq|ne|cos|sin|clamp\w*|max|min|amax|any|all|histc|one_hot|floor_divide|remainder|sigmoid|softplus|tanh|triu|tril|minimum|maximum|reciprocal|abs|sign|nonzero|unique\w*|full|zeros|ones|stack|repeat|repeat_interleave|roll|searchsorted|linalg_\w+|constant_pad_nd|isin|_local_scalar_dense|_to_copy|contiguous|slice_scatter|addcmul|rsub|polar|outer|complex|ceil|floor|round|_foreach_\w+)_?$|^triton_",
        "elementwise",
    ),
)

_SORTS, _SORTING = re.compile(r"(?i)radixsort"), re.compile(r"(?i)sort|top|sampl|unique|argmax|multinomial")
PICKS = "picks"  # first word of the role of an index whose rows the order of ops tells, then their number
_GATHERED = 8192  # a table taller than this beside a short output is looked up, not read


def dims(kind: str, seen: Seen) -> Op | None:
    """Sizes from the operator's input shapes; norms, embedding and sampling also from the model."""
    tensors = seen.tensors
    model, tokens = seen.model, seen.tokens
    table = next(
        (s for s, _ in tensors if len(s) == 2 and s[0] > _GATHERED and model and s[1] == model.hidden), None
    )
    if table and seen.operator.startswith(("triton", "aten::embedding")) and tokens:
        return Op.of("embedding", seen.model_dtype, tokens=tokens, hidden=table[1], vocab=table[0])
    if kind == "norm":
        return _norm(seen)
    if kind == "embedding":
        return (
            Op.of(kind, model.act_dtype, tokens=tokens, hidden=model.hidden, vocab=model.vocab)
            if model and tokens
            else None
        )
    if kind == "sampling" and model and seen.batch and not tensors:
        rows = tokens or seen.batch if seen.phase in GENERATING else seen.batch  # see lm_head
        return Op.of(kind, "fp32", tokens=rows, vocab=model.vocab)
    if kind == "activation" and model and model.dense_inter and tokens and not tensors:
        return Op.of(kind, seen.model_dtype, elements=tokens * model.dense_inter // max(1, seen.tp), reads=2)
    if not tensors:
        return None
    largest, dtype = max(tensors, key=lambda t: numel(t[0]))
    if kind == "sampling" and _SORTS.search(seen.kernel) and not _SORTING.search(seen.operator):
        return None  # an embedding's gradient sorts its indices: of what, its tensors do not tell
    if kind == "sampling" and len(largest) >= 2:
        rows, width = rows_and_width(largest)
        return Op.of(kind, dtype or "fp32", tokens=rows, vocab=width)
    op = sized(kind, seen, numel(largest), dtype)
    return op.with_dims(fixed=1) if op is not None and is_fixed(seen) else op


_REDUCES = re.compile(
    r"aten::(mean|sum|prod|max|min|amax|amin|any|all|argmax|argmin|norm|linalg_vector_norm|histc|bincount|nonzero)$"
)
_FILLS = re.compile(r"aten::(fill_|zero_|full|ones|zeros|arange|new_\w+|\w+_like)$")
_ADDS_ROWS = re.compile(r"aten::index_add_$")
_COPIES = re.compile(r"aten::(copy_|_to_copy|clone|index_put_|_index_put_impl_|slice_scatter)$")


def sized(kind: str, seen: Seen, elements: int, dtype: str) -> Op | None:
    """`elements` of the largest input, and how many passes over so many are read and written."""
    if not elements:
        return None
    name, tensors = seen.operator, seen.tensors
    kind, dtype = "elementwise" if kind == "sampling" else kind, dtype or "bf16"
    unit = elements * element_bytes(dtype)
    passes = sum(_bytes(t) for t in tensors) / unit
    if name in ("aten::embedding", "aten::index", "aten::index_select", "aten::gather"):
        out = _gathered(seen)
        return Op.of(kind, dtype, elements=out) if out else None
    if "and_mul" in name + seen.kernel and kind == "activation":  # gate and up in, their product out
        return Op.of(kind, dtype, elements=elements // 2, reads=2)
    if name.startswith("triton"):  # a compiled kernel's tensors are its outputs too
        return _passes(kind, dtype, elements, 1, max(0.0, passes - 1))
    if _FILLS.search(name):
        return _passes(kind, dtype, elements, 0, 1)
    if name == "aten::copy_" and len(tensors) >= 2:  # the first tensor is the destination
        return _passes(kind, dtype, elements, _bytes(tensors[1]) / unit, _bytes(tensors[0]) / unit)
    if _REDUCES.search(name):
        return _passes(kind, dtype, elements, passes, 0)
    if _ADDS_ROWS.search(name) and len(tensors) > 1:  # rows that are read, added to those of their indices
        rows, dtype = tensors[-1]
        return Op.of(kind, dtype or "bf16", elements=numel(rows), reads=2)
    if name == "aten::cat":
        total = sum(numel(s) for s, _ in tensors)
        return Op.of(kind, dtype, elements=total)
    return _passes(kind, dtype, elements, 1 if _COPIES.search(name) else passes, 1)


def _bytes(tensor: tuple[Shape, str]) -> float:
    shape, dtype = tensor
    return numel(shape) * (element_bytes(dtype) if dtype else 2.0)


def _passes(kind: str, dtype: str, elements: int, reads: float, writes: float) -> Op:
    """An op with `reads` and `writes` passes; one each is the default and not said."""
    said = {"reads": round(reads, 3), "writes": round(writes, 3)}
    return Op.of(
        kind, dtype, elements=elements, **{name: value for name, value in said.items() if value != 1}
    )


def _gathered(seen: Seen) -> int:
    """Elements that an index or gather copies: one row of the source per index."""
    source = seen.shapes[0] if seen.shapes else ()
    if seen.role.startswith(PICKS):
        return int(seen.role.removeprefix(PICKS)) * source[-1]
    index = next((s for s, t in seen.tensors[1:] if t.startswith("int") or len(s) == 1), None)
    if not source:
        return 0
    if index is None:
        return numel(source)
    if seen.operator == "aten::gather":
        return numel(index)
    return numel(index) * numel(source[1:])


def _norm(seen: Seen) -> Op | None:
    widths = [s for s, _ in seen.tensors if len(s) >= 2]
    if widths:
        tokens, width = rows_and_width(widths[0])
        extra: dict[str, float] = {"residual": 1} if "add" in seen.operator or "add" in seen.kernel else {}
        if seen.operator.startswith("aten::") and "norm" not in seen.operator:  # one op of an unfused norm
            ends = seen.operator == "aten::_to_copy" and seen.act_dtype == "fp32"  # a cast back to 16 bits
            extra = {"writes": 0} if _REDUCES.search(seen.operator) else {"writes": 0.5} if ends else {}
        return Op.of("norm", seen.act_dtype, tokens=tokens, width=width, **extra)
    model, tp = seen.model, max(1, seen.tp)
    if model is None or not seen.tokens:
        return None
    if seen.role == "inner_norm":  # of MLA's latents or an indexer's keys
        return None
    if "rsqrt_kernel" in seen.kernel:  # one op of an unfused norm: a number per token
        return Op.of("norm", seen.model_dtype, tokens=seen.tokens, width=1)
    if seen.role == "linear_norm":  # of each value head, its gate read beside
        heads = max(1, model.linear_heads // tp)
        dims = {"tokens": seen.tokens * heads, "width": model.linear_v_dim}
        return Op.of("norm", seen.model_dtype, **dims, residual=1, writes=1)
    if model.attention == "mla":
        width = {"q_norm": model.q_lora, "k_norm": model.kv_lora}.get(seen.role) or model.hidden
        heads = 0
    else:
        width = model.head_dim
        q, k = max(1, model.heads // tp), max(1, model.kv_heads // tp)
        heads = {"q_norm": q, "k_norm": k, "qk_norm": q + k}.get(seen.role, 0)
    if heads:
        return Op.of("norm", seen.model_dtype, tokens=seen.tokens * heads, width=width)
    inner = model.attention == "mla" and seen.role in ("q_norm", "k_norm")
    residual = {"residual": 1} if "add" in seen.kernel.lower() and not inner else {}
    return Op.of(
        "norm", seen.model_dtype, tokens=seen.tokens, width=width if inner else model.hidden, **residual
    )
