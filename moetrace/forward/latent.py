"""The ops of multi-head latent attention, and of an indexer that picks the tokens it attends to.

MLA: DeepSeek-V2, arXiv 2405.04434, section 2.1. The indexer: DeepSeek-V3.2, arXiv 2512.02556, section 2.1, and the public
inference code (github.com/deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py): queries from MLA's latent, one key of each token
kept in FP8, a weight for each head, scores of every query over the whole context, the choice of the highest. Engines
launch these apart (github.com/vllm-project/vllm, model_executor/layers/sparse_attn_indexer.py), as is done here.
"""

from __future__ import annotations

from moetrace.forward.passes import Pass, attention, causal_pairs
from moetrace.op import Op


def mla_ops(p: Pass, window: int) -> tuple[Op, ...]:
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
    return (*queries, *_indexer(p), *before, *move, *after, out)


def _indexer(p: Pass) -> tuple[Op, ...]:
    """An indexer's ops up to its choice of tokens; none for a model without one. Where fewer tokens are there than it picks, it
    runs all the same, as in vLLM and SGLang (TensorRT-LLM then leaves scores and choice out)."""
    m = p.model
    if not m.index_topk:
        return ()
    queries = m.index_heads * m.index_dim
    return (
        p.gemm("index_proj", queries, m.q_lora),
        p.gemm("index_proj", m.index_dim, m.hidden),
        p.gemm("index_weights", m.index_heads, m.hidden, m.act_dtype),  # of the heads, in no scheme quantised
        p.norm(m.index_dim),
        Op.of("index_prep", f"fp8/{m.act_dtype}", elements=p.tokens * queries),
        Op.of("index_write", f"fp8/{m.act_dtype}", tokens=p.tokens, head_dim=m.index_dim),
        *(op for part in p.apart for op in _choice(part)),
    )


def _choice(p: Pass) -> tuple[Op, ...]:
    """The scores of each token's query with all keys that it sees, and the choice of the highest."""
    m = p.model
    seen: dict[str, int] = {
        "batch": p.batch,
        "kv": round(p.mean * p.context) if p.mean else p.batch * p.context,
    }
    if p.queries > 1:
        seen["q"] = p.tokens
    if p.mean:
        seen["pairs"] = round(p.mean * causal_pairs(p.queries, p.context, 0))
    return (
        Op.of("index_scores", "fp8", heads=m.index_heads, head_dim=m.index_dim, **seen),
        Op.of("index_topk", "fp32", chosen=m.index_topk, **seen),
    )


def _latent(p: Pass, window: int) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """(what comes before MLA's cache write, attention and what is left), for tokens of one kind."""
    m = p.model
    # A prompt no longer than what an indexer picks is attended to as a whole, with keys and values expanded (the masked MHA
    # mode of arXiv 2512.02556, section 2.3; SGLang and TensorRT-LLM do so too); a longer one as in decode.
    if not p.decode and not (m.index_topk and p.context > m.index_topk):
        heads = {"heads": m.heads, "kv_heads": m.heads, "head_dim": m.head_dim, "v_dim": m.v_dim}
        expand = p.gemm("qkv_proj", m.heads * (m.nope_dim + m.v_dim), m.kv_lora)
        return (expand,), (attention(p, window, heads),)
    absorb = p.gemm("qkv_proj", m.kv_lora, m.nope_dim, b=m.heads)  # into the latent, one GEMM per head
    expand = p.gemm("o_proj", m.v_dim, m.kv_lora, b=m.heads)  # and out of it
    return (absorb.with_dims(**p.mark),), (_attend(p), expand.with_dims(**p.mark))


def _attend(p: Pass) -> Op:
    """MLA over the compressed cache, or over the tokens of it that an indexer picks, of each query its own."""
    m = p.model
    sequences = p.mean or p.batch
    dims = {"batch": p.batch, "heads": m.heads, "kv_lora": m.kv_lora, "rope": m.rope_dim}
    extra = {"q": p.tokens} if p.queries > 1 else {}
    if not m.index_topk:
        return p.small("mla_attention", **dims, kv=p.batch * p.context, **extra)
    kv = round(sequences * min(p.context, p.queries * m.index_topk))
    if p.mean:
        extra["pairs"] = round(p.mean * causal_pairs(p.queries, p.context, m.index_topk))
    return p.small("sparse_mla", **dims, kv=kv, chosen=m.index_topk, **extra)
