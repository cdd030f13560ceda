"""Dense GEMMs: FLOPs and bytes worked by hand, shapes of every operator, and what the model supplies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.model import load_model
from moetrace.op import Op, OpColumns
from moetrace.ops.base import Seen
from moetrace.ops.gemm import by_kernel

SIZE = st.integers(1, 8192)


def test_work_by_hand() -> None:
    w = ops.work(Op.of("gemm", "bf16", m=16, n=64, k=2048))
    assert w.flops == 2 * 16 * 64 * 2048
    assert w.weight_bytes == w.weight_bytes_min == w.resident_bytes == 64 * 2048 * 2
    assert (w.act_read_bytes, w.act_write_bytes) == (16 * 2048 * 2, 16 * 64 * 2)
    assert (w.kv_bytes, w.net_bytes, w.experts, w.rows) == (0, 0, 0, 16)


def test_weights_and_activations_of_different_types() -> None:
    w = ops.work(Op.of("dense_down", "int4/bf16", m=2, n=256, k=128))
    assert w.weight_bytes == 256 * 128 * (0.5 + 2 / 128)  # an fp16 scale per group of 128
    assert (w.act_read_bytes, w.act_write_bytes) == (2 * 128 * 2, 2 * 256 * 2)


@pytest.mark.parametrize(
    ("dtype", "nbytes"),
    [
        ("bf16", 2 * 128 * 256),
        ("fp8", 128 * 256),  # one scale per tensor
        ("fp8_block/fp8", 128 * 256 + 2 * 4),  # a float for each of two 128 x 128 tiles
        ("int8", 128 * 256),
        ("int4/bf16", 128 * 256 / 2 + 2 * 128 * 2),  # two groups of 128 in each row, a half of two bytes
        ("mxfp8", 128 * 256 + 8 * 128),  # a byte for each 32
        ("mxfp4/bf16", 128 * 256 / 2 + 8 * 128),
        ("nvfp4", 128 * 256 / 2 + 16 * 128),  # a byte for each 16
    ],
)
def test_weights_travel_with_their_scales(dtype: str, nbytes: float) -> None:
    assert ops.work(Op.of("gemm", dtype, m=1, n=128, k=256)).weight_bytes == nbytes
    experts = ops.work(
        Op.of("moe_down", dtype, tokens=1, hidden=128, inter=256, experts=8, topk=3, distinct=3)
    )
    assert experts.weight_bytes == 3 * nbytes


def test_a_batched_gemm_is_that_many_gemms() -> None:
    one, four = (ops.work(Op.of("gemm", m=8, n=32, k=16).with_dims(b=b)) for b in (None, 4))
    assert (four.flops, four.bytes) == (4 * one.flops, 4 * one.bytes)


@given(SIZE, SIZE, SIZE)
def test_work_grows_with_every_dim_and_the_rows_do_not_touch_the_weights(m: int, n: int, k: int) -> None:
    w = ops.work(Op.of("gemm", m=m, n=n, k=k))
    for more in ({"m": m + 1}, {"n": n + 1}, {"k": k + 1}):
        grown = ops.work(Op.of("gemm", "bf16", **{"m": m, "n": n, "k": k, **more}))
        assert grown.flops > w.flops and grown.bytes > w.bytes
    assert ops.work(Op.of("gemm", m=m + 7, n=n, k=k)).weight_bytes == w.weight_bytes
    assert w.intensity <= m  # each weight element of two bytes is used 2 m times


@pytest.mark.parametrize(
    ("operator", "shapes", "expected"),
    [
        ("aten::mm", ((16, 2048), (2048, 64)), {"m": 16, "n": 64, "k": 2048}),
        ("aten::addmm", ((64,), (16, 2048), (2048, 64)), {"m": 16, "n": 64, "k": 2048}),
        ("aten::addmm", ((16, 64), (16, 2048), (2048, 64)), {"m": 16, "n": 64, "k": 2048}),
        ("aten::linear", ((4, 4, 2048), (64, 2048), (64,)), {"m": 16, "n": 64, "k": 2048}),
        ("aten::linear", ((16, 64), (64, 64)), {"m": 16, "n": 64, "k": 64}),
        ("aten::bmm", ((4, 8, 16), (4, 16, 32)), {"m": 8, "n": 32, "k": 16, "b": 4}),
        ("aten::matmul", ((2, 8, 16), (16, 32)), {"m": 16, "n": 32, "k": 16}),
    ],
)
def test_shapes_of_operators(
    operator: str, shapes: tuple[tuple[int, ...], ...], expected: dict[str, int]
) -> None:
    types = tuple("bf16" for _ in shapes)
    op = ops.build("gemm", Seen("", operator, shapes, types))
    assert op == Op.of("gemm", "bf16", **expected)
    role = ops.build("gemm", Seen("", operator, shapes, types, role="router"))
    assert role == Op.of("router", "bf16", **expected)


def test_types_of_the_operands_are_told_apart() -> None:
    seen = Seen("", "aten::linear", ((16, 128), (64, 128)), ("bf16", "fp8"))
    assert ops.build("gemm", seen).dtype == "fp8/bf16"


@pytest.mark.parametrize(
    "shapes", [(), ((16, 2048),), ((16, 2048), (3, 5)), ((4, 8, 16), (5, 16, 32)), ((16,), (16, 4))]
)
def test_shapes_that_are_no_product_give_no_dims(shapes: tuple[tuple[int, ...], ...]) -> None:
    op = ops.build("gemm", Seen("", "aten::mm", shapes, ("bf16",) * len(shapes)))
    assert op == Op("gemm") and not ops.work(op).known


def test_roles_from_the_model() -> None:
    qwen = load_model("qwen3-30b-a3b")  # hidden 2048, 32 heads and 4 KV heads of 128, 128 experts
    expected = {
        "qkv_proj": (16, 32 * 128 + 2 * 4 * 128, 2048),
        "o_proj": (16, 2048, 32 * 128),
        "router": (16, 128, 2048),
        "lm_head": (4, 151936, 2048),  # logits are made for each sequence's last token only
    }
    for role, (m, n, k) in expected.items():
        seen = Seen("nvjet", role=role, tokens=16, batch=4, model=qwen)
        assert ops.build("gemm", seen) == Op.of(role, "bf16", m=m, n=n, k=k)
    split = Seen("nvjet", role="qkv_proj", tokens=16, model=qwen, tp=8)
    assert ops.build("gemm", split)["n"] == 32 * 128 // 8 + 2 * 128  # a rank keeps one KV head at least
    assert ops.build("gemm", Seen("nvjet", role="shared_down", tokens=16, model=qwen)) == Op(
        "gemm"
    )  # it has none
    assert ops.build("gemm", Seen("nvjet", role="router", model=qwen)) == Op("gemm")  # tokens not known


def test_shared_and_dense_widths() -> None:
    v2 = load_model("deepseek-v2-lite")  # two shared experts of 1408, dense first layer of 10944
    for role, n, k in (
        ("shared_gate_up", 2 * 2816, 2048),
        ("shared_down", 2048, 2816),
        ("dense_gate_up", 2 * 10944, 2048),
        ("dense_down", 2048, 10944),
    ):
        op = ops.build("gemm", Seen("nvjet", role=role, tokens=3, model=v2))
        assert op == Op.of(role, "bf16", m=3, n=n, k=k)
    assert ops.build("gemm", Seen("nvjet", role="qkv_proj", tokens=3, model=v2)) == Op(
        "gemm"
    )  # MLA has several
    assert ops.family("shared_down") == "shared_expert" and ops.family("router") == "routing"


def test_mla_projections_from_the_model() -> None:
    v3 = load_model("deepseek-v3")  # hidden 7168, 128 heads of 128 + 64, q rank 1536, latent 512 + 64
    expected = {
        "qkv_a": ("qkv_proj", {"m": 32, "n": 1536 + 576, "k": 7168}),
        "q_a": ("qkv_proj", {"m": 32, "n": 1536, "k": 7168}),
        "kv_a": ("qkv_proj", {"m": 32, "n": 576, "k": 7168}),
        "q_b": ("qkv_proj", {"m": 32, "n": 16 * 192, "k": 1536}),
        "kv_b": ("qkv_proj", {"m": 32, "n": 16 * 256, "k": 512}),
        "absorb": ("qkv_proj", {"m": 32, "n": 512, "k": 128, "b": 16}),
        "v_up": ("o_proj", {"m": 32, "n": 128, "k": 512, "b": 16}),
        "o_proj": ("o_proj", {"m": 32, "n": 7168, "k": 16 * 128}),
    }
    for role, (kind, dims) in expected.items():
        op = ops.build("gemm", Seen("nvjet", role=role, tokens=32, model=v3, tp=8))
        assert (op.kind, dict(op.dims)) == (kind, dims), role
    assert ops.build("gemm", Seen("nvjet", role="mla_part", tokens=32, model=v3)) == Op("qkv_proj")
    for role in ("absorb", "kv_b", "v_up"):  # whose tokens these see, a mixed step does not say
        assert not ops.build("gemm", Seen("nvjet", role=role, tokens=32, phase="mixed", model=v3)).dims


def test_parts_of_a_projection_are_not_the_whole() -> None:
    qwen = load_model("qwen3-30b-a3b")
    widths = {"q_proj": 4096, "k_proj": 512, "v_proj": 512}
    found = {r: ops.build("gemm", Seen("nvjet", role=r, tokens=2, model=qwen)) for r in widths}
    assert {r: op["n"] for r, op in found.items()} == widths
    assert {op.kind for op in found.values()} == {"qkv_proj"}
    assert ops.build("gemm", Seen("nvjet", role="qkv_part", tokens=2, model=qwen)) == Op("qkv_proj")
    dense = load_model("qwen3-8b")
    half = ops.build("gemm", Seen("nvjet", role="dense_half", tokens=2, model=dense))
    assert (half.kind, half["n"]) == ("dense_gate_up", dense.dense_inter)


def test_verified_tokens_all_have_logits() -> None:
    model = load_model("gpt-oss-20b")
    for phase, rows in (("decode", 32), ("prefill", 8), ("mixed", 8)):
        seen = Seen("nvjet", role="lm_head", tokens=32, batch=8, phase=phase, model=model)
        assert ops.build("gemm", seen)["m"] == rows
        argmax = Seen("ArgMaxOps", tokens=32, batch=8, phase=phase, model=model)
        assert ops.build("sampling", argmax)["tokens"] == rows


def test_a_split_k_sum_is_no_second_gemm() -> None:
    name, shapes = "void cublasLt::splitKreduce_kernel<32>", ((16, 4096), (4096, 6144))
    kind = ops.recognise(name, "aten::mm")
    op = ops.build(kind, Seen(name, "aten::mm", shapes, ("bf16", "bf16")))
    assert op == Op.of("gemm_reduce", "bf16", elements=16 * 6144, splits=2)
    w = ops.work(op)
    assert (w.weight_bytes, w.act_read_bytes, w.act_write_bytes) == (0, 16 * 6144 * 8, 16 * 6144 * 2)
    model = load_model("qwen3-8b")  # without shapes, by the GEMM before it
    told = ops.build("gemm_reduce", Seen(name, role="reduce o_proj", tokens=16, model=model))
    assert told["elements"] == 16 * model.hidden
    assert not ops.build("gemm_reduce", Seen(name)).dims


def test_quantising_has_the_size_of_its_gemm_s_input() -> None:
    model = load_model("qwen3-8b")
    name = "per_token_group_quant_8bit_kernel"
    told = ops.build("quantize", Seen(name, role="quantize dense_down", tokens=4, model=model))
    assert told["elements"] == 4 * model.dense_inter
    w = ops.work(told)
    assert (w.act_read_bytes, w.act_write_bytes) == (8 * model.dense_inter, 4 * model.dense_inter)
    seen = Seen(name, shapes=((4, 64), (4, 64)), dtypes=("fp8", "bf16"))
    assert ops.build("quantize", seen)["elements"] == 4 * 64
    assert not ops.build("quantize", Seen(name)).dims


def test_absorbed_projections_are_known_by_their_kernel() -> None:
    """Rows of one type part where some have a matrix for each head; nothing else changes, nor any other kind."""
    texts = [
        "qkv_proj bf16 m=4 n=512 k=128 b=16", "qkv_proj bf16 m=4 n=1536 k=7168", "o_proj fp8 m=4 n=128 k=512 b=1",
        "expert_up bf16 m=4 n=512 k=128 b=8", "gemm bf16 m=4 n=512 k=128 b=8",
    ]  # fmt: skip
    before = OpColumns.of([Op.parse(text) for text in texts])
    after = by_kernel(before)
    kinds = ["batched_gemm", "qkv_proj", "batched_gemm", "expert_up", "gemm"]
    assert [(op.kind, op.dtype) for op in after] == list(zip(kinds, [op.dtype for op in before], strict=True))
    assert all(new.dims == old.dims for new, old in zip(after, before, strict=True))
    assert ops.works(after)(0) == ops.works(before)(0)
    plain = before.take(np.array([1, 4]))
    assert by_kernel(plain).types == plain.types
