"""Norms, activations, lookups, sampling and small ops: bytes by hand, and dims from shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.ops.base import Seen, numel, padded, rows_and_width


def test_norm_by_hand() -> None:
    w = ops.work(Op.of("norm", tokens=16, width=2048))
    assert w.act_read_bytes == w.act_write_bytes == 16 * 2048 * 2
    assert w.weight_bytes == w.weight_bytes_min == 2048 * 2 and w.flops == 4 * 16 * 2048
    fused = ops.work(Op.of("norm", tokens=16, width=2048, residual=1))
    assert fused.act_bytes == 2 * w.act_bytes and fused.weight_bytes == w.weight_bytes


def test_passes_by_hand() -> None:
    for more, reads, writes in (
        ({}, 1, 1),
        ({"reads": 2}, 2, 1),
        ({"reads": 0}, 0, 1),
        ({"writes": 0.5}, 1, 0.5),
    ):
        w = ops.work(Op.of("elementwise", "fp32", elements=100, **more))
        assert (w.act_read_bytes, w.act_write_bytes, w.flops) == (reads * 400, writes * 400, 100)


def test_a_lookup_reads_its_rows_not_the_table() -> None:
    w = ops.work(Op.of("embedding", tokens=16, hidden=2048, vocab=151936))
    assert w.weight_bytes == w.act_write_bytes == 16 * 2048 * 2 and w.weight_bytes_min == 0
    assert w.resident_bytes == 151936 * 2048 * 2


def test_sampling_reads_the_logits_once() -> None:
    w = ops.work(Op.of("sampling", "fp32", tokens=4, vocab=1000))
    assert (w.act_read_bytes, w.act_write_bytes, w.flops) == (16000, 32, 4000)


@given(st.sampled_from(["norm", "embedding", "sampling"]), st.integers(1, 4096), st.integers(1, 4096))
def test_more_tokens_are_more_work(kind: str, tokens: int, width: int) -> None:
    dim = {"norm": "width", "embedding": "hidden", "sampling": "vocab"}[kind]
    less, more = (ops.work(Op.of(kind, "bf16", tokens=t, **{dim: width})) for t in (tokens, tokens + 1))
    assert more.bytes > less.bytes and more.flops >= less.flops


@pytest.mark.parametrize(
    ("kind", "operator", "shapes", "dtypes", "op"),
    [
        (
            "norm",
            "aten::rms_norm",
            ((4, 4, 2048), (2048,)),
            ("bf16", "bf16"),
            "norm bf16 tokens=16 width=2048",
        ),
        (
            "norm",
            "_C::fused_add_rms_norm",
            ((16, 64),) * 2,
            ("bf16",) * 2,
            "norm bf16 tokens=16 width=64 residual=1",
        ),
        ("activation", "_C::silu_and_mul", ((16, 200),), ("bf16",), "activation bf16 elements=1600 reads=2"),
        (
            "elementwise",
            "aten::add",
            ((16, 64), (16, 64)),
            ("bf16",) * 2,
            "elementwise bf16 elements=1024 reads=2",
        ),
        ("elementwise", "aten::neg", ((16, 64),), ("fp32",), "elementwise fp32 elements=1024"),
        ("elementwise", "aten::cat", ((4, 8), (6, 8)), ("bf16",) * 2, "elementwise bf16 elements=80"),
        (
            "elementwise",
            "aten::index",
            ((1000, 64), (16,)),
            ("bf16", "int64"),
            "elementwise bf16 elements=1024",
        ),
        (
            "elementwise",
            "aten::fill_",
            ((16, 64), ()),
            ("bf16", ""),
            "elementwise bf16 elements=1024 reads=0",
        ),
        ("elementwise", "aten::mean", ((16, 64),), ("fp32",), "elementwise fp32 elements=1024 writes=0"),
        ("sampling", "aten::argmax", ((4, 151936),), ("fp32",), "sampling fp32 tokens=4 vocab=151936"),
    ],
)
def test_dims_from_shapes(
    kind: str, operator: str, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[str, ...], op: str
) -> None:
    assert str(ops.build(kind, Seen("", operator, shapes, dtypes))) == op


@pytest.mark.parametrize(
    ("shapes", "fixed"),
    [
        (((131072, 64), (131072, 64)), True),  # gpt-oss casts its whole rotary table in each layer
        (((1, 1, 128),), True),
        (((260,),), True),  # positions of one sequence
        (((32, 2880),), False),
        (((1, 32, 2880), (2880,)), False),
        (((40, 2880),), False),  # a graph's padding
        (((32 * 64, 64),), False),  # flattened over heads
        (((92160,),), False),
        (((55086,),), False),
    ],
)
def test_what_has_no_dim_of_tokens_is_of_a_fixed_size(
    shapes: tuple[tuple[int, ...], ...], fixed: bool
) -> None:
    seen = Seen("", "triton_poi_fused__to_copy_1", shapes, ("bf16",) * len(shapes), batch=32, tokens=32,
                kv_tokens=55086, model=load_model("gpt-oss-20b"))  # fmt: skip
    assert ops.build("elementwise", seen).has("fixed") is fixed
    assert not ops.build("elementwise", replace(seen, batch=None, tokens=None, kv_tokens=None)).has("fixed")


def test_a_copy_between_types_reads_one_and_writes_the_other() -> None:
    cast = ops.build("elementwise", Seen("", "aten::copy_", ((16, 64), (16, 64)), ("fp32", "bf16")))
    w = ops.work(cast)
    assert (w.act_read_bytes, w.act_write_bytes) == (16 * 64 * 2, 16 * 64 * 4)


def test_dims_from_the_model_where_there_are_no_shapes() -> None:
    qwen = load_model("qwen3-30b-a3b")
    step = {"model": qwen, "tokens": 16, "batch": 16}
    for kind, role, op in (
        ("norm", "", "norm bf16 tokens=16 width=2048"),
        ("norm", "q_norm", "norm bf16 tokens=512 width=128"),
        ("norm", "k_norm", "norm bf16 tokens=64 width=128"),
        ("embedding", "", "embedding bf16 tokens=16 hidden=2048 vocab=151936"),
        ("sampling", "", "sampling fp32 tokens=16 vocab=151936"),
    ):
        assert str(ops.build(kind, Seen("k", role=role, **step))) == op  # type: ignore[arg-type]
    assert ops.build("elementwise", Seen("k", **step)) == Op("elementwise")  # type: ignore[arg-type]
    assert ops.build("norm", Seen("k")) == Op("norm") and not ops.work(Op("norm")).known


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 10_000), st.integers(0, 512))
def test_sizes(shape: list[int], width: int, multiple: int) -> None:
    rows, last = rows_and_width(tuple(shape))
    assert rows * last == (numel(tuple(shape)) if shape else 0)
    wide = padded(width, multiple)
    assert wide >= width and (
        wide == width if not multiple else wide % multiple == 0 and wide - width < multiple
    )


def test_inner_norms_by_the_kind_of_attention() -> None:
    v3, qwen = load_model("deepseek-v3"), load_model("qwen3-30b-a3b")

    def widths(model: ModelSpec, role: str) -> tuple[float, float]:
        op = ops.build("norm", Seen("rms_norm", role=role, tokens=2, model=model))
        return op["tokens"], op["width"]

    assert (widths(v3, "q_norm"), widths(v3, "k_norm")) == ((2, 1536), (2, 512))
    assert (widths(qwen, "q_norm"), widths(qwen, "k_norm")) == ((2 * 32, 128), (2 * 4, 128))
    assert widths(qwen, "qk_norm") == (2 * 36, 128)
    assert widths(qwen, "") == (2, 2048)
    unfused = ops.recognise(
        "void at::native::vectorized_elementwise_kernel<4, rsqrt_kernel_cuda>", "aten::rsqrt"
    )
    assert unfused == "norm"
    assert ops.build("norm", Seen("rsqrt_kernel_cuda", tokens=2, model=qwen))["width"] == 1


@pytest.mark.parametrize(("operator", "known"), [("aten::sort", True), ("embedding_dense_backward", False)])
def test_a_sort_inside_of_what_is_no_sort_has_no_known_size(operator: str, known: bool) -> None:
    """The gradient of an embedding sorts its indices, which are not its largest tensor."""
    kernel = "void cub::DeviceRadixSortOnesweepKernel<float>"
    op = ops.build("sampling", Seen(kernel, operator, ((262144, 1440),), ("fp32",)))
    assert str(op) == ("sampling fp32 tokens=262144 vocab=1440" if known else "sampling fp32")
