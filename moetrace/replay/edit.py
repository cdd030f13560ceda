"""Edits of one op or step: functions from a value to a value, used by the knobs. Light: no numpy here.

An op whose dims are not known comes back as it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moetrace.errors import ScenarioError

if TYPE_CHECKING:
    from moetrace.model import ModelSpec
    from moetrace.op import Op
    from moetrace.run import Step

EXPERT_GEMMS = frozenset({"moe_gate_up", "moe_down", "moe_experts"})
# GEMMs whose weights the dtype knob changes; `gemm` (role not known) only inside a layer, where the router is told apart.
_TYPED = EXPERT_GEMMS | {
    "qkv_proj",
    "o_proj",
    "index_proj",
    "dense_gate_up",
    "dense_down",
    "shared_gate_up",
    "shared_down",
    "expert_up",
    "expert_down",
}
# Ops that work on the tokens of all data-parallel groups.
MODULE = frozenset({*EXPERT_GEMMS, "moe_act", "expert_up", "expert_down", "expert_act"})
# Ops whose dtype is the KV cache's, then the activations'.
CACHED = frozenset({"attention", "mla_attention", "sparse_mla", "kv_write"})
# Of single experts run one by one: the dims that hold the expert's width.
_ONE_BY_ONE = {"expert_up": "n", "expert_down": "k", "expert_act": "elements"}
EXCHANGES = frozenset({"moe_dispatch", "moe_collect"})
COLLECTIVES = EXCHANGES | {
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast"
}  # fmt: skip
_PER_TOKEN = frozenset({"m", "tokens", "batch", "q", "kv", "pairs", "elements", "rows"})
_PER_SENT = _PER_TOKEN | {"bytes"}
# Split by output columns, or by input rows, under tensor parallelism (Megatron-LM, arXiv 1909.08053, section 3).
_BY_COLUMN = frozenset({"dense_gate_up", "shared_gate_up", "expert_up"})
_BY_ROW = frozenset({"o_proj", "dense_down", "shared_down", "expert_down"})
_BY_ELEMENT = frozenset({"rope", "kv_write", "attention_reduce", "activation", "shared_act"})


# Architectures whose queries and keys are normalised over all heads, each rank its own, their squares summed over the ranks.
# OLMoE's are gathered and normalised in whole (vLLM, model_executor/models/olmoe.py).
SUMS_NORMS = frozenset({"minimax_m2"})


def activation_dtype(weights: str) -> str:
    """The activations' type that goes with a weight type.

    Weight-only formats (int4, mxfp4) multiply bf16 activations in their public kernels; the 8-bit formats quantise both
    sides. nvfp4 is taken as weight-only too, which is the careful reading where FP4 units exist.
    """
    return "bf16" if weights in ("int4", "mxfp4", "nvfp4") else weights


def retyped(op: Op, weights: str, act: str, in_layer: bool) -> Op:
    """The op with its weights in another type, where it is an expert or dense GEMM."""
    if op.kind in _TYPED or (op.kind == "gemm" and in_layer):
        return replace(op, dtype=weights if act == weights else f"{weights}/{act}")
    return op


def dispatched_narrow(experts: str) -> bool:
    """Whether tokens go to experts of this type in one byte a value, as they are quantised before they are multiplied."""
    return experts.startswith(("fp8", "mxfp8", "nvfp4"))


def redispatched(op: Op, old: str, new: str) -> Op:
    """A dispatch of tokens to experts of type `new` instead of `old`; any other op as it was."""
    if op.kind != "moe_dispatch" or not op.has("bytes") or dispatched_narrow(old) == dispatched_narrow(new):
        return op
    return op.with_dims(bytes=op["bytes"] // 2 if dispatched_narrow(new) else op["bytes"] * 2)


def with_cache(op: Op, dtype: str) -> Op:
    """An attention op or cache write with the KV cache in another type."""
    if op.kind not in CACHED:
        return op
    return replace(op, dtype=dtype if dtype == op.act_dtype else f"{dtype}/{op.act_dtype}")


def with_experts(op: Op, old: int, new: int) -> Op:
    """An op of a layer with `new` experts instead of `old`: expert ops, top-k and align, and the router's columns."""
    if op.kind == "router" and op.get("n") == old:
        return op.with_dims(n=new)
    return op.with_dims(experts=new, rows=None) if op.get("experts") == old and old != new else op


def with_width(op: Op, old: int, new: int) -> Op:
    """An expert op with experts `new` wide instead of `old`; a width stored padded keeps its padding's multiple."""
    if op.has("inter"):
        pad = 256 if op["inter"] != old and op["inter"] % 256 == 0 else 1
        return op.with_dims(inter=-(-new // pad) * pad)
    dim = _ONE_BY_ONE.get(op.kind)
    if dim is None or not op.has(dim):
        return op
    return op.with_dims(**{dim: max(1, round(op[dim] * new / old))})


def scaled(op: Op, new: int, old: int) -> Op:
    """The op at `new` sequences instead of `old`: all dims that count tokens, rows or elements in proportion.

    An op that the parser found to have no dim of tokens or sequences (`fixed`) keeps its size.
    """
    if op.get("fixed") or (type(new) is int and new == old):
        return op
    names = _PER_SENT if op.kind in COLLECTIVES else _PER_TOKEN
    dims = [(n, _one_at_least(round(v * new / old)) if n in names else v) for n, v in op.dims]
    return replace(op, dims=tuple(dims))


def _one_at_least(count: int) -> int:
    """A count that is not 0: a sum and no `max`, which would part numbers of many scenarios by their size."""
    return count + (count < 1)


def scaled_step(step: Step, new: int, old: int) -> Step:
    """The step at another batch."""
    if new == old:
        return replace(step, batch=new)
    tokens = None if step.tokens is None else max(1, round(step.tokens * new / old))
    kv = None if step.kv_tokens is None else max(1, round(step.kv_tokens * new / old))
    return replace(step, batch=new, tokens=tokens, kv_tokens=kv)


def with_context(op: Op, context: int, window: int) -> Op:
    """A decode attention op whose sequences have `context` KV tokens each, at most `window` of them read (0: all)."""
    if not op.has("kv", "batch"):
        return op
    if op.kind == "sparse_mla":  # of each query's own choice
        queries = op["q"] if op.has("q") else op["batch"]
        window = round(op["chosen"] * queries / op["batch"])
    read = min(context, window) if window else context
    op = op.with_dims(kv=round(op["batch"]) * read, pairs=None)
    if op.kind == "attention":
        cut = bool(window) and context > window
        op = op.with_dims(window=window if cut else None, context=context if cut else None)
    return op


def step_context(step: Step, context: int, batch: int | None) -> Step:
    """The decode step at another context."""
    return replace(step, kv_tokens=batch * context) if batch else step


def cut(op: Op, tp: int, expert_tp: int, model: ModelSpec | None) -> Op:
    """One rank's share of an op under tensor parallelism; experts' widths are cut `expert_tp` ways.

    Norms, router, top-k, align, combine, embedding, sampling and an indexer's ops are computed in whole on every rank, and
    so is a GEMM whose role is not known; a norm of all heads at once is of a rank's own. Raises ScenarioError where a dim does
    not divide.
    """
    kind = op.kind
    if heads := heads_normed(op, model):
        return op.with_dims(width=int(op["width"]) // min(tp, heads))
    if kind in ("qkv_proj", "o_proj") and op.has("b"):
        return _divided(op, "b", tp, tp)  # MLA's absorbed projections: one GEMM per head
    if kind in EXPERT_GEMMS or kind == "moe_act":
        return _divided(op, "inter", expert_tp, tp)
    if kind in _BY_COLUMN:
        return _divided(op, "n", tp, tp)
    if kind in _BY_ROW:
        return _divided(op, "k", tp, tp)
    if kind == "qkv_proj" and op.has("n"):
        return op.with_dims(n=_qkv_width(op, tp, model))
    if kind == "lm_head" and op.has("n"):
        return op.with_dims(n=-(-int(op["n"]) // tp))  # the vocabulary is padded to a multiple
    if kind == "linear_conv":
        return _divided(op, "width", tp, tp)
    if kind == "linear_attention":
        return _divided(_divided(op, "heads", tp, tp), "kv_heads", tp, tp)
    if kind in ("attention", "mla_attention", "sparse_mla"):
        op = _divided(op, "heads", tp, tp)
        return op.with_dims(kv_heads=max(1, int(op["kv_heads"]) // tp)) if op.has("kv_heads") else op
    if (
        kind in _BY_ELEMENT
        and op.has("elements")
        and not op.get("fixed")
        and not (kind == "kv_write" and model and model.attention == "mla")
    ):
        share = min(tp, model.kv_heads) if kind == "kv_write" and model else tp
        return op.with_dims(elements=-(-round(op["elements"]) // share))
    return op


def heads_normed(op: Op, model: ModelSpec | None) -> int:
    """Heads that a norm takes together of which each rank has its own: all of a token's queries, or keys; 0: another norm."""
    if op.kind != "norm" or op.has("residual") or model is None or model.architecture not in SUMS_NORMS:
        return 0
    return {heads * model.head_dim: heads for heads in (model.kv_heads, model.heads)}.get(int(op["width"]), 0)


def _divided(op: Op, dim: str, by: int, tp: int) -> Op:
    if by == 1 or not op.has(dim):
        return op
    value = int(op[dim])
    if value % by:
        raise ScenarioError(f"tp={tp}: {dim}={value} of {op.kind} does not divide by {by}")
    return op.with_dims(**{dim: value // by})


def _qkv_width(op: Op, tp: int, model: ModelSpec | None) -> int:
    """Output columns of one rank: query heads are shared out, KV heads too but at least one to a rank; MLA's
    down-projections are kept whole."""
    n = int(op["n"])
    if model is not None and model.attention == "mla":
        latent = model.kv_lora + model.rope_dim
        if n in (model.q_lora, latent, model.q_lora + latent):
            return n
    elif model is not None:
        q, kv = model.query_width, model.kv_heads * model.head_dim
        own_kv = max(1, model.kv_heads // tp) * model.head_dim
        known = {q + 2 * kv: q // tp + 2 * own_kv, 2 * kv: 2 * own_kv, kv: own_kv, q: q // tp}
        if n in known and model.heads % tp == 0:
            return known[n]
    if n % tp:
        raise ScenarioError(f"tp={tp}: n={n} of {op.kind} does not divide by {tp}")
    return n // tp


def local_experts(op: Op, experts: int, held: int) -> Op:
    """One rank's share of an expert op: `held` experts in whole, the global count kept beside."""
    if op.kind in EXPERT_GEMMS and op.has("experts"):
        return op.with_dims(local_experts=held, rows=None)
    if op.kind == "moe_act" and op.has("topk"):
        return op.with_dims(experts=experts, local_experts=held)
    return op


def collective(op: Op, kind: str, tokens: float, width: float, ranks: int) -> Op:
    """A collective of `tokens` x `width` activations after `op`."""
    from moetrace.op import element_bytes  # here: it brings numpy

    act = "bf16" if op.act_dtype.startswith(("fp8", "int", "mx", "nv")) else op.act_dtype
    dims = (("bytes", round(tokens * width * element_bytes(act))), ("ranks", ranks))
    return replace(op, kind=kind, dtype=act, dims=dims)
