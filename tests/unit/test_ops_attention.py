"""Attention: pairs against a count of every query and key, bytes of the cache, windows, and MLA."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.model import load_model
from moetrace.op import Op, OpGroup
from moetrace.ops.attention import pairs
from moetrace.ops.base import Seen


def attention(**dims: float) -> Op:
    return Op.of("attention", "bf16", **{"heads": 32, "kv_heads": 4, "head_dim": 128, **dims})


def count_pairs(queries: int, keys: int, window: int) -> int:
    """Query i of the last `queries` tokens sees the keys up to itself, the newest `window` of them if that is set."""
    seen = 0
    for query in range(keys - queries, keys):
        first = max(0, query - window + 1) if window else 0
        seen += sum(first <= key <= query for key in range(keys))
    return seen


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 40), st.integers(0, 50))
def test_causal_pairs_match_a_count(batch: int, queries: int, before: int, window: int) -> None:
    keys = queries + before
    extra = {"window": window} if window else {}
    op = attention(batch=batch, q=batch * queries, kv=batch * keys, **extra)
    assert pairs(OpGroup.of(op)) == pytest.approx(batch * count_pairs(queries, keys, window))


def test_decode_by_hand() -> None:
    w = ops.work(attention(batch=2, kv=3000))
    assert (
        pairs(OpGroup.of(attention(batch=2, kv=3000))) == 3000
    )  # each sequence's one query sees all of its keys
    assert w.flops == 4 * 32 * 128 * 3000
    assert w.kv_read_bytes == 3000 * 2 * 4 * 128 * 2
    assert w.act_read_bytes == w.act_write_bytes == 2 * 32 * 128 * 2
    assert (w.weight_bytes, w.kv_write_bytes, w.net_bytes) == (0, 0, 0)


def test_prefill_is_half_a_square() -> None:
    w = ops.work(attention(batch=1, q=1000, kv=1000))
    assert w.flops == 4 * 32 * 128 * 1000 * 1001 / 2


def test_an_fp8_cache_halves_its_bytes_only() -> None:
    narrow, wide = (
        ops.work(Op("attention", d, attention(batch=4, kv=4096).dims)) for d in ("fp8/bf16", "bf16")
    )
    assert narrow.kv_read_bytes * 2 == wide.kv_read_bytes
    assert (narrow.flops, narrow.act_bytes) == (wide.flops, wide.act_bytes)


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(0, 512))
def test_more_tokens_are_never_less_work(batch: int, per_sequence: int, window: int) -> None:
    extra = {"window": window} if window else {}
    op = attention(batch=batch, kv=batch * per_sequence, **extra)
    w = ops.work(op)
    longer = ops.work(op.with_dims(kv=op["kv"] + batch))
    assert longer.flops >= w.flops and longer.bytes > w.bytes
    # Two tokens a sequence, as in speculation.
    drafted = ops.work(op.with_dims(q=2 * batch, kv=op["kv"] + batch))
    assert drafted.flops >= w.flops and drafted.act_bytes == 2 * w.act_bytes
    assert pairs(OpGroup.of(op)) <= op["kv"] + 1e-6


def test_mla_reads_one_compressed_cache_for_all_heads() -> None:
    v3 = load_model("deepseek-v3")
    op = ops.build("mla_attention", Seen("flash_mla", model=v3, batch=8, tokens=8, kv_tokens=8000))
    assert op == Op.of("mla_attention", "bf16", batch=8, heads=128, kv_lora=512, rope=64, kv=8000)
    w = ops.work(op)
    assert w.kv_read_bytes == 8000 * (512 + 64) * 2  # arXiv 2405.04434, section 2.1
    assert w.kv_read_bytes == 8000 * v3.kv_bytes_per_token(60)
    assert w.flops == 8000 * 128 * (2 * 576 + 2 * 512)
    assert (w.act_read_bytes, w.act_write_bytes) == (8 * 128 * 576 * 2, 8 * 128 * 512 * 2)
    # A trace may call it plain attention: the model knows better.
    plain = ops.build("attention", Seen("flash_fwd", model=v3, batch=8, tokens=8, kv_tokens=8000, tp=8))
    assert plain.kind == "mla_attention" and plain["heads"] == 16


def test_a_sliding_layer_reads_only_its_window() -> None:
    oss = load_model("gpt-oss-20b")
    facts = {"model": oss, "batch": 32, "tokens": 32, "kv_tokens": 32 * 1720}
    full = ops.build("attention", Seen("kernel_unified_attention_3d", **facts))  # type: ignore[arg-type]
    slid = ops.build("attention", Seen("kernel_unified_attention_2d", window=128, **facts))  # type: ignore[arg-type]
    assert full["kv"] == 32 * 1720 and not full.has("window")
    assert (slid["kv"], slid["window"], slid["context"]) == (32 * 128, 128, 1720)
    wide, narrow = ops.work(full), ops.work(slid)
    assert narrow.kv_read_bytes == 32 * 128 * 2 * 8 * 64 * 2
    assert wide.kv_read_bytes / narrow.kv_read_bytes == wide.flops / narrow.flops == 1720 / 128
    assert narrow.act_bytes == wide.act_bytes


@given(st.integers(1, 8), st.integers(1, 300), st.integers(0, 300), st.integers(1, 128))
def test_a_window_cuts_a_prompt_to_what_its_queries_see(
    batch: int, queries: int, cached: int, window: int
) -> None:
    keys = queries + cached
    seen = Seen(
        "flash_fwd", model=load_model("gpt-oss-20b"), batch=batch, tokens=batch * queries, kv_tokens=batch * keys, window=window
    )  # fmt: skip
    op = ops.build("attention", seen)
    touched = min(keys, queries + window - 1)  # from the first query's oldest key to the last query
    assert op["kv"] == batch * touched
    assert pairs(OpGroup.of(op)) == pytest.approx(batch * count_pairs(queries, keys, window))


@pytest.mark.parametrize(
    ("operator", "shapes"),
    [
        ("aten::scaled_dot_product_attention", ((4, 32, 1, 128), (4, 8, 500, 128), (4, 8, 500, 128))),
        ("aten::_flash_attention_forward", ((4, 1, 32, 128), (4, 500, 8, 128), (4, 500, 8, 128))),
    ],
)
def test_dims_from_torch_s_own_operators(operator: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    op = ops.build("attention", Seen("", operator, shapes, ("bf16",) * 3))
    assert op == Op.of("attention", "bf16", batch=4, heads=32, kv_heads=8, head_dim=128, kv=2000)


def test_dims_that_are_not_known_are_not_made_up() -> None:
    oss = load_model("gpt-oss-20b")
    for seen in (
        Seen("flash_fwd"),
        Seen("flash_fwd", model=oss, batch=4, tokens=4),  # no KV length
        Seen("flash_fwd", batch=4, tokens=4, kv_tokens=400),  # no heads
    ):
        op = ops.build("attention", seen)
        assert op == Op("attention") and not ops.work(op).known


def test_rope_and_cache_writes_by_hand() -> None:
    qwen = load_model("qwen3-30b-a3b")
    rope = ops.build("rope", Seen("rotary_embedding_kernel", tokens=16, model=qwen))
    assert rope == Op.of("rope", "bf16", elements=16 * (32 + 4) * 128)
    w = ops.work(rope)
    assert w.act_read_bytes == w.act_write_bytes == 16 * 36 * 128 * 2
    write = ops.build("kv_write", Seen("reshape_and_cache_flash_kernel", tokens=16, model=qwen))
    w = ops.work(write)
    assert w.kv_write_bytes == w.act_read_bytes == 16 * 2 * 4 * 128 * 2 and w.act_write_bytes == 0
    assert w.kv_write_bytes == 16 * qwen.kv_bytes_per_token(0)
    fp8 = ops.build("kv_write", Seen("reshape_and_cache<(vllm::Fp8KVCacheDataType)1>", tokens=16, model=qwen))
    assert ops.work(fp8).kv_write_bytes * 2 == ops.work(fp8).act_read_bytes == w.act_read_bytes
    reduce = ops.work(Op.of("attention_reduce", elements=100))
    assert reduce.act_write_bytes == 200 and reduce.act_read_bytes > reduce.act_write_bytes


def test_stated_pairs_win_over_equal_lengths() -> None:
    assert ops.work(attention(batch=2, q=400, kv=400, pairs=50200)).flops == 4 * 32 * 128 * 50200
    built = ops.build(
        "attention", Seen("flash", batch=2, tokens=400, kv_tokens=400, pairs=50200, model=load_model("qwen3-30b-a3b"))
    )  # fmt: skip
    assert built["pairs"] == 50200
    equal = ops.build(
        "attention", Seen("flash", batch=2, tokens=2, kv_tokens=400, pairs=400, model=load_model("qwen3-30b-a3b"))
    )  # fmt: skip
    assert not equal.has("pairs")


def test_a_step_of_no_sequences_is_no_work() -> None:
    assert ops.work(attention(batch=0, kv=0)).flops == 0


def test_mla_moves_one_latent_for_all_heads() -> None:
    v2 = load_model("deepseek-v2-lite")  # 16 heads, latent 512 + 64
    assert ops.build("kv_write", Seen("concat_and_cache_mla", tokens=32, model=v2))["elements"] == 32 * 576
    assert ops.build("rope", Seen("rotary_embedding", tokens=32, model=v2))["elements"] == 32 * 17 * 64
    reduce = ops.build("attention_reduce", Seen("mla_combine", tokens=32, model=v2))
    assert reduce["elements"] == 32 * 16 * 512
