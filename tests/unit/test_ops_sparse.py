"""Sparse attention by an indexer: work by hand, kernel names, sizes from the model."""

from __future__ import annotations

import pytest

from moetrace import ops
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.ops.base import Seen

V32 = load_model("deepseek-v3.2")


def test_scores_by_hand() -> None:
    """Two sequences of 10 tokens, 4 heads of 256: keys in FP8 with two scales, one score of each token and query."""
    w = ops.work(Op.of("index_scores", "fp8", heads=4, head_dim=256, batch=2, kv=20))
    assert w.flops == 20 * 4 * 2 * (256 + 1)
    assert w.kv_read_bytes == 20 * (256 + 2 * 4)
    assert w.act_read_bytes == 2 * 4 * (256 + 4) and w.act_write_bytes == 20 * 4


def test_a_prompts_queries_score_what_came_before_them() -> None:
    """Three queries at the end of five tokens see 3, 4 and 5 keys, each of which is read once."""
    w = ops.work(Op.of("index_scores", "fp8", heads=1, head_dim=128, batch=1, kv=5, q=3))
    assert w.flops == 12 * 2 * 129 and w.kv_read_bytes == 5 * 132 and w.act_write_bytes == 12 * 4
    assert ops.work(Op.of("index_topk", "fp32", batch=1, kv=5, q=3, chosen=2)).act_read_bytes == 12 * 4


def test_the_choice_by_hand() -> None:
    w = ops.work(Op.of("index_topk", "fp32", batch=2, kv=20, chosen=3))
    assert (w.flops, w.act_read_bytes, w.act_write_bytes, w.rows) == (0, 20 * 4, 2 * 3 * 4, 2)


def test_a_key_written_and_queries_quantised_by_hand() -> None:
    w = ops.work(Op.of("index_write", "fp8/bf16", tokens=3, head_dim=128))
    assert (w.act_read_bytes, w.kv_write_bytes) == (3 * 128 * 2, 3 * 132)
    w = ops.work(Op.of("index_prep", "fp8/bf16", elements=100))
    assert (w.act_read_bytes, w.act_write_bytes) == (200, 100)


@pytest.mark.parametrize(
    ("dims", "pairs", "read"),
    [
        ({"batch": 2, "kv": 8}, 8, 8),  # four tokens of each sequence, all of them picked
        ({"batch": 2, "kv": 10}, 10, 10),
        ({"batch": 1, "kv": 9, "q": 3}, 15, 9),  # three queries that see 7, 8 and 9 tokens pick 5 each
        ({"batch": 1, "kv": 6, "q": 3}, 14, 6),  # that see 4, 5 and 6
        ({"batch": 2, "kv": 12, "q": 6, "pairs": 28}, 28, 12),
    ],
)
def test_mla_over_what_is_picked_by_hand(dims: dict[str, int], pairs: int, read: int) -> None:
    w = ops.work(Op.of("sparse_mla", "fp8/bf16", heads=3, kv_lora=32, rope=8, chosen=5, **dims))
    assert w.flops == 2 * 3 * (2 * 32 + 8) * pairs and w.kv_read_bytes == read * 40


def test_mla_over_few_tokens_is_mla() -> None:
    dims = {"batch": 4, "heads": 128, "kv_lora": 512, "rope": 64, "kv": 4 * 2000}
    one, other = Op.of("mla_attention", "bf16", **dims), Op.of("sparse_mla", "bf16", **dims, chosen=2048)
    assert ops.work(one) == ops.work(other)


@pytest.mark.parametrize(
    ("kernel", "op"),
    [
        ("void deep_gemm::sm90_fp8_paged_mqa_logits<1u, 64u>", "index_scores fp8 heads=64 head_dim=128 batch=4 kv=20000"),
        ("sm100_fp8_mqa_logits", "index_scores fp8 heads=64 head_dim=128 batch=4 kv=20000"),
        ("void tensorrt_llm::kernels::topKPerRowDecode<512, true>", "index_topk fp32 chosen=2048 batch=4 kv=20000"),
        ("topk_transform_decode_kernel", "index_topk fp32 chosen=2048 batch=4 kv=20000"),
        ("void vllm::indexer_k_quant_and_cache_kernel<c10::BFloat16>", "index_write fp8/bf16 tokens=4 head_dim=128"),
        ("_fused_indexer_q_rope_quant_kernel", "index_prep fp8/bf16 elements=32768"),
        ("fast_hadamard_transform_kernel", "index_prep bf16"),  # of queries or of keys
        ("smxx_paged_mqa_logits_metadata", "attention_plan bf16"),
        ("void sm90::flash_fwd_splitkv_mla_fp8_sparse_kernel<x>",
         "sparse_mla bf16 batch=4 heads=64 kv_lora=512 rope=64 kv=8192 chosen=2048"),
        ("void sm90::fwd::sparse_attn_fwd_kernel<x>",
         "sparse_mla bf16 batch=4 heads=64 kv_lora=512 rope=64 kv=8192 chosen=2048"),
    ],
)  # fmt: skip
def test_kernels_have_the_models_sizes_on_one_of_two_ranks(kernel: str, op: str) -> None:
    seen = Seen(kernel, batch=4, tokens=4, kv_tokens=20_000, model=V32, tp=2)
    assert str(ops.build(ops.kernel_kind(kernel) or "", seen)) == op


@pytest.mark.parametrize(
    "kernel", ["sm90_fp8_paged_mqa_logits", "topKPerRowDecode", "flash_fwd_splitkv_mla_fp8_sparse_kernel"]
)
@pytest.mark.parametrize("facts", [{"phase": "mixed"}, {"model": load_model("deepseek-v3")}, {"batch": None}])
def test_a_kernel_of_which_not_enough_is_known_has_no_sizes(kernel: str, facts: dict[str, object]) -> None:
    known = {"batch": 4, "tokens": 4, "kv_tokens": 20_000, "model": V32, **facts}
    op = ops.build(ops.kernel_kind(kernel) or "", Seen(kernel, **known))  # type: ignore[arg-type]
    assert not ops.work(op).known


def test_other_sparse_kernels_and_routers_are_not_taken_for_these() -> None:
    assert ops.kernel_kind("_triton_block_sparse_attn_fwd_kernel_v1") != "sparse_mla"
    assert ops.kernel_kind("void vllm::moe::topkGatingSoftmax<8>") == "topk"
    # MLA's kernel of another name, with a model whose indexer is known
    seen = Seen("flash_mla_kernel", batch=4, tokens=8, kv_tokens=20_000, model=V32)
    assert str(ops.build("mla_attention", seen)) == (
        "sparse_mla bf16 batch=4 heads=128 kv_lora=512 rope=64 kv=16384 q=8 chosen=2048"
    )
