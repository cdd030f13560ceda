"""Which MoE op a kernel or operator is, with its dims: from the operator's shapes where they tell, else from the model.

The kinds, their work and the names that lead here are in `moetrace.ops.moe`.
"""

from __future__ import annotations

import re

from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops.base import Seen, numel, padded, rows_and_width
from moetrace.ops.elementwise import sized

FUSED = "fused"  # last word of a gate_up's role: the activation runs in the same kernel
_WITH_ACT = re.compile(r"(?i)_swiglu|_silu|swiGlu|run_global<")  # so it does in these
_KERNEL_DTYPES = (
    (r"bf16xbf16xmxfp4", "mxfp4/bf16"),
    (r"fp8xfp8xmxfp4|MxE4m3_MxE2m1", "mxfp4/mxfp8"),
    (r"E2m1_?E2m1|nvfp4|NvFp4", "nvfp4"),
    (r"Bfloat16_MxE2m1", "mxfp4/mxfp8"),
    (r"fp8_ptp128c|fp8_block|blockscale|DeepSeekFp8", "fp8_block"),
    (r"wna16|gptq_awq|marlin|int4", "int4/bf16"),
    (r"[Ee]4[Mm]3|fp8", "fp8"),
)
_QUANTISES = re.compile(r"aten::(abs|amax|div|_to_copy|copy_)$")


def dims(kind: str, seen: Seen) -> Op | None:
    """The op from the operator's shapes where they tell, the rest from the model; None if neither suffices."""
    model = seen.model
    hidden, experts = _sizes(seen)
    tokens = _tokens(seen)
    topk = model.topk if model else None
    if tokens is None or not topk or not experts:
        return None
    if kind == "topk":
        return Op.of(kind, seen.model_dtype, tokens=tokens, experts=experts, topk=topk)
    if (other := _of_its_own_size(kind, seen, tokens, tokens * topk)) is not None:
        return other
    if kind == "moe_align":
        return _align(kind, seen, tokens, experts, topk, hidden)
    whole = seen.operator.startswith("aten::") and any(numel(s) == tokens * hidden for s in seen.shapes[:1])
    if kind == "moe_combine" and whole:  # a sum or scaling of whole tokens: nothing is combined
        return Op.of("elementwise", seen.act_dtype, elements=tokens * hidden)
    if kind == "moe_combine":
        return Op.of(kind, seen.model_dtype, tokens=tokens, hidden=hidden, topk=topk) if hidden else None
    if model is None or not model.expert_inter:
        return None
    # Whole experts are shared out first, their widths over the ranks that are left.
    ways = max(1, seen.tp // seen.ep)
    inter = padded(model.expert_inter // ways, seen.pad if ways == 1 else min(seen.pad, 128))
    # Every group of `tp` ranks brings its own tokens to the experts that the `ep` ranks share out.
    tokens *= max(1, seen.ep // seen.tp)
    local = {"local_experts": -(-experts // seen.ep)} if seen.ep > 1 else {}
    if kind == "moe_act":
        one = (
            {"reads": 1}
            if seen.operator in ("aten::silu", "aten::gelu", "aten::sigmoid", "aten::clamp")
            else {}
        )
        if local:
            one = {"experts": experts, **local, **one}
        return Op.of(kind, seen.model_dtype, tokens=tokens, inter=inter, topk=topk, **one)
    op = Op.of(kind, _dtype(seen), tokens=tokens, hidden=hidden, inter=inter, experts=experts, topk=topk)
    op = op.with_dims(**local)
    fused = _WITH_ACT.search(seen.kernel) or seen.role.endswith(FUSED)
    return op.with_dims(fused=1) if kind == "moe_gate_up" and fused else op


def _of_its_own_size(kind: str, seen: Seen, tokens: int, choices: int) -> Op | None:
    """A framework's operator on other rows than one for each of the step's `choices`, sized by its tensors; None for any other.

    Where experts run one by one each has few of the rows, and so many operators that each would be counted as the whole;
    quantising works on rows, not on ids.
    """
    floats = [(s, t) for s, t in seen.tensors if len(s) == 2 and not t.startswith(("int", "bool"))]
    if not (seen.operator.startswith("aten::") and floats and seen.model):
        return None
    if re.search(r"aten::index_add_?$", seen.operator):  # rows read, added to those of their tokens
        shape, dtype = floats[-1]
        few = len(floats) > 1 and shape[0] < choices
        return Op.of("elementwise", dtype or "bf16", elements=numel(shape), reads=2) if few else None
    shape, dtype = max(floats, key=lambda t: numel(t[0]))
    if kind == "moe_act":
        return sized("expert_act", seen, numel(shape), dtype) if shape[0] < choices or shape[1] == 1 else None
    few = kind == "moe_combine" and shape[0] < choices and shape[0] != tokens
    rows = kind == "moe_align" and _QUANTISES.search(seen.operator) and shape[1] in _widths(seen.model)
    return sized("elementwise", seen, numel(shape), dtype) if few or rows else None


def _widths(model: ModelSpec) -> tuple[int, ...]:
    """Widths of the rows that experts get, make in between, and give."""
    return model.hidden, model.expert_inter, 2 * model.expert_inter


def _align(kind: str, seen: Seen, tokens: int, experts: int, topk: int, hidden: int) -> Op:
    """Ids only, rows once (padding, quantising), or a copy of the row for each of its experts."""
    dims = {"tokens": tokens, "experts": experts, "topk": topk}
    gathers = (
        seen.operator == "aten::index"
        and len(seen.shapes) > 0
        and len(seen.shapes[0]) == 2
        and seen.shapes[0][1] == hidden
    )
    expands = gathers or re.search(r"expandInput|permute|ep_scatter", seen.kernel)
    if hidden and (expands or re.search(r"pad_nd|quantize|cast", seen.kernel)):
        dims["hidden"] = hidden
        if expands:
            dims["copies"] = topk
    return Op.of(kind, seen.model_dtype, **dims)


def _sizes(seen: Seen) -> tuple[int, int]:
    """(hidden as the kernel sees it, number of experts), from shapes [T, hidden], [T, experts], else from the model."""
    model = seen.model
    hidden, experts = (model.hidden, model.experts) if model else (0, 0)
    matrices = [s for s in seen.shapes if len(s) == 2]
    if _is_moe_block(seen) and len(matrices) >= 2 and matrices[0][0] == matrices[1][0]:
        hidden, experts = matrices[0][1], matrices[1][1]
    elif seen.pad and hidden:
        hidden = padded(hidden, seen.pad)
    return hidden, experts


def _is_moe_block(seen: Seen) -> bool:
    """Whether the operator is an engine's whole MoE block, called with hidden states and router logits."""
    return "moe" in seen.operator and not seen.operator.startswith("triton")


def _tokens(seen: Seen) -> int | None:
    """Tokens of the step: rows of the block's input, else what the step's annotation says."""
    matrices = [s for s in seen.shapes if len(s) == 2]
    if _is_moe_block(seen) and matrices:
        return rows_and_width(matrices[0])[0]
    return seen.tokens


def _dtype(seen: Seen) -> str:
    """Element types of an expert GEMM, from the kernel's name, else from the model's expert weights."""
    for pattern, dtype in _KERNEL_DTYPES:
        if re.search(pattern, seen.kernel):
            return dtype
    weight = seen.model.expert_dtype if seen.model else "bf16"
    return weight if weight in ("bf16", "fp16", "fp32", "fp8", "fp8_block") else f"{weight}/bf16"
