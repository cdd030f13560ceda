"""The ops of one forward pass of a model, layer by layer, as a serving engine with fused kernels launches them.

Per layer: norm (with the residual), fused q/k/v projection, per-head norms where the family has them, rotary embedding,
cache write, attention, output projection, norm, then a dense MLP, or shared experts, router, top-k, align, expert GEMMs
and combine (which adds the shared experts' output). Checked op by op against public traces of vLLM and SGLang; the layers with
linear attention, of which there is no public trace, follow the modules of transformers 5.23 (models/qwen3_next): projections of
queries, keys, values and gate and of what is one per head, short convolution, delta rule, gated norm, output projection.
"""

from __future__ import annotations

from dataclasses import replace

from moetrace.forward.latent import mla_ops
from moetrace.forward.passes import NONE, Beside, Pass, attention, causal_pairs, weights
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops.base import padded

NO_LAYER = -1
Placed = tuple[int, Op]  # layer, op

# Widths of stored experts are rounded up: 2880 to 3072 in the public vLLM trace of gpt-oss-20b.
_PADDING = {"mxfp4": 256}
# Expert kernels that apply the activation themselves (Triton's matmul_ogs in that trace); others launch one for it.
_FUSED_ACTIVATION = frozenset({"mxfp4"})


def step_ops(
    model: ModelSpec,
    batch: int,
    queries: int,
    context: int,
    decode: bool = True,
    beside: Beside = NONE,
    apart: bool = False,
    others: int = 0,
) -> tuple[Placed, ...]:
    """(layer, op) of one forward pass in launch order; layer -1 outside of the layers.

    `queries` new tokens in each of `batch` sequences, `context` tokens per sequence with them. In decode MLA attends to
    its compressed cache with absorbed projections, else it expands keys and values (DeepSeek-V2, arXiv 2405.04434, 2.1).
    `beside` are worked through in the same pass, as engines that
    chunk prefills do: GEMMs and experts see all tokens together, attention takes the two kinds apart. With `apart` the pass is
    over these prompts alone, and the experts see `others` tokens too, those of data-parallel groups that decode meanwhile.
    """
    p = Pass(model, batch, queries, context, decode, beside)
    p = replace(p.apart[-1], others=others) if apart else p
    out: list[Placed] = [
        (NO_LAYER, p.small("embedding", tokens=p.tokens, hidden=model.hidden, vocab=model.vocab))
    ]
    made: dict[tuple[bool, bool, bool, int], tuple[Op, ...]] = {}  # layers of one kind have the same ops
    for layer in range(model.layers):
        key = (layer == 0, model.is_moe(layer), model.is_linear(layer), model.window(layer))
        if key not in made:
            made[key] = _layer(p, *key)
        out += [(layer, op) for op in made[key]]
    return (*out, *((NO_LAYER, op) for op in _head(p)))


def _layer(p: Pass, first: bool, moe: bool, linear: bool, window: int) -> tuple[Op, ...]:
    attend = mla_ops if p.model.attention == "mla" else _gqa
    return (
        p.norm(p.model.hidden, residual=not first),
        *(_linear(p) if linear else attend(p, window)),
        p.norm(p.model.hidden, residual=True),
        *(_moe(p) if moe else _mlp(p, "dense", p.model.dense_inter)),
    )


def _head(p: Pass) -> tuple[Op, ...]:
    """Final norm, logits of each sequence's last token, sampling."""
    last = Pass(p.model, p.batch + round(p.beside[0]), 1 if not p.decode else p.queries, p.context, p.decode)
    gather = (
        () if p.tokens == last.tokens else (p.small("elementwise", elements=last.tokens * p.model.hidden),)
    )  # the last token of each
    return (
        p.norm(p.model.hidden, residual=True),
        *gather,
        last.gemm("lm_head", p.model.vocab, p.model.hidden, p.model.act_dtype),
        Op.of("sampling", "fp32", tokens=last.tokens, vocab=p.model.vocab),
    )


def _gqa(p: Pass, window: int) -> tuple[Op, ...]:
    m = p.model
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    heads = {"heads": m.heads, "kv_heads": m.kv_heads, "head_dim": m.head_dim}
    return (
        p.gemm("qkv_proj", m.query_width + 2 * kv, m.hidden),
        *_head_norms(p),
        p.small("rope", elements=p.tokens * (q + kv)),
        p.small("kv_write", elements=p.tokens * 2 * kv),
        *(attention(part, window, heads) for part in p.apart),
        *((p.small("elementwise", elements=p.tokens * q, reads=2),) if m.output_gate else ()),
        p.gemm("o_proj", m.hidden, q),
    )


def _linear(p: Pass) -> tuple[Op, ...]:
    """Linear attention: its state is read and written once per sequence, whatever the context."""
    m = p.model
    keys, values = m.linear_widths
    state = m.state_dtype if m.state_dtype == m.act_dtype else f"{m.state_dtype}/{m.act_dtype}"
    heads = {
        "heads": m.linear_heads,
        "kv_heads": m.linear_kv_heads,
        "head_dim": m.linear_dim,
        "v_dim": m.linear_v_dim,
    }
    rules = (
        Op.of(
            "linear_attention",
            state,
            batch=part.batch,
            **heads,
            **({"q": part.tokens} if part.queries > 1 else {}),
            **part.mark,
        )
        for part in p.apart
    )
    return (
        p.gemm("qkv_proj", 2 * keys + 2 * values, m.hidden),
        p.gemm("qkv_proj", 2 * m.linear_heads, m.hidden),
        *(
            p.small(
                "linear_conv",
                batch=part.batch,
                tokens=part.tokens,
                width=2 * keys + values,
                taps=m.linear_conv,
                **part.mark,
            )
            for part in p.apart
        ),
        *rules,
        p.norm(m.linear_v_dim, residual=True, per_token=m.linear_heads).with_dims(
            writes=1
        ),  # the gate is read beside
        p.gemm("o_proj", m.hidden, values),
    )


def _head_norms(p: Pass) -> tuple[Op, ...]:
    m = p.model
    if not m.qk_norm:
        return ()
    if m.qk_norm == "width":
        return p.norm(m.heads * m.head_dim), p.norm(m.kv_heads * m.head_dim)
    return p.norm(m.head_dim, per_token=m.heads), p.norm(m.head_dim, per_token=m.kv_heads)


def _mlp(p: Pass, name: str, width: int) -> tuple[Op, ...]:
    """A gated or plain MLP; `name` is dense or shared."""
    sides = 2 if p.model.gated else 1
    act = p.small(
        "activation" if name == "dense" else "shared_act",
        elements=p.tokens * width,
        **({"reads": 2} if sides == 2 else {}),
    )
    return (
        p.gemm(f"{name}_gate_up", sides * width, p.model.hidden),
        act,
        p.gemm(f"{name}_down", p.model.hidden, width),
    )


def _shared_gate(p: Pass) -> tuple[Op, ...]:
    """One logit per token, and the shared expert's output times its sigmoid."""
    return p.gemm("shared_gate", 1, p.model.hidden), p.small(
        "elementwise", elements=p.tokens * p.model.hidden
    )


def _moe(p: Pass) -> tuple[Op, ...]:
    m, pad = p.model, expert_padding(p.model)
    hidden, inter = padded(m.hidden, pad), padded(m.expert_inter, pad)
    chosen = {"tokens": p.tokens, "experts": m.experts, "topk": m.topk}
    dims = {
        "tokens": p.tokens + p.others,
        "hidden": hidden,
        "inter": inter,
        "experts": m.experts,
        "topk": m.topk,
    }
    dtype = weights(m.expert_dtype, m.act_dtype)
    gate_up = Op.of("moe_gate_up", dtype, **dims)
    act: tuple[Op, ...] = ()
    if m.expert_dtype in _FUSED_ACTIVATION:
        gate_up = gate_up.with_dims(fused=1)
    else:
        act = (p.small("moe_act", tokens=p.tokens + p.others, inter=inter, topk=m.topk),)
    return (
        *(_mlp(p, "shared", m.shared_inter) if m.shared_inter else ()),
        *(_shared_gate(p) if m.shared_inter and m.shared_gate else ()),
        p.gemm("router", m.experts, m.hidden, m.act_dtype),
        p.small("topk", **chosen),
        p.small("moe_align", **chosen),
        gate_up,
        *act,
        Op.of("moe_down", dtype, **dims),
        p.small("moe_combine", tokens=p.tokens, hidden=hidden, topk=m.topk),
    )


def expert_padding(model: ModelSpec) -> int:
    """The multiple to which the widths of a model's stored experts are padded; 0 if that changes none."""
    pad = _PADDING.get(model.expert_dtype, 0) if model.experts else 0
    return pad if pad and (model.hidden % pad or model.expert_inter % pad) else 0


__all__ = ["NONE", "NO_LAYER", "Beside", "Placed", "causal_pairs", "expert_padding", "step_ops"]
