"""How many ranks share the model: given, shown by shapes, or assumed from collectives, and always said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moetrace.errors import TraceError
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.run import Run
from tests.made import event, write

DENSE_PART = ["vllm::rms_norm_kernel", "nvjet_qkv", "flash_fwd_kernel", "nvjet_o"]
EXPERT_PART = ["vllm::rms_norm_kernel", "nvjet_router", "vllm::moe::topkGating<8>"]
EXPERTS = ["fused_moe_kernel", "vllm::act_and_mul_kernel", "fused_moe_kernel"]
REDUCE = "vllm::cross_device_reduce_1stage"
TENSOR = [*DENSE_PART, REDUCE, *EXPERT_PART, *EXPERTS, REDUCE]
DISPATCH, COMBINE = "deep_ep::internode_ll::dispatch", "deep_ep::internode_ll::combine"
EXCHANGED = [*DENSE_PART, *EXPERT_PART, DISPATCH, *EXPERTS, COMBINE]
STEP = "execute_context_0(0)_generation_32(32)"


def replayed(path: Path, kernels: list[str], name: str = STEP, world: int = 8, **options: Any) -> Run:
    """One step as a replayed graph of these kernels, on one rank of `world`: no shapes."""
    events = [
        event(name, "user_annotation", 0, 30, tid=7),
        event("cudaGraphLaunch", "cuda_runtime", 10, 5, tid=7, correlation=1),
    ]
    for i, kernel in enumerate(kernels):
        events.append(event(kernel, "kernel", 20 + 10 * i, 9, tid=3, correlation=1, stream=3, device=0))
    top = {"distributedInfo": {"rank": 0, "world_size": world}}
    return parse(write(path / "t.json", events, **top), model="qwen3-30b-a3b", **options)


def dims(run: Run, kind: str) -> dict[str, float]:
    return next(dict(Op.parse(t).dims) for t in run.codes("op")[1] if t.startswith(f"{kind} "))


def said(run: Run, text: str) -> bool:
    return any(text in note for note in run.meta.notes)


def test_all_reduces_without_shapes_are_taken_as_tensor_parallel_over_all_ranks_and_said(tmp_path):
    run = replayed(tmp_path, TENSOR)
    assert (run.meta.gpus, run.meta.tp, run.meta.ep) == (8, 8, 1)
    assert dims(run, "moe_gate_up")["inter"] == 768 / 8
    assert dims(run, "o_proj")["k"] == 32 * 128 / 8
    assert said(run, "tensor parallel over 8 of 8 ranks") and said(run, "--ran-tp")


def test_a_custom_all_reduce_has_the_bytes_of_the_residual_stream(tmp_path):
    assert dims(replayed(tmp_path, TENSOR), "all_reduce") == {"bytes": 32 * 2048 * 2, "ranks": 8}


def test_what_the_user_says_wins(tmp_path):
    run = replayed(tmp_path, TENSOR, ran_tp=4)
    assert (run.meta.gpus, run.meta.tp) == (8, 4)
    assert dims(run, "moe_down")["inter"] == 768 / 4
    assert not said(run, "all-reduces were seen")
    shared = replayed(tmp_path, TENSOR, ran_tp=8, ran_ep=8)
    # Tensor-parallel attention and whole experts: every rank sees all tokens and holds 16 experts.
    assert dims(shared, "moe_down") == {
        "tokens": 32, "hidden": 2048, "inter": 768, "experts": 128, "topk": 8, "local_experts": 16
    }  # fmt: skip


def test_exchanged_tokens_mean_expert_parallel_over_all_ranks(tmp_path):
    run = replayed(tmp_path, EXCHANGED)
    assert (run.meta.tp, run.meta.ep) == (1, 8)
    assert dims(run, "moe_gate_up") == {
        "tokens": 32 * 8, "hidden": 2048, "inter": 768, "experts": 128, "topk": 8, "local_experts": 16
    }  # fmt: skip
    assert dims(run, "moe_act")["local_experts"] == 16
    assert dims(run, "o_proj")["k"] == 32 * 128
    assert said(run, "shared out over all 8 ranks") and said(run, "16 of 128 experts")
    weights = run.to_pandas(["kind", "weight_bytes"]).set_index("kind").weight_bytes["moe_down"]
    assert weights <= 16 * 2048 * 768 * 2


def test_many_ranks_without_an_all_reduce_are_said(tmp_path):
    run = replayed(tmp_path, [*DENSE_PART, *EXPERT_PART, *EXPERTS])
    assert (run.meta.gpus, run.meta.tp, run.meta.ep) == (8, 1, 1)
    assert said(run, "one of 8 ranks, and no all-reduce was seen")


def test_one_rank_needs_no_remark(tmp_path):
    run = replayed(tmp_path, [*DENSE_PART, *EXPERT_PART, *EXPERTS], world=1)
    assert (run.meta.gpus, run.meta.tp, run.meta.ep) == (1, 1, 1)
    assert not said(run, "rank")


def test_sizes_that_cannot_be_are_refused(tmp_path):
    for options in ({"ran_tp": 3}, {"ran_tp": 16}, {"ran_ep": 3}, {"ran_tp": 0}, {"ran_ep": 1 << 40}):
        with pytest.raises(TraceError, match=r"ran.[te]p"):
            replayed(tmp_path, TENSOR, **options)
    with pytest.raises(TraceError, match="32 heads"):
        replayed(tmp_path, TENSOR, world=1, ran_tp=64)


# -- mixed steps --------------------------------------------------------------------------------------------------
SUMS = "execute_1031_context_1(sq1000sk1000sqsq1000000sqsk1000000)_generation_31(sq31sk31000sqsq31sqsk31000)"
ONE = ["vllm::rms_norm_kernel", "nvjet_qkv", "flash_fwd_kernel", "nvjet_o", *EXPERT_PART, *EXPERTS]
PREFILL = 4 * 32 * 128 * 1000 * 1001 / 2  # FLOPs: 4 heads head_dim per pair
DECODE = 4 * 32 * 128 * 31000
KV = 2 * 4 * 128 * 2  # bytes per token and layer


def attention(run: Run) -> list[tuple[float, float]]:
    frame = run.to_pandas(["kind", "flops", "kv_bytes"])
    return list(frame[frame.kind == "attention"][["flops", "kv_bytes"]].itertuples(index=False, name=None))


def test_one_attention_op_of_a_mixed_step_has_the_pairs_of_all_sequences(tmp_path):
    run = replayed(tmp_path, ONE, SUMS, world=1)
    assert attention(run) == [(PREFILL + DECODE, 32000 * KV)]


@pytest.mark.parametrize(
    ("first", "second", "swapped"),
    [
        ("flash_fwd_kernel", "flash_fwd_kernel", False),
        ("BatchPrefillWithPagedKVCacheKernel", "BatchDecodeWithPagedKVCacheKernel", False),
        ("BatchDecodeWithPagedKVCacheKernel", "BatchPrefillWithPagedKVCacheKernel", True),
        ("vllm::paged_attention_v2_kernel", "flash_fwd_kernel", True),
    ],
)
def test_two_attention_ops_of_a_mixed_step_share_its_sequences(tmp_path, first, second, swapped):
    kernels = [*ONE[:2], first, second, *ONE[3:]]
    run = replayed(tmp_path, kernels * 2, SUMS, world=1)
    halves = [(PREFILL, 1000 * KV), (DECODE, 31000 * KV)]
    assert attention(run) == (halves[::-1] if swapped else halves) * 2
    assert said(run, "the first is taken to have the prefills") == (first == second)


def test_attention_ops_that_cannot_be_told_apart_have_no_bytes(tmp_path):
    kernels = [*ONE[:2], *["flash_fwd_kernel"] * 3, *ONE[3:]]
    run = replayed(tmp_path, kernels, SUMS, world=1)
    assert run.numpy("kv_bytes", float("nan"))[2] != run.numpy("kv_bytes", float("nan"))[2]
    assert said(run, "no bytes for them")
    plain = replayed(
        tmp_path, [*ONE[:2], *["flash_fwd_kernel"] * 2, *ONE[3:]],
        "moetrace.step#0 mixed batch=32 tokens=1031 kv=32000", world=1,
    )  # fmt: skip
    assert said(plain, "no bytes for them")


def test_unequal_prompts_have_the_pairs_that_their_sums_say(tmp_path):
    name = "execute_400_context_2(sq400sk400sqsq100000sqsk100000)_generation_0(sq0sk0sqsq0sqsk0)"
    run = replayed(tmp_path, ONE, name, world=1)  # prompts of 300 and 100
    assert attention(run)[0][0] == 4 * 32 * 128 * (300 * 301 / 2 + 100 * 101 / 2)


def test_equal_lengths_are_said_to_be_assumed(tmp_path):
    run = replayed(tmp_path, ONE, "moetrace.step#0 mixed batch=32 tokens=1031 kv=32000", world=1)
    assert said(run, "equally long")
