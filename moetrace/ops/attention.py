"""Attention (MHA, GQA, MLA), rotary embedding and KV cache writes.

`kv` is the number of KV tokens that the layer reads, summed over sequences and already cut to a sliding window (then `context`
is a sequence's, uncut); `q` the query tokens of the step (default: one per sequence). The op's dtype is the KV cache's, then the activations'.
"""

from __future__ import annotations

import re

import numpy as np

from moetrace.op import Amounts, FloatArray, Op, OpGroup, element_bytes
from moetrace.ops.base import Kind, Seen, act, is_fixed, numel


def pairs(op: OpGroup, most_of: str = "window") -> FloatArray:
    """Query-key pairs under a causal mask: each query sees the keys before it and itself, at most `window` of them (or as many
    as the dim that `most_of` names).

    The dim `pairs` says it; without one, sequences are taken as equally long, and a sequence's queries as its last tokens.
    """
    batch, said = op["batch"], op.get("pairs")
    if said is not None:
        return said
    sequences = np.where(batch > 0, batch, 1.0)
    keys = op["kv"] / sequences
    queries = np.minimum(op.given("q", batch) / sequences, keys)
    most = np.minimum(op.given(most_of, keys), keys)
    first = np.minimum(
        keys - queries + 1, most
    )  # keys that the first query sees; each later one sees one more
    rising = np.minimum(most - first + 1, queries)
    seen = batch * (rising * (first + most) / 2 + (queries - rising) * most)
    return np.asarray(np.where((batch > 0) & (op["kv"] > 0), seen, 0.0))


def gqa_work(op: OpGroup) -> Amounts:
    """4 heads head_dim FLOPs per query-key pair; K and V of every token read once per KV head (V may be `v_dim` wide)."""
    heads, kv_heads, dim = op["heads"], op["kv_heads"], op["head_dim"]
    value = op.given("v_dim", dim)
    q = op.given("q", op["batch"])
    return Amounts(
        flops=2.0 * heads * (dim + value) * pairs(op),
        kv_read_bytes=op["kv"] * kv_heads * (dim + value) * element_bytes(op.weight_dtype),
        act_read_bytes=q * heads * dim * act(op),
        act_write_bytes=q * heads * value * act(op),
        rows=q,
    )


def mla_work(op: OpGroup, most_of: str = "window") -> Amounts:
    """Absorbed MLA decode: scores over lora + rope, values over lora; the compressed cache is read once for all heads. `most_of`
    names the dim with the most that a query sees.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1 (512 + 64 elements per token and layer).
    """
    heads, lora, rope = op["heads"], op["kv_lora"], op["rope"]
    q = op.given("q", op["batch"])
    return Amounts(
        flops=2.0 * heads * (2 * lora + rope) * pairs(op, most_of),
        kv_read_bytes=op["kv"] * (lora + rope) * element_bytes(op.weight_dtype),
        act_read_bytes=q * heads * (lora + rope) * act(op),
        act_write_bytes=q * heads * lora * act(op),
        rows=q,
    )


def reduce_work(op: OpGroup) -> Amounts:
    """Merging split-KV partial results: fp32 partials of a few splits in, one row out; `elements` outputs."""
    return Amounts(
        flops=4.0 * op["elements"],
        act_read_bytes=8 * op["elements"] * 4,
        act_write_bytes=op["elements"] * act(op),
    )


def rope_work(op: OpGroup) -> Amounts:
    """Rotation in place: every element read and written once."""
    nbytes = op["elements"] * act(op)
    return Amounts(flops=3.0 * op["elements"], act_read_bytes=nbytes, act_write_bytes=nbytes)


def kv_write_work(op: OpGroup) -> Amounts:
    """New K and V read as activations and written to the cache."""
    return Amounts(
        act_read_bytes=op["elements"] * act(op),
        kv_write_bytes=op["elements"] * element_bytes(op.weight_dtype),
    )


_E = ("elements",)
KINDS = (
    Kind("attention", "attention", ("batch", "heads", "kv_heads", "head_dim", "kv"), gqa_work),
    Kind("mla_attention", "attention", ("batch", "heads", "kv_lora", "rope", "kv"), mla_work),
    Kind("attention_reduce", "attention", _E, reduce_work),
    Kind("rope", "attention", _E, rope_work),
    Kind("kv_write", "attention", _E, kv_write_work),
)

KERNELS = (
    (
        r"reduce_segments|paged_attention\w*_reduce|flash_fwd_splitkv_combine|FlashAttnFwdCombine|mla_combine|merge_attn_states|MergeStates|_fwd_kernel_stage2|VariableLengthMergeStates|kernel_mla_reduce",
        "attention_reduce",
    ),
    (
        r"(?i)flash_?mla|mla_decode|cutlass_mla|mla_fwd|FlashAttnMLA|mla_a8w8|_fwd_grouped_kernel_stage1_mla|BatchMLA",
        "mla_attention",
    ),
    (
        r"reshape_and_cache|store_kvcache|concat_and_cache|set_kv_buffer|copy_kv|append_paged_kv|set_mla_kv_buffer|cp_gather_cache|kv_cache_copy",
        "kv_write",
    ),
    (r"(?i)rotary|\brope\b|_rope_|apply_rope|fused_qk_norm_rope|rope_quantize", "rope"),
    (
        r"(?i)flash_fwd|flash_attn|FlashAttn|fmha|unified_attention|paged_attention|BatchDecode|BatchPrefill|SinglePrefill|_fwd_kernel_stage1|_fwd_grouped_kernel_stage1|(?<!norm)_fwd_kernel$|attention_2d|attention_3d|cudnn\w*sdpa|fmhaKernel|device_kernel<flash::|mmha|masked_multihead|aiter.*fmha|attn_fwd|MHA|mha_fwd",
        "attention",
    ),
    (
        r"create_flashinfer_kv_indices|_copy_page_indices|get_kv_indices|kv_indptr|metadata_kernel|prepare_varlen_num_blocks|plan_kernel",
        "attention_plan",
    ),
)
OPERATORS = (
    (
        r"scaled_dot_product|_flash_attention_forward|unified_attention|flash_attn|paged_attention|_efficient_attention",
        "attention",
    ),
    (r"rotary|apply_rope", "rope"),
    (r"unified_kv_cache_update|reshape_and_cache|aten::index_copy_", "kv_write"),
)


def dims(kind: str, seen: Seen) -> Op | None:
    """The op from the operator's shapes, the step's KV length and the layer's window, else from the model."""
    if kind in ("rope", "kv_write"):
        return _moved(kind, seen)
    if kind == "attention_reduce":
        sizes = _heads(seen)
        q = seen.tokens
        width = seen.model.kv_lora if _latent(seen) and seen.model else sizes[2] if sizes else 0
        return Op.of(kind, "bf16", elements=q * sizes[0] * width) if sizes and q else None
    # MLA over its compressed cache; over keys and values that were expanded first, it is plain attention.
    if kind == "mla_attention" or _latent(seen):
        return _mla(seen)
    sizes, q = _heads(seen), _query_tokens(seen)
    kv, batch = _kv(seen)
    if not sizes or q is None or kv is None or batch is None:
        return None
    heads, kv_heads, dim = sizes
    extra = {"q": q} if q != batch else {}
    if _sdpa(seen) and len(seen.shapes) >= 3 and seen.shapes[2] and seen.shapes[2][-1] != dim:
        extra["v_dim"] = seen.shapes[2][-1]
    if seen.window and kv > batch * seen.window:  # a window also needs the keys that its first query sees
        extra |= {"window": seen.window, "context": round(kv / batch)}
        kv = min(kv, batch * seen.window + q - batch)
    op = Op.of(
        "attention",
        _kv_dtype(seen),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        kv=kv,
        **extra,
    )
    return op if _sdpa(seen) else _with_pairs(op, seen)


def _with_pairs(op: Op, seen: Seen) -> Op:
    """The op with the step's own count of pairs, where that is not what equally long sequences would have.

    A window cuts each sequence's pairs by its own length, which sums over sequences do not tell.
    """
    if seen.pairs is None or op.has("window") or abs(float(pairs(OpGroup.of(op))[0]) - seen.pairs) < 0.5:
        return op
    return op.with_dims(pairs=round(seen.pairs))


def _sdpa(seen: Seen) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]] | None:
    """Queries and keys as (sequences, heads, tokens, head dim), from torch's attention operators."""
    if len(seen.shapes) < 2 or len(seen.shapes[0]) != 4 or len(seen.shapes[1]) != 4:
        return None
    (b, x, y, d), (_, kx, ky, _) = seen.shapes[0], seen.shapes[1]
    if "scaled_dot_product" in seen.operator:
        return (b, x, y, d), (b, kx, ky, d)
    if re.search(r"_(flash|efficient)_attention_forward", seen.operator):  # these have tokens before heads
        return (b, y, x, d), (b, ky, kx, d)
    return None


def _heads(seen: Seen) -> tuple[int, int, int] | None:
    """(query heads, KV heads, head dim) of one rank."""
    shapes, torch = [s for s in seen.shapes if s], _sdpa(seen)
    if torch:
        return torch[0][1], torch[1][1], torch[0][3]
    if "attention" in seen.operator and len(shapes) >= 2 and len(shapes[0]) == 3 and len(shapes[1]) == 3:
        return shapes[0][1], shapes[1][1], shapes[0][2]
    model, tp = seen.model, max(1, seen.tp)
    if model is None or not model.heads:
        return None
    return max(1, model.heads // tp), max(1, model.kv_heads // tp), model.head_dim


def _query_tokens(seen: Seen) -> int | None:
    torch = _sdpa(seen)
    return torch[0][0] * torch[0][2] if torch else seen.tokens


def _kv(seen: Seen) -> tuple[int | None, int | None]:
    """(KV tokens read, sequences)."""
    torch = _sdpa(seen)
    if torch:
        return torch[1][0] * torch[1][2], torch[0][0]
    if seen.kv_tokens is not None:
        return seen.kv_tokens, seen.batch or 1
    return None, seen.batch


def _mla(seen: Seen) -> Op | None:
    model, (kv, batch) = seen.model, _kv(seen)
    if model is None or not model.kv_lora or kv is None or batch is None:
        return None
    q = _query_tokens(seen) or batch
    extra: dict[str, float] = {"q": q} if q != batch else {}
    if model.index_topk:  # of each query's own choice, as of sequences that are equally long
        kv = min(kv, q * model.index_topk)
        extra["chosen"] = model.index_topk
    kind = "sparse_mla" if model.index_topk else "mla_attention"
    op = Op.of(kind, _kv_dtype(seen), batch=batch, heads=max(1, model.heads // max(1, seen.tp)),
               kv_lora=model.kv_lora, rope=model.rope_dim, kv=kv, **extra)  # fmt: skip
    return op if model.index_topk else _with_pairs(op, seen)


def _moved(kind: str, seen: Seen) -> Op | None:
    """Rotary embedding and cache writes: the elements of q and k, or of k and v."""
    shapes = [s for s in seen.shapes if len(s) >= 2]
    if kind == "kv_write" and shapes:
        both = 1 if "index_copy" in seen.operator else 2
        source = shapes[-1] if both == 1 else shapes[0]
        return Op.of(kind, _kv_dtype(seen), elements=both * numel(source))
    if kind == "rope" and len(shapes) >= 2 and "rotary" in seen.operator:
        return Op.of(kind, seen.act_dtype, elements=numel(shapes[0]) + numel(shapes[1]))
    if kind == "rope" and seen.operator.startswith("aten::"):  # also the arithmetic on positions around it
        fixed = {"fixed": 1} if is_fixed(seen) else {}
        size = max((numel(s) for s, _ in seen.tensors), default=1)
        return Op.of(kind, seen.act_dtype, elements=size, **fixed)
    sizes = _heads(seen)
    if not sizes or seen.tokens is None:
        return None
    heads, kv_heads, dim = sizes
    width = (heads + kv_heads if kind == "rope" else 2 * kv_heads) * dim
    if _latent(seen) and seen.model:  # one latent and one rotary key for all heads
        rope, lora = seen.model.rope_dim, seen.model.kv_lora
        width = (heads + 1) * rope if kind == "rope" else lora + rope
    return Op.of(kind, _kv_dtype(seen) if kind == "kv_write" else "bf16", elements=seen.tokens * width)


def _latent(seen: Seen) -> bool:
    """Whether the layer's cache is MLA's compressed one."""
    return seen.model is not None and seen.model.attention == "mla" and not _sdpa(seen)


def _kv_dtype(seen: Seen) -> str:
    """fp8 caches are named in the kernel; otherwise the cache has the activations' type."""
    if "E4m3" in seen.kernel or "Fp8KVCacheDataType)1" in seen.kernel:
        return "fp8/bf16"
    return seen.act_dtype
