"""Sparse attention by an indexer (DeepSeek Sparse Attention): its scores, its choice of tokens, and MLA over what it picks.

arXiv 2512.02556, section 2.1; github.com/deepseek-ai/DeepSeek-V3.2-Exp, inference/model.py. `kv` is what is read: of scores and
choice all tokens of the sequences, of MLA those that some query picks; `chosen` the most that one query picks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moetrace.model.sparse import index_key_bytes
from moetrace.op import Amounts, Op, OpGroup, Works, element_bytes
from moetrace.ops import attention
from moetrace.ops.attention import mla_work, pairs
from moetrace.ops.base import Kind, Seen, act
from moetrace.ops.gemm import quantize_work
from moetrace.ops.gemm import work as gemm_work

_FP32, _INT32 = 4.0, 4.0


def scores_work(op: OpGroup) -> Amounts:
    """I = sum over heads of w ReLU(q k): 2 head_dim FLOPs of each head and pair, 2 more for the weighted sum (eq. 1).

    Keys and queries in FP8 with their scales, each key read once for all heads and queries; scores written in fp32.
    """
    q, heads, dim = op.given("q", op["batch"]), op["heads"], op["head_dim"]
    seen = pairs(op)
    return Amounts(
        flops=2.0 * heads * (dim + 1) * seen,
        kv_read_bytes=op["kv"] * index_key_bytes(dim),
        act_read_bytes=q * heads * (dim * element_bytes(op.weight_dtype) + _FP32),
        act_write_bytes=_FP32 * seen,
        rows=q,
    )


def choice_work(op: OpGroup) -> Amounts:
    """The `chosen` highest of each query's scores: all read once, an index written for each that is picked; no FLOPs counted."""
    q = op.given("q", op["batch"])
    return Amounts(
        flops=0.0, act_read_bytes=_FP32 * pairs(op), act_write_bytes=_INT32 * q * op["chosen"], rows=q
    )


def sparse_mla_work(op: OpGroup) -> Amounts:
    """MLA's work over pairs of a query and a token that it picks, each picked token read once: fewer than are gathered, where
    queries of one sequence pick the same."""
    return mla_work(op, "chosen")


def write_work(op: OpGroup) -> Amounts:
    """One key of each token quantised into the indexer's cache, with its scale."""
    return Amounts(
        flops=2.0 * op["tokens"] * op["head_dim"],
        act_read_bytes=op["tokens"] * op["head_dim"] * act(op),
        kv_write_bytes=op["tokens"] * index_key_bytes(op["head_dim"]),
    )


def by_query(works: Works) -> Works:
    """The works with each query of `sparse_mla` as a sequence of its own, over as many tokens as it sees, which is how kernels
    cut it: queries that pick their own tokens share no tile (FlashMLA fills up a query's heads to 64, on Blackwell to 128; see
    github.com/vllm-project/vllm, pull request 46189). What is read stays as it is."""
    ops = works.ops
    if all(op.kind != "sparse_mla" for op in ops.types):
        return works
    picked = (ops.by_type([op.kind == "sparse_mla" for op in ops.types]) > 0) & works.known
    if not picked.any():
        return works
    of_pair = 2.0 * ops.column("heads") * (2.0 * ops.column("kv_lora") + ops.column("rope"))
    own = {"batch": works["rows"], "kv": np.rint(works["flops"] / of_pair), "q": np.full(len(ops), np.nan)}
    dims = {name: np.where(picked, values, ops.column(name)) for name, values in own.items()}
    return replace(works, ops=replace(ops, dims={**ops.dims, **dims}))


_SEEN = ("batch", "kv")
KINDS = (
    Kind("sparse_mla", "attention", ("batch", "heads", "kv_lora", "rope", "kv", "chosen"), sparse_mla_work),
    Kind("index_scores", "attention", (*_SEEN, "heads", "head_dim"), scores_work),
    Kind("index_topk", "attention", (*_SEEN, "chosen"), choice_work),
    Kind("index_prep", "attention", ("elements",), quantize_work),  # queries, rotated and quantised
    Kind("index_write", "attention", ("tokens", "head_dim"), write_work),
    Kind("index_proj", "dense_gemm", ("m", "n", "k"), gemm_work),
    Kind("index_weights", "dense_gemm", ("m", "n", "k"), gemm_work),
)

# DeepGEMM's, FlashMLA's, vLLM's, SGLang's and TensorRT-LLM's.
KERNELS = (
    (r"paged_mqa_logits_metadata|convert_req_index_to_global_index", "attention_plan"),
    (r"fp8_(paged_)?mqa_logits", "index_scores"),
    (r"topKPerRow(Decode|Prefill)|topk_transform_(decode|prefill)_kernel", "index_topk"),
    (r"indexer_k_quant_and_cache|fused_store_indexer_cache", "index_write"),
    (r"fused_indexer_q_rope_quant|fast_hadamard_transform_kernel", "index_prep"),
    (r"flash_fwd_splitkv_mla_fp8_sparse_kernel|\bsparse_attn_fwd_kernel", "sparse_mla"),
)
OPERATORS: tuple[tuple[str, str], ...] = ()


def dims(kind: str, seen: Seen) -> Op | None:
    """The indexer's own ops from the model; in a mixed step what a kernel sees of the tokens is not known."""
    model, q, batch, kv = seen.model, seen.tokens, seen.batch, seen.kv_tokens
    if model is None or not model.index_topk or not q or not batch or seen.phase == "mixed":
        return None
    if kind == "sparse_mla":
        return attention.dims("mla_attention", seen)
    if kind == "index_prep" and "hadamard" not in seen.kernel:  # the transform runs of queries and of keys
        return Op.of(kind, f"fp8/{model.act_dtype}", elements=q * model.index_heads * model.index_dim)
    if kind == "index_write":
        return Op.of(kind, f"fp8/{model.act_dtype}", tokens=q, head_dim=model.index_dim)
    if kv is None:
        return None
    found = {"batch": batch, "kv": kv, **({"q": q} if q != batch else {})}
    if kind == "index_scores":
        return Op.of(kind, "fp8", heads=model.index_heads, head_dim=model.index_dim, **found)
    if kind == "index_topk":
        return Op.of(kind, "fp32", chosen=model.index_topk, **found)
    return None
