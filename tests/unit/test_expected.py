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
