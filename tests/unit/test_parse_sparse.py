"""Traces of sparse attention by an indexer: its kernels named and sized, the projections beside it left open."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetrace.model import ModelSpec, load_model
from moetrace.parse import parse
from moetrace.run import Run
from tests.made import event, write

NORM, ROPE = "vllm::rms_norm_kernel", "vllm::rotary_embedding_kernel"
INDEXER = ("indexer_k_quant_and_cache_kernel", "sm90_fp8_paged_mqa_logits", "vllm::topKPerRowDecode<512>")
MOE = ("nvjet_router", "vllm::moe::topkGating<8>", "moe_align_block_size_kernel", "fused_moe_kernel",
       "vllm::act_and_mul_kernel", "fused_moe_kernel", "vllm::moe::moe_sum_kernel")  # fmt: skip


def replayed(path: Path, attention: str, model: ModelSpec | None) -> Run:
    """A decode step of 8 sequences of 4,096 tokens over eight layers, replayed as one graph."""
    name = "execute_8_context_0(sq0sk0sqsq0sqsk0)_generation_8(sq8sk32768sqsq8sqsk32768)"
    events = [
        event(name, "user_annotation", 0, 20, tid=7),
        event("cudaGraphLaunch", "cuda_runtime", 5, 2, tid=7, correlation=1),
    ]
    before = ("nvjet_a", NORM, NORM, "nvjet_b", "nvjet_index", "nvjet_index", ROPE, *INDEXER, "nvjet_absorb")
    layer = (NORM, *before, attention, "nvjet_v", "nvjet_o", NORM, *MOE)
    now = 20.0
    for kernel in (*layer * 8, NORM, "nvjet_lm_head", "ArgMaxOps"):
        events.append(event(kernel, "kernel", now, 5.0, tid=3, pid=0, correlation=1, stream=3, device=0))
        now += 6.0
    return parse(write(path, events), model=model)


@pytest.fixture
def model() -> ModelSpec:
    return load_model("deepseek-v3.2").with_edits(layers=8, first_dense=0, shared_inter=0)


def ops_of(run: Run) -> dict[str, set[str]]:
    frame = run.to_pandas(["kernel", "op"])
    return {str(kernel): set(part.op) for kernel, part in frame.groupby("kernel")}


KNOWN = "flash_fwd_splitkv_mla_fp8_sparse_kernel"


def test_an_indexers_kernels_have_sizes_and_the_gemms_beside_them_none(
    tmp_path: Path, model: ModelSpec
) -> None:
    """8 x 4,096 tokens are scored, 8 x 2,048 attended to. Engines order and fuse the six projections in their ways."""
    found = ops_of(replayed(tmp_path / "a.json", KNOWN, model))
    assert found["sm90_fp8_paged_mqa_logits"] == {"index_scores fp8 heads=64 head_dim=128 batch=8 kv=32768"}
    assert found["vllm::topKPerRowDecode<512>"] == {"index_topk fp32 chosen=2048 batch=8 kv=32768"}
    assert found["indexer_k_quant_and_cache_kernel"] == {"index_write fp8/bf16 tokens=8 head_dim=128"}
    assert found[KNOWN] == {"sparse_mla bf16 batch=8 heads=128 kv_lora=512 rope=64 kv=16384 chosen=2048"}
    for name in ("nvjet_a", "nvjet_b", "nvjet_index", "nvjet_absorb", "nvjet_v"):
        assert found[name] == {"qkv_proj bf16"}
    assert found["nvjet_o"] == {"o_proj fp8_block m=8 n=7168 k=16384"}
    # The layers' own norm has its width, those of the latents and of the indexer's key, which are not told apart, none.
    assert found[NORM] == {"norm bf16 tokens=8 width=7168", "norm bf16"}


def test_an_attention_of_unknown_name_is_the_one_over_what_is_picked(
    tmp_path: Path, model: ModelSpec
) -> None:
    hidden, known = (replayed(tmp_path / f"{name}.json", name, model) for name in ("strange", KNOWN))
    assert hidden.column("op").to_pylist() == known.column("op").to_pylist()


@pytest.mark.parametrize(
    ("kernel", "model"), [("sm90_fp8_paged_mqa_logits", "deepseek-v3.2"), ("flash_fwd_kernel", None)]
)
def test_an_indexers_kernel_tells_whose_trace_it_is(tmp_path: Path, kernel: str, model: str | None) -> None:
    """Of 7,168 hidden values there is one model with an indexer, and several without."""
    events = [event("vllm::rms_norm", "cpu_op", 1, 9, tid=7, **{"Input Dims": [[8, 7168], [7168]]})]
    for i, name in enumerate((NORM, kernel), 1):
        events += [
            event("cudaLaunchKernel", "cuda_runtime", 10 * i - 5, 1, tid=7, correlation=i),
            event(name, "kernel", 10.0 * i, 5.0, tid=3, pid=0, correlation=i, stream=3, device=0),
        ]
    found = parse(write(tmp_path / "a.json", events)).meta.model
    assert (found and found.name) == model
