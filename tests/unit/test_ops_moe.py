"""MoE ops: the figures of papers and of one real layer, worked by hand, and what must hold for any sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops
from moetrace.model import load_model
from moetrace.op import Op, OpGroup, dtypes
from moetrace.ops import distinct_experts
from moetrace.ops.base import Seen
from moetrace.ops.moe import expert_rows

GEMMS = ("moe_gate_up", "moe_down", "moe_experts")


@st.composite
def expert_ops(draw: st.DrawFn) -> Op:
    experts = draw(st.integers(1, 256))
    dims: dict[str, float] = {
        "tokens": draw(st.integers(1, 512)),
        "hidden": draw(st.integers(1, 4096)),
        "inter": draw(st.integers(1, 4096)),
        "experts": experts,
        "topk": draw(st.integers(1, experts)),
    }
    if draw(st.booleans()):
        dims["local_experts"] = draw(st.integers(1, experts))
    return Op.of(
        draw(st.sampled_from(GEMMS)), draw(st.sampled_from(["bf16", "mxfp4/bf16", "fp8_block"])), **dims
    )


def gptoss_down(**dims: float) -> Op:
    """One layer's down projection of gpt-oss-20b at batch 32: 2880 wide, stored as 3072, 4 of 32 experts."""
    return Op.of("moe_down", "mxfp4/bf16", tokens=32, hidden=3072, inter=3072, experts=32, topk=4, **dims)


def test_gpt_oss_20b_down_projection_at_batch_32() -> None:
    op = gptoss_down()
    expected, certain = distinct_experts(op)
    assert expected == pytest.approx(31.55, abs=0.005) and certain == 4
    w = ops.work(op)
    assert w.weight_bytes / 1e6 == pytest.approx(158.2, abs=0.05)
    assert w.weight_bytes / (1 + 2 / 32) / 1e6 == pytest.approx(148.9, abs=0.05)  # without the scales
    assert w.experts == expected and w.rows == 128
    assert w.resident_bytes == 32 * 3072 * 3072 * (1 / 2 + 1 / 32)
    assert w.flops == 2 * 128 * 3072 * 3072
    assert w.act_read_bytes == w.act_write_bytes == 128 * 3072 * 2


def test_a_counted_number_is_certain_and_an_estimate_is_not() -> None:
    one = 3072 * 3072 * (1 / 2 + 1 / 32)
    for dims, expected, certain in (
        ({"distinct": 19}, 19, 19),
        ({"distinct_est": 22.5}, 22.5, 4),
        ({"distinct": 19, "distinct_est": 22.5}, 19, 19),
        ({"distinct": 0}, 0, 0),
    ):
        op = gptoss_down(**dims)
        w = ops.work(op)
        assert distinct_experts(op) == (expected, certain)
        assert (w.weight_bytes, w.weight_bytes_min, w.experts) == (expected * one, certain * one, expected)


def test_rows_go_in_and_come_out_at_the_right_width() -> None:
    dims = {"tokens": 3, "hidden": 2048, "inter": 768, "experts": 128, "topk": 8}
    widths = {"moe_gate_up": (2048, 2 * 768), "moe_down": (768, 2048), "moe_experts": (2048, 2048)}
    for kind, (reads, writes) in widths.items():
        w = ops.work(Op.of(kind, "fp8/bf16", **dims))
        assert (w.act_read_bytes, w.act_write_bytes) == (24 * reads * 2, 24 * writes * 2)


def test_under_expert_parallelism_a_rank_may_get_nothing() -> None:
    op = Op.of("moe_experts", tokens=1, hidden=8, inter=4, experts=256, topk=8, local_experts=32)
    assert distinct_experts(op) == (1.0, 0.0) and expert_rows(OpGroup.of(op)) == 1.0
    assert ops.work(op).weight_bytes_min == 0 and ops.work(op).resident_bytes == 32 * 3 * 8 * 4 * 2
    # All but 4 experts are here, so of any token's 8 at least 4 are.
    assert distinct_experts(op.with_dims(local_experts=252))[1] == 4


@pytest.mark.parametrize(("d", "d_i", "tokens"), [(2048, 1408, 1), (7168, 2048, 16), (4096, 14336, 128)])
def test_formulas_of_arxiv_2505_03531_for_one_expert(d: int, d_i: int, tokens: int) -> None:
    """I/O = 3 d d_i + 2 T (d + d_i) elements, FLOPs = 6 T d d_i, for a gated FFN of one expert over T tokens."""
    dims = {"tokens": tokens, "hidden": d, "inter": d_i, "experts": 1, "topk": 1}
    up, down, fused = (ops.work(Op.of(kind, "bf16", **dims)) for kind in GEMMS)
    assert up.flops + down.flops == fused.flops == 6 * tokens * d * d_i
    assert up.weight_bytes + down.weight_bytes == fused.weight_bytes == 2 * 3 * d * d_i
    paper = 2 * tokens * (d + d_i)  # the hidden activation written once and read once
    assert (up.act_bytes + down.act_bytes) / 2 == paper + tokens * d_i  # gate and up are both written
    assert fused.act_bytes / 2 == paper - 2 * tokens * d_i  # the hidden activation never leaves the chip
    if tokens == 1:  # 2 FLOPs per element, 1 per byte
        assert fused.intensity == pytest.approx(1, rel=2e-3)


def test_qwen3_30b_touches_half_a_gigabyte_a_layer_at_batch_16() -> None:
    op = Op.of("moe_experts", tokens=16, hidden=2048, inter=768, experts=128, topk=8)
    w = ops.work(op)
    assert w.weight_bytes == pytest.approx(82.4 * 9.437184e6, rel=1e-3)  # 82.4 uniform, arXiv 2511.02237
    assert ops.work(op.with_dims(distinct_est=48.8)).weight_bytes == pytest.approx(48.8 * 9.437184e6)
    assert w.weight_bytes_min == 8 * 3 * 2048 * 768 * 2


@given(expert_ops())
def test_distinct_experts_stay_within_bounds(op: Op) -> None:
    expected, certain = distinct_experts(op)
    local = op.get("local_experts", op["experts"]) or 0
    most = min(local, op["tokens"] * op["topk"])
    assert 0 <= certain <= expected + 1e-9 <= most + 2e-9
    assert certain <= op["topk"]
    if local == op["experts"]:
        assert expected >= op["topk"] - 1e-9
    w = ops.work(op)
    assert w.weight_bytes_min <= w.weight_bytes * (1 + 1e-9) <= w.resident_bytes * (1 + 2e-9)
    assert w.bytes_min <= w.bytes * (1 + 1e-9)


@given(expert_ops(), st.sampled_from(["tokens", "topk", "hidden", "inter"]))
def test_more_is_never_less_work(op: Op, name: str) -> None:
    if name == "topk" and op["topk"] == op["experts"]:
        return
    less, more = ops.work(op), ops.work(op.with_dims(**{name: op[name] + 1}))
    assert more.flops > less.flops and more.act_bytes >= less.act_bytes
    assert more.weight_bytes >= less.weight_bytes * (1 - 1e-12)
    assert more.weight_bytes_min >= less.weight_bytes_min


@given(expert_ops())
def test_gate_up_and_down_make_the_fused_op(op: Op) -> None:
    up, down, fused = (ops.work(Op(kind, op.dtype, op.dims)) for kind in GEMMS)
    for name in ("flops", "weight_bytes", "weight_bytes_min", "resident_bytes"):
        assert getattr(up, name) + getattr(down, name) == pytest.approx(getattr(fused, name))
    assert up.rows == down.rows == fused.rows and up.experts == fused.experts
    assert fused.act_bytes <= up.act_bytes + down.act_bytes


@given(st.integers(1, 64), st.integers(1, 16), st.sampled_from([2, 4, 8]))
def test_ranks_share_the_rows(tokens: int, per_rank: int, ep: int) -> None:
    experts = per_rank * ep
    whole = Op.of("moe_experts", tokens=tokens, hidden=64, inter=32, experts=experts, topk=min(4, experts))
    rank = whole.with_dims(local_experts=per_rank)
    for name in ("flops", "weight_bytes", "act_bytes", "resident_bytes"):
        assert ep * getattr(ops.work(rank), name) == pytest.approx(getattr(ops.work(whole), name))
    assert expert_rows(OpGroup.of(rank.with_dims(rows=5))) == 5


def test_the_small_ops_by_hand() -> None:
    act = ops.work(Op.of("moe_act", tokens=16, inter=768, topk=8))
    assert (act.flops, act.act_read_bytes, act.act_write_bytes) == (4 * 98304, 2 * 98304 * 2, 98304 * 2)
    assert ops.work(Op.of("moe_act", tokens=16, inter=768, topk=8, reads=1)).act_read_bytes == 98304 * 2
    topk = ops.work(Op.of("topk", tokens=16, experts=128, topk=8))
    assert (topk.act_read_bytes, topk.act_write_bytes) == (16 * 128 * 2, 16 * 8 * (4 + 4))
    ids = ops.work(Op.of("moe_align", tokens=16, experts=128, topk=8))
    assert (ids.flops, ids.act_read_bytes, ids.act_write_bytes) == (0, 512, 512)
    rows = ops.work(Op.of("moe_align", tokens=16, experts=128, topk=8, hidden=2048, copies=8))
    assert (rows.act_read_bytes, rows.act_write_bytes) == (512 + 65536, 512 + 8 * 65536)
    combine = ops.work(Op.of("moe_combine", tokens=16, hidden=2048, topk=8))
    assert (combine.act_read_bytes, combine.act_write_bytes) == (8 * 65536, 65536)
    for w in (act, topk, ids, rows, combine):
        assert w.weight_bytes == w.kv_bytes == w.net_bytes == 0 and w.known


@pytest.mark.parametrize("missing", ["tokens", "hidden", "inter", "experts", "topk"])
def test_without_a_dim_the_work_is_not_known_rather_than_nothing(missing: str) -> None:
    for kind in GEMMS:
        assert not ops.work(Op(kind, "bf16", gptoss_down().dims).with_dims(**{missing: None})).known


def test_the_op_of_a_kernel_and_its_model() -> None:
    oss = load_model("gpt-oss-20b")
    kernel = "_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1"
    seen = Seen(
        kernel, "vllm::moe_forward", ((32, 3072), (32, 32)), ("bf16", "bf16"), model=oss, tokens=32, pad=256
    )
    assert ops.build("moe_down", seen) == gptoss_down()
    unpadded = Seen("fused_moe_kernel", model=load_model("qwen3-30b-a3b"), tokens=16)
    assert ops.build("moe_gate_up", unpadded) == Op.of(
        "moe_gate_up", "bf16", tokens=16, hidden=2048, inter=768, experts=128, topk=8
    )
    assert ops.build("moe_gate_up", Seen("fused_moe_kernel", tokens=16)) == Op("moe_gate_up")  # no model
    assert ops.build("moe_gate_up", Seen("fused_moe_kernel", model=oss)) == Op("moe_gate_up")  # no tokens


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1_swiglu", "mxfp4/bf16"),
        ("bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256u2_swiGlu_dynBatch", "mxfp4/mxfp8"),
        ("bmm_Bfloat16_MxE2m1MxE4m3_Fp32_t128x16x256u2_dynBatch", "mxfp4/mxfp8"),
        ("dpsk::grouped_gemm::cuda::m_grouped_fp8_ptp128c::GemmKernel", "fp8_block"),
        ("moe_wna16_gemm_kernel", "int4/bf16"),
        ("fused_moe_kernel", "bf16"),
    ],
)
def test_the_element_types_that_a_kernel_names(kernel: str, dtype: str) -> None:
    seen = Seen(kernel, model=load_model("olmoe-1b-7b"), tokens=4)
    found = ops.build("moe_gate_up", seen).dtype
    assert found == dtype and set(found.split("/")) <= set(dtypes())


@pytest.mark.parametrize("kind", ["moe_align", "moe_act", "moe_combine", "topk"])
def test_small_ops_have_the_type_of_the_models_activations(kind: str) -> None:
    model = load_model("olmoe-1b-7b")
    for dtype in ("bf16", "fp32"):
        op = ops.build(kind, Seen("kernel", model=replace(model, act_dtype=dtype), tokens=16))
        assert op.dtype == dtype and op.get("tokens") == 16


OLMOE = load_model("olmoe-1b-7b")  # hidden 2048, experts 1024 wide, 8 of 64 per token
HIDDEN, WIDE, ONE = (3, 2048), (3, 1024), (3, 1)  # one expert's rows of 16 tokens, which have 128 choices


@pytest.mark.parametrize(
    ("kind", "operator", "shapes", "expected"),
    [
        ("moe_act", "aten::silu", (WIDE,), Op.of("expert_act", "bf16", elements=3072)),
        ("moe_act", "aten::mul", (WIDE, WIDE), Op.of("expert_act", "bf16", elements=3072, reads=2)),
        ("moe_combine", "aten::mul", (HIDDEN, ONE), Op.of("elementwise", "bf16", elements=6144)),
        (
            "moe_combine",
            "aten::index_add_",
            ((16, 2048), (), (3,), HIDDEN),
            Op.of("elementwise", "bf16", elements=6144, reads=2),
        ),
        ("moe_align", "aten::copy_", (HIDDEN, HIDDEN), Op.of("elementwise", "bf16", elements=6144)),
        # quantising all rows at once: the rows, not ids
        ("moe_align", "aten::abs", ((128, 1024),), Op.of("elementwise", "bf16", elements=128 * 1024)),
        (
            "moe_align",
            "aten::amax",
            ((128, 2048),),
            Op.of("elementwise", "bf16", elements=128 * 2048, writes=0),
        ),
    ],
)
def test_an_operator_on_one_experts_rows_has_their_size(
    kind: str, operator: str, shapes: tuple[tuple[int, ...], ...], expected: Op
) -> None:
    """Experts run one by one have as many such operators as there are distinct experts: each as the whole is too much."""
    dtypes = tuple("bf16" if s else "" for s in shapes)
    assert (
        ops.build(kind, Seen("", operator, shapes, dtypes, batch=16, tokens=16, model=OLMOE)).with_dims(
            fixed=None
        )
        == expected
    )


@pytest.mark.parametrize(
    ("kind", "operator", "shapes"),
    [
        ("moe_act", "aten::silu", ((128, 1024),)),
        ("moe_combine", "aten::mul", ((128, 2048), (128, 1))),
        ("moe_align", "aten::sort", ((128, 1),)),
    ],
)
def test_an_operator_on_a_row_for_each_choice_is_the_whole(
    kind: str, operator: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    seen = Seen("", operator, shapes, ("bf16",) * len(shapes), batch=16, tokens=16, model=OLMOE)
    op = ops.build(kind, seen)
    assert (op.kind, op["tokens"], op["topk"]) == (kind, 16, 8)
