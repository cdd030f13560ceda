"""The ops of one forward pass of a model, layer by layer, as a serving engine with fused kernels launches them.

Per layer: norm (with the residual), fused q/k/v projection, per-head norms where the family has them, rotary embedding,
cache write, attention, output projection, norm, then a dense MLP, or shared experts, router, top-k, align, expert GEMMs
and combine (which adds the shared experts' output). Checked op by op against public traces of vLLM and SGLang; the layers with
linear attention, of which there is no public trace, follow the modules of transformers 5.23 (models/qwen3_next): projections of
queries, keys, values and gate and of what is one per head, short convolution, delta rule, gated norm, output projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops.base import padded

NO_LAYER = -1
Placed = tuple[int, Op]  # layer, op
# Prompts that are worked through beside a decode: how many on average, new tokens of each, context of each with them.
Beside = tuple[float, int, int]
NONE: Beside = (0, 0, 0)

# Weight types whose public kernels multiply 16-bit activations (as replay's dtype knob takes them).
_WEIGHT_ONLY = frozenset({"int4", "mxfp4", "nvfp4"})
# Widths of stored experts are rounded up: 2880 to 3072 in the public vLLM trace of gpt-oss-20b.
_PADDING = {"mxfp4": 256}
# Expert kernels that apply the activation themselves (Triton's matmul_ogs in that trace); others launch one for it.
_FUSED_ACTIVATION = frozenset({"mxfp4"})


@dataclass(frozen=True, slots=True)
class _Pass:
    """One forward pass: `queries` new tokens in each of `batch` sequences, which then have `context` tokens each.

    Beside a decode, prompts of other sequences may be worked through: (how many on average, new tokens of each, context of each
    with them). A pass over such prompts alone has `mean` of them, as whole sequences as they can be.
    """

    model: ModelSpec
    batch: int
    queries: int
    context: int
    decode: bool
    beside: Beside = NONE
    mean: float = 0.0

    @property
    def tokens(self) -> int:
        prompts, new, _ = self.beside
        own = round(self.mean * self.queries) if self.mean else self.batch * self.queries
        return own + round(prompts * new)

    @property
    def apart(self) -> tuple[_Pass, ...]:
        """The decode and the prompts beside it as passes of their own, for what attends to each."""
        prompts, new, seen = self.beside
        if not prompts:
            return (self,)
        alone = replace(self, beside=NONE)
        return alone, replace(
            alone, batch=round(prompts), queries=new, context=seen, decode=False, mean=prompts
        )

    def gemm(self, kind: str, n: int, k: int, dtype: str = "", **more: int) -> Op:
        """A GEMM over all tokens of the pass; weights in the model's own type unless `dtype` says otherwise."""
        return Op.of(
            kind, dtype or weights(self.model.dtype, self.model.act_dtype), m=self.tokens, n=n, k=k, **more
        )

    def small(self, kind: str, **dims: int) -> Op:
        """An op without matrix weights, on activations."""
        return Op.of(kind, self.model.act_dtype, **dims)

    def norm(self, width: int, residual: bool = False, per_token: int = 1) -> Op:
        op = self.small("norm", tokens=self.tokens * per_token, width=width)
        return op.with_dims(residual=1) if residual else op


def weights(dtype: str, act: str) -> str:
    """The dtype text of an op from that of its weights: weight-only formats name the activations' type beside."""
    return f"{dtype}/{act}" if dtype in _WEIGHT_ONLY else dtype


def step_ops(
    model: ModelSpec,
    batch: int,
    queries: int,
    context: int,
    decode: bool = True,
    beside: Beside = NONE,
) -> tuple[Placed, ...]:
    """(layer, op) of one forward pass in launch order; layer -1 outside of the layers.

    `queries` new tokens in each of `batch` sequences, `context` tokens per sequence with them. In decode MLA attends to
    its compressed cache with absorbed projections, else it expands keys and values (DeepSeek-V2, arXiv 2405.04434, 2.1).
    `beside` are worked through in the same pass, as engines that
    chunk prefills do: GEMMs and experts see all tokens together, attention takes the two kinds apart.
    """
    p = _Pass(model, batch, queries, context, decode, beside)
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


def _layer(p: _Pass, first: bool, moe: bool, linear: bool, window: int) -> tuple[Op, ...]:
    attend = _mla if p.model.attention == "mla" else _gqa
    return (
        p.norm(p.model.hidden, residual=not first),
        *(_linear(p) if linear else attend(p, window)),
        p.norm(p.model.hidden, residual=True),
        *(_moe(p) if moe else _mlp(p, "dense", p.model.dense_inter)),
    )


def _head(p: _Pass) -> tuple[Op, ...]:
    """Final norm, logits of each sequence's last token, sampling."""
    last = _Pass(p.model, p.batch + round(p.beside[0]), 1 if not p.decode else p.queries, p.context, p.decode)
    gather = (
        () if p.tokens == last.tokens else (p.small("elementwise", elements=last.tokens * p.model.hidden),)
    )  # the last token of each
    return (
        p.norm(p.model.hidden, residual=True),
        *gather,
        last.gemm("lm_head", p.model.vocab, p.model.hidden, p.model.act_dtype),
        Op.of("sampling", "fp32", tokens=last.tokens, vocab=p.model.vocab),
    )


def _gqa(p: _Pass, window: int) -> tuple[Op, ...]:
    m = p.model
    q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
    heads = {"heads": m.heads, "kv_heads": m.kv_heads, "head_dim": m.head_dim}
    return (
        p.gemm("qkv_proj", m.query_width + 2 * kv, m.hidden),
        *_head_norms(p),
        p.small("rope", elements=p.tokens * (q + kv)),
        p.small("kv_write", elements=p.tokens * 2 * kv),
        *(_attention(part, window, heads) for part in p.apart),
        *((p.small("elementwise", elements=p.tokens * q, reads=2),) if m.output_gate else ()),
        p.gemm("o_proj", m.hidden, q),
    )


def _linear(p: _Pass) -> tuple[Op, ...]:
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
            )
            for part in p.apart
        ),
        *rules,
        p.norm(m.linear_v_dim, residual=True, per_token=m.linear_heads).with_dims(
            writes=1
        ),  # the gate is read beside
        p.gemm("o_proj", m.hidden, values),
    )


def _head_norms(p: _Pass) -> tuple[Op, ...]:
    m = p.model
    if not m.qk_norm:
        return ()
    if m.qk_norm == "width":
        return p.norm(m.heads * m.head_dim), p.norm(m.kv_heads * m.head_dim)
    return p.norm(m.head_dim, per_token=m.heads), p.norm(m.head_dim, per_token=m.kv_heads)


def _attention(p: _Pass, window: int, heads: dict[str, int]) -> Op:
    """Attention over whole keys and values; a window also needs the keys that its first query sees.

    Kernels that cut a context into parts cut what lies beyond a window too: `context` is a sequence's whole.
    """
    kv = round(p.mean * p.context) if p.mean else p.batch * p.context
    extra = {"q": p.tokens} if p.queries > 1 else {}
    if p.mean:
        extra["pairs"] = round(p.mean * causal_pairs(p.queries, p.context, window))
    if window and p.context > window:
        kv = min(kv, p.batch * window + p.tokens - p.batch)
        extra |= {"window": window, "context": p.context}
    return p.small("attention", batch=p.batch, **heads, kv=kv, **extra)


def causal_pairs(queries: float, context: float, window: float) -> float:
    """Keys that the last `queries` tokens of one sequence see, summed: a window cuts those that would see more."""
    most = min(window, context) if window else context
    first = min(context - queries + 1, most)
    rising = min(most - first + 1, queries)
    return rising * (first + most) / 2 + (queries - rising) * most


def _mla(p: _Pass, window: int) -> tuple[Op, ...]:
    """Multi-head latent attention: queries by way of a low rank where there is one, projected with the latent in one GEMM."""
    m = p.model
    latent, q = m.kv_lora + m.rope_dim, m.heads * m.head_dim
    queries: tuple[Op, ...]
    if m.q_lora:
        queries = (
            p.gemm("qkv_proj", m.q_lora + latent, m.hidden),
            p.norm(m.q_lora),
            p.norm(m.kv_lora),
            p.gemm("qkv_proj", q, m.q_lora),
        )
    else:
        queries = (p.gemm("qkv_proj", q, m.hidden), p.gemm("qkv_proj", latent, m.hidden), p.norm(m.kv_lora))
    move = (
        p.small("rope", elements=p.tokens * (m.heads + 1) * m.rope_dim),
        p.small("kv_write", elements=p.tokens * latent),
    )
    out = p.gemm("o_proj", m.hidden, m.heads * m.v_dim)
    parts = [_latent(part, window) for part in p.apart]
    before, after = ([op for part in parts for op in part[i]] for i in (0, 1))
    return (*queries, *before, *move, *after, out)


def _latent(p: _Pass, window: int) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """(what comes before MLA's cache write, attention and what is left), for tokens of one kind."""
    m = p.model
    if not p.decode:
        heads = {"heads": m.heads, "kv_heads": m.heads, "head_dim": m.head_dim, "v_dim": m.v_dim}
        expand = p.gemm("qkv_proj", m.heads * (m.nope_dim + m.v_dim), m.kv_lora)
        return (expand,), (_attention(p, window, heads),)
    extra = {"q": p.tokens} if p.queries > 1 else {}
    attend = p.small(
        "mla_attention",
        batch=p.batch,
        heads=m.heads,
        kv_lora=m.kv_lora,
        rope=m.rope_dim,
        kv=p.batch * p.context,
        **extra,
    )
    absorb = p.gemm("qkv_proj", m.kv_lora, m.nope_dim, b=m.heads)  # into the latent, one GEMM per head
    expand = p.gemm("o_proj", m.v_dim, m.kv_lora, b=m.heads)  # and out of it
    return (absorb,), (attend, expand)


def _mlp(p: _Pass, name: str, width: int) -> tuple[Op, ...]:
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


def _shared_gate(p: _Pass) -> tuple[Op, ...]:
    """One logit per token, and the shared expert's output times its sigmoid."""
    return p.gemm("shared_gate", 1, p.model.hidden), p.small(
        "elementwise", elements=p.tokens * p.model.hidden
    )


def _moe(p: _Pass) -> tuple[Op, ...]:
    m, pad = p.model, expert_padding(p.model)
    hidden, inter = padded(m.hidden, pad), padded(m.expert_inter, pad)
    chosen = {"tokens": p.tokens, "experts": m.experts, "topk": m.topk}
    dims = {
        "tokens": p.tokens,
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
        act = (p.small("moe_act", tokens=p.tokens, inter=inter, topk=m.topk),)
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
