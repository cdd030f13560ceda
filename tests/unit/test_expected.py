"""Kernels that nobody knows, told by what the model has in their place: dense layers in front, patterns, what stays open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.parse import parse
from moetrace.parse.expected import told
from moetrace.run import Run
from tests.made import event, write

NORM, ROPE, CACHE = "vllm::rms_norm_kernel", "vllm::rotary_embedding_kernel", "reshape_and_cache_flash"
MOE = ("nvjet_router", "vllm::moe::topkGating<8>", "moe_align_block_size_kernel", "fused_moe_kernel",
       "vllm::act_and_mul_kernel", "fused_moe_kernel", "vllm::moe::moe_sum_kernel")  # fmt: skip
DENSE = ("nvjet_up", "vllm::act_and_mul_kernel", "nvjet_down")
HEAD = (NORM, "nvjet_lm_head", "ArgMaxOps")


def layer(attention: str, block: tuple[str, ...] = MOE) -> list[str]:
    return [NORM, "nvjet_qkv", ROPE, CACHE, attention, "nvjet_o", NORM, *block]


def replayed(path: Path, kernels: list[str], model: ModelSpec, dur: dict[str, float] | None = None) -> Run:
    """A decode step of 8 sequences of 100 tokens, replayed as one graph."""
    name = "execute_8_context_0(sq0sk0sqsq0sqsk0)_generation_8(sq8sk800sqsq8sqsk800)"
    events = [
        event(name, "user_annotation", 0, 20, tid=7),
        event("cudaGraphLaunch", "cuda_runtime", 5, 2, tid=7, correlation=1),
    ]
    now = 20.0
    for kernel in kernels:
        long = (dur or {}).get(kernel, 5.0)
        events.append(event(kernel, "kernel", now, long, tid=3, pid=0, correlation=1, stream=3, device=0))
        now += long + 1
    return parse(write(path, events), model=model)


def test_an_attention_that_nobody_knows_gives_ops_with_shapes(tmp_path: Path) -> None:
    model = load_model("qwen3-30b-a3b").with_edits(layers=8)
    kernels = [*layer("strange") * 8, *HEAD]
    hidden = replayed(tmp_path / "a.json", kernels, model)
    known = replayed(tmp_path / "b.json", [k.replace("strange", "flash_fwd_kernel") for k in kernels], model)
    assert hidden.column("op").to_pylist() == known.column("op").to_pylist()
    assert hidden.numpy("layer", -1).tolist() == known.numpy("layer", -1).tolist()
    frame = hidden.to_pandas(["kernel", "op", "op_source", "layer_source"])
    strange = frame[frame.kernel == "strange"]
    assert set(strange.op_source) == {"period"} and set(strange.layer_source) == {"period"}
    assert Op.parse(str(strange.op.iloc[0]))["kv"] == 800
    assert any("8 kernels whose names moetrace does not know" in note for note in hidden.meta.notes)
    assert not any("order of ops shows" in note for note in hidden.meta.notes)


def test_dense_layers_in_front_are_placed_once_their_attention_is_told(tmp_path: Path) -> None:
    model = load_model("glm-4.5-air").with_edits(layers=9, first_dense=1, shared_inter=0)
    kernels = [*layer("strange", DENSE), *layer("strange") * 8, *HEAD]
    run = replayed(tmp_path / "t.json", kernels, model)
    frame = run.to_pandas(["kind", "layer"])
    assert (frame.kind == "attention").sum() == 9 and frame.layer.max() == 8
    assert frame[frame.layer == 0].kind.tolist()[-3:] == ["dense_gate_up", "activation", "dense_down"]
    assert (frame.kind == "lm_head").sum() == 1


def test_sliding_and_full_attention_by_kernels_of_their_own(tmp_path: Path) -> None:
    model = load_model("gpt-oss-20b").with_edits(layers=12)
    pattern = [*layer("strange_window"), *layer("strange_full")]
    run = replayed(tmp_path / "t.json", [*pattern * 6, *HEAD], model)
    frame = run.to_pandas(["kernel", "kind", "layer", "op"])
    assert frame[frame.kernel == "strange_window"].layer.tolist() == list(range(0, 12, 2))
    assert set(frame[frame.kernel.astype(str).str.startswith("strange")].kind) == {"attention"}


def test_experts_that_nobody_knows(tmp_path: Path) -> None:
    model = load_model("qwen3-30b-a3b").with_edits(layers=6)
    apart = [k.replace("fused_moe_kernel", "odd") for k in layer("flash_fwd_kernel") * 6]
    kinds = replayed(tmp_path / "a.json", [*apart, *HEAD], model).to_pandas(["kernel", "kind"])
    assert kinds[kinds.kernel == "odd"].kind.tolist() == ["moe_gate_up", "moe_down"] * 6
    whole = (*MOE[:3], "odd", MOE[-1])
    frame = replayed(tmp_path / "b.json", [*layer("flash_fwd_kernel", whole) * 6, *HEAD], model)
    kinds = frame.to_pandas(["kernel", "kind"])
    assert set(kinds[kinds.kernel == "odd"].kind) == {"moe_experts"}
    assert set(frame.to_pandas(["layer_source"]).layer_source.dropna()) == {"order"}


@pytest.mark.parametrize(("longer", "kind"), [(100.0, "attention"), (10.0, "other")])
def test_of_two_the_one_that_takes_nearly_all_of_their_time(tmp_path: Path, longer: float, kind: str) -> None:
    model = load_model("qwen3-30b-a3b").with_edits(layers=6)
    kernels = [k for name in layer("main") * 6 for k in ((name, "merge") if name == "main" else (name,))]
    frame = replayed(tmp_path / "t.json", [*kernels, *HEAD], model, {"main": longer}).to_pandas(
        ["kernel", "kind"]
    )
    assert set(frame[frame.kernel == "main"].kind) == {kind}
    assert set(frame[frame.kernel == "merge"].kind) == {"other"}


def test_a_layer_that_still_lacks_something_is_not_guessed_at() -> None:
    model = load_model("qwen3-30b-a3b").with_edits(layers=1)
    whole = ["norm", "gemm", "other", "gemm", "norm", "gemm", "topk", "moe_gemm", "moe_gemm", "moe_combine"]

    def said(kinds: list[str]) -> dict[int, str]:
        names = np.array([5 if k == "other" else -1 for k in kinds])
        return told(kinds, names, np.ones(len(kinds), np.int64), np.zeros(len(kinds), np.int64), model)

    assert said(whole) == {5: "attention"}
    assert said([k for i, k in enumerate(whole) if i not in (1, 3)]) == {}
    assert (
        said(["other" if k == "norm" else k for k in whole]) == {}
    )  # one name in two places, of which one is open


# -- layers with linear attention beside full attention, as vLLM 0.11 names the kernels of Qwen3-Next -----------------
RULE, FLASH = "fused_recurrent_gated_delta_rule_fwd_kernel", "flash_fwd_splitkv_kernel"
SHARED = (
    "nvjet_gate_up",
    "vllm::act_and_mul_kernel",
    "nvjet_down",
    "gemv_gate",
    "triton_poi_fused_mul_sigmoid",
)
IN_FRONT, BEHIND = ("nvjet_router", *SHARED, *MOE[1:]), (*SHARED, *MOE)
LINEAR = ("nvjet_qkvz", "nvjet_ba", "fused_qkvzba_split_reshape_cat_kernel", "_causal_conv1d_update_kernel",
          "fused_gdn_gating_kernel", RULE, "layer_norm_fwd_kernel", "nvjet_out")  # fmt: skip
FULL = ("nvjet_qkv", "triton_red_fused_rsqrt", ROPE, CACHE, FLASH, "triton_poi_fused_mul_sigmoid", "nvjet_o")


def hybrid(block: tuple[str, ...] = IN_FRONT, repeats: int = 4) -> list[str]:
    """Three layers with linear attention and one with full attention, so many times."""
    turn = [*([NORM, *LINEAR, NORM, *block] * 3), NORM, *FULL, NORM, *block]
    return [*turn * repeats, *HEAD]


def hybrid_model(layers: int = 16) -> ModelSpec:
    return load_model("qwen3-next-80b-a3b").with_edits(layers=layers)


@pytest.mark.parametrize("block", [IN_FRONT, BEHIND])
def test_a_hybrids_layers_and_shapes_from_a_replayed_graph(tmp_path: Path, block: tuple[str, ...]) -> None:
    run = replayed(tmp_path / "t.json", hybrid(block), hybrid_model())
    frame = run.to_pandas(["kernel", "op", "layer", "op_source"])
    of = {str(k): str(op) for k, op in zip(frame.kernel, frame.op, strict=True)}
    heads = "heads=32 kv_heads=16 head_dim=128 v_dim=128"
    assert {name: of[name] for name in (*LINEAR, FLASH, "nvjet_qkv", "nvjet_o")} == {
        "nvjet_qkvz": "qkv_proj bf16 m=8 n=12288 k=2048",
        "nvjet_ba": "qkv_proj bf16 m=8 n=64 k=2048",
        "fused_qkvzba_split_reshape_cat_kernel": "linear_prep bf16 elements=98816",
        "_causal_conv1d_update_kernel": "linear_conv bf16 batch=8 tokens=8 width=8192 taps=4",
        "fused_gdn_gating_kernel": "linear_prep bf16 elements=512",
        RULE: f"linear_attention fp32/bf16 batch=8 {heads}",
        "layer_norm_fwd_kernel": "norm bf16 tokens=256 width=128 residual=1 writes=1",
        "nvjet_out": "o_proj bf16 m=8 n=2048 k=4096",
        FLASH: "attention bf16 batch=8 heads=16 kv_heads=2 head_dim=256 kv=800",
        "nvjet_qkv": "qkv_proj bf16 m=8 n=9216 k=2048",
        "nvjet_o": "o_proj bf16 m=8 n=2048 k=4096",
    }
    assert {of["nvjet_router"], of["nvjet_gate_up"], of["nvjet_down"], of["gemv_gate"]} == {
        "router bf16 m=8 n=512 k=2048", "shared_gate_up bf16 m=8 n=1024 k=2048",
        "shared_down bf16 m=8 n=2048 k=512", "shared_gate bf16 m=8 n=1 k=2048",
    }  # fmt: skip
    assert frame[frame.kernel == FLASH].layer.tolist() == [3, 7, 11, 15]
    assert frame[frame.kernel == RULE].layer.tolist() == [i for i in range(16) if i % 4 != 3]
    assert frame[frame.kernel == "moe_align_block_size_kernel"].layer.tolist() == list(range(16))


@pytest.mark.parametrize("strange", [RULE, FLASH])
def test_one_of_a_hybrids_two_attentions_that_nobody_knows_is_told_by_repetition(
    tmp_path: Path, strange: str
) -> None:
    """The order alone would take what lies between two attentions that it knows for one layer."""
    known = replayed(tmp_path / "a.json", hybrid(), hybrid_model())
    kernels = [k.replace(strange, "strange") for k in hybrid()]
    hidden = replayed(tmp_path / "b.json", kernels, hybrid_model())
    assert hidden.column("op").to_pylist() == known.column("op").to_pylist()
    assert hidden.numpy("layer", -1).tolist() == known.numpy("layer", -1).tolist()
    sources = hidden.to_pandas(["layer", "layer_source"])
    assert set(sources[sources.layer >= 0].layer_source) == {"period"}


def test_a_stage_of_a_hybrid_is_not_stretched_to_the_models_depth(tmp_path: Path) -> None:
    kernels = [k.replace(RULE, "strange") for k in hybrid()]
    run = replayed(tmp_path / "t.json", kernels, hybrid_model(32))
    assert any("layers in a step and qwen3-next-80b-a3b has 32" in note for note in run.meta.notes)
    assert "period" not in set(run.to_pandas(["layer_source"]).layer_source)
