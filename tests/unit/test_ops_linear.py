"""Linear attention: work by hand, kernel names, sizes from the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace import ops
from moetrace.cost import price
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.ops.base import Seen


def test_a_step_of_linear_attention_by_hand():
    """2 sequences of 2 tokens, 4 heads whose state is 8 x 16 in fp32: 7 x 128 FLOPs per token and head."""
    w = ops.work(
        Op.of("linear_attention", "fp32/bf16", batch=2, q=4, heads=4, kv_heads=2, head_dim=8, v_dim=16)
    )
    assert w.flops == 7 * 4 * 4 * 128
    assert w.kv_read_bytes == w.kv_write_bytes == 2 * 4 * 128 * 4
    assert w.act_read_bytes == 4 * (2 * 2 * 8 + 4 * 16 + 2 * 4) * 2
    assert w.act_write_bytes == 4 * 4 * 16 * 2


@pytest.mark.parametrize(
    "kernel",
    [
        "fused_recurrent_gated_delta_rule_fwd_kernel", "chunk_gated_delta_rule_fwd_kernel_h_blockdim64",
        "_linear_attn_decode_kernel",
    ],
)  # fmt: skip
def test_a_kernel_of_linear_attention_is_named_and_has_no_sizes(kernel):
    assert ops.kernel_kind(kernel) == "linear_attention"
    op = ops.build("linear_attention", Seen(kernel, batch=4, tokens=4, kv_tokens=100))
    assert str(op) == "linear_attention bf16" and not ops.work(op).known


@pytest.mark.parametrize(
    "text",
    [
        "linear_attention fp32/bf16 batch=16 heads=32 kv_heads=16 head_dim=128 v_dim=128",
        "attention_plan bf16 elements=100",
    ],
)
def test_what_no_attention_was_fitted_on_is_priced_as_a_stream_of_bytes(text):
    """67 MB of state at 3.35 TB/s take 20 us at least."""
    costs = price(ops.works([Op.parse(text)]), load_hardware("h100-sxm"))
    assert costs[0].expected_s > (20e-6 if "linear" in text else 0)
    assert costs.words == ("h100-sxm assumed other" if "linear" in text else "h100-sxm assumed elementwise",)


@pytest.mark.parametrize(
    ("kernel", "op"),
    [
        ("fused_recurrent_gated_delta_rule_fwd_kernel",
         "linear_attention fp32/bf16 batch=4 heads=16 kv_heads=8 head_dim=128 v_dim=128 q=8"),
        ("_causal_conv1d_update_kernel", "linear_conv bf16 batch=4 tokens=8 width=4096 taps=4"),
        ("fused_gdn_gating_kernel", "linear_prep bf16 elements=256"),
        ("fused_qkvzba_split_reshape_cat_kernel", "linear_prep bf16 elements=49408"),
        ("chunk_gated_delta_rule_fwd_kernel_h_blockdim64", "linear_attention bf16"),  # one of several that do the rule
    ],
)  # fmt: skip
def test_kernels_of_a_hybrid_model_have_its_sizes_on_one_of_two_ranks(kernel, op):
    model = load_model("qwen3-next-80b-a3b")
    seen = Seen(kernel, batch=4, tokens=8, kv_tokens=100, model=model, tp=2)
    assert str(ops.build(ops.kernel_kind(kernel), seen)) == op
    plain = replace(seen, model=load_model("qwen3-30b-a3b"))
    assert not ops.work(ops.build(ops.kernel_kind(kernel), plain)).known
    mixed = replace(seen, phase="mixed")
    assert not ops.work(ops.build(ops.kernel_kind(kernel), mixed)).known


def test_the_short_convolution_by_hand():
    """Two sequences of three tokens, 10 channels, 4 taps, bf16: each keeps its last three inputs."""
    w = ops.work(Op.of("linear_conv", "bf16", batch=2, tokens=6, width=10, taps=4))
    assert w.flops == 2 * 6 * 10 * 4 and w.weight_bytes == 10 * 4 * 2
    assert w.kv_read_bytes == w.kv_write_bytes == 2 * 10 * 3 * 2
    assert w.act_read_bytes == w.act_write_bytes == 6 * 10 * 2
