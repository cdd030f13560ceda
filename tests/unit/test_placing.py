"""Layers and roles held against the model: drafts, another depth, and operators that run one by one."""

from __future__ import annotations

import pytest

from moetrace.model import load_model
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.parse.parts import role_in_part
from tests.made import LAYER, decode_trace, event, write

BF16 = "c10::BFloat16"


def graph(path, kernels, batch=32):
    """One decode step whose kernels are a graph's: order and names are all there is."""
    events = [
        event(f"execute_context_0(0)_generation_{batch}({batch})", "user_annotation", 0, 20, tid=7),
        event("cudaGraphLaunch", "cuda_runtime", 5, 2, tid=7, correlation=1),
    ]
    for i, name in enumerate(kernels):
        at = 20 + 6 * i
        events.append(event(name, "kernel", at, 5, tid=3, pid=0, correlation=1, stream=3, device=0))
    return write(path, events)


def ops_of(run, *kinds):
    frame = run.to_pandas(["kind", "op", "layer", "kernel"])
    return frame[frame.kind.isin(kinds)]


def noted(run, text):
    return [n for n in run.meta.notes if text in n]


def test_another_number_of_layers_than_the_model_s_is_said(tmp_path):
    model = load_model("olmoe-1b-7b")
    path = write(tmp_path / "t.json", decode_trace(layers=3))
    assert noted(parse(path, model=model), f"order of ops shows 3 layers in a step and {model.name} has 16")
    assert not noted(parse(path, model=model.with_edits(layers=3)), "order of ops shows")


def test_a_draft_has_neither_layer_nor_the_model_s_bytes(tmp_path):
    head = ["vllm::rms_norm_kernel", "nvjet_lm_head", "ArgMaxOps"]
    draft = ["embedding_kernel", "nvjet_fc", *LAYER, *head]
    model = load_model("olmoe-1b-7b").with_edits(layers=3)
    run = parse(graph(tmp_path / "t.json", [*LAYER * 3, *head, *draft]), model=model)
    frame = run.to_pandas(["kind", "layer", "weight_bytes", "kernel"])
    assert noted(run, "the rest is taken as a draft")
    assert frame.layer.max() == 2
    assert frame.iloc[-len(draft) :].weight_bytes.isna().all()
    (heads,) = ops_of(run, "lm_head").op
    assert Op.parse(str(heads)) == Op.of("lm_head", "bf16", m=32, n=model.vocab, k=model.hidden)
    assert (frame.kind == "qkv_proj").sum() == 3


def test_mla_by_the_order_of_a_graph(tmp_path):
    attention = ["rms_norm", "nvjet_qkv_a", "rms_norm", "rms_norm", "nvjet_q_b", "gemmSN_absorb", "rotary_embedding",
                 "concat_and_cache_mla", "flash_mla_splitkv", "gemmSN_v_up", "nvjet_o", "rms_norm"]  # fmt: skip
    dense = ["nvjet_gate_up", "act_and_mul_kernel", "nvjet_down"]
    model = load_model("deepseek-v3").with_edits(layers=2)
    run = parse(graph(tmp_path / "t.json", [*(attention + dense) * 2, "rms_norm", "nvjet_head"]), model=model)
    weights = ops_of(run, "qkv_proj", "o_proj").op.astype(str)
    params = sum((op := Op.parse(text))["n"] * op["k"] * op.get("b", 1) for text in weights)
    assert params == 2 * model.layer_params(0)["attention"]
    assert not ops_of(run, "shared_gate_up", "shared_down").size
    assert len(ops_of(run, "dense_gate_up")) == len(ops_of(run, "dense_down")) == 2
    assert {Op.parse(str(t))["elements"] for t in ops_of(run, "kv_write").op} == {32 * 576}


def eager(path, calls):
    """Operators with shapes, each with its kernel, on one thread."""
    events = [event("execute_context_0(0)_generation_8(8)", "user_annotation", 0, 20 * len(calls), tid=7)]
    for i, (operator, shapes, kernel) in enumerate(calls):
        at = 20 * i
        types = [BF16] * len(shapes)
        args = {"External id": i + 1, "Input Dims": shapes, "Input type": types}
        events += [
            event(operator, "cpu_op", at, 15, tid=7, **args),
            event("cudaLaunchKernel", "cuda_runtime", at + 2, 1, tid=7, correlation=i + 1, **{"External id": i + 1}),
            event(kernel, "kernel", at + 5, 9, tid=3, pid=0, correlation=i + 1, stream=3, device=0),
        ]  # fmt: skip
    return write(path, events)


def linear(n, k, rows=8):
    return ("aten::mm", [[rows, k], [k, n]], "nvjet_tst")


def plain(operator, width=64):
    return (operator, [[8, width]], "void at::native::vectorized_elementwise_kernel<4>")


ATTENTION = [
    plain("aten::rsqrt", 1), *[linear(64, 64)] * 3,
    ("aten::scaled_dot_product_attention", [[8, 4, 1, 16]] * 3, "flash_fwd_kernel"), linear(64, 64), plain("aten::rsqrt", 1),
]  # fmt: skip
FEED_FORWARD = [
    linear(96, 64),
    plain("aten::silu", 96),
    linear(96, 64),
    plain("aten::mul", 96),
    linear(64, 96),
]


def test_gate_and_up_apart_as_transformers_runs_them(tmp_path):
    end = [plain("aten::rsqrt", 1), linear(999, 64)]
    run = parse(eager(tmp_path / "t.json", [*(ATTENTION + FEED_FORWARD) * 2, *end]))
    frame = run.to_pandas(["kind", "layer", "op"])
    count = frame.kind.value_counts()
    assert (count["dense_gate_up"], count["dense_down"], count["qkv_proj"], count["lm_head"]) == (4, 2, 6, 1)
    assert set(frame[frame.kind == "dense_down"].op.astype(str)) == {"dense_down bf16 m=8 n=64 k=96"}
    assert frame[frame.kind == "lm_head"].op.astype(str).iloc[0] == "lm_head bf16 m=8 n=999 k=64"


def test_experts_one_by_one_are_experts(tmp_path):
    choice = ("aten::topk", [[8, 4]], "void at::native::sbtopk::gatherTopK<float>")
    experts = [linear(96, 64, 2), plain("aten::silu", 96), linear(96, 64, 2), linear(64, 96, 2)] * 4
    block = [linear(4, 64), choice, *experts]
    run = parse(
        eager(tmp_path / "t.json", [*(ATTENTION + block) * 2, plain("aten::rsqrt", 1), linear(999, 64)])
    )
    frame = run.to_pandas(["kind", "family", "op", "layer"])
    count = frame.kind.value_counts()
    assert (count["expert_up"], count["expert_down"], count["expert_act"], count["router"]) == (16, 8, 8, 2)
    assert (count["topk"], count["lm_head"], count["qkv_proj"]) == (2, 1, 6)
    assert "shared_expert" not in set(frame.family)
    assert set(frame[frame.kind == "expert_down"].op.astype(str)) == {"expert_down bf16 m=2 n=64 k=96"}


@pytest.mark.parametrize(
    ("kind", "operator", "width", "role"),
    [
        ("gemm", "aten::linear", 64, "expert_up"),
        ("gemm", "aten::mm", 96, "expert_down"),
        ("gemm", "aten::bmm", 64, "moe_gate_up"),
        ("moe_gemm", "aten::_grouped_mm", 96, "moe_down"),
    ],
)
def test_one_expert_s_gemm_is_not_the_whole_layer_s(kind, operator, width, role):
    assert role_in_part("experts", kind, operator, False, (8, width), 64) == role
