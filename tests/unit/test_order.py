"""Layers and roles from the order of kinds, for every shape of decoder that engines run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.parse.order import Hints, layer_starts
from moetrace.parse.roles import resolve

# One block each: (kind that its name gives, role that its place gives).
Block = list[tuple[str, str]]
ATTENTION: Block = [
    ("norm", ""), ("gemm", "qkv_proj"), ("rope", ""), ("kv_write", ""), ("attention", ""), ("gemm", "o_proj"),
]  # fmt: skip
SPLIT_QKV: Block = [
    ("norm", ""), ("gemm", "q_proj"), ("gemm", "k_proj"), ("gemm", "v_proj"), ("norm", "q_norm"),
    ("norm", "k_norm"), ("rope", ""), ("attention", ""), ("attention_reduce", ""), ("gemm", "o_proj"),
]  # fmt: skip
MLA: Block = [
    ("norm", ""), ("gemm", "mla_part"), ("norm", "q_norm"), ("norm", "k_norm"), ("gemm", "mla_part"), ("gemm", "absorb"),
    ("rope", ""), ("kv_write", ""), ("mla_attention", ""), ("gemm", "v_up"), ("gemm", "o_proj"),
]  # fmt: skip
NO_NORM: Block = ATTENTION[1:]
DENSE: Block = [("norm", ""), ("gemm", "dense_gate_up"), ("activation", ""), ("gemm", "dense_down")]
DENSE_SPLIT: Block = [
    ("norm", ""), ("gemm", "dense_half"), ("gemm", "dense_half"), ("activation", ""), ("gemm", "dense_down"),
]  # fmt: skip
DENSE_EAGER: Block = [  # gate, activation, up, down: one op after the other
    ("norm", ""), ("gemm", "dense_half"), ("activation", ""), ("gemm", "dense_half"), ("elementwise", ""),
    ("gemm", "dense_down"),
]  # fmt: skip
EXPERT_LOOP: Block = [  # experts one by one, as transformers runs them without a grouped kernel
    ("norm", ""), ("gemm", "router"), ("sampling", "topk"),
    *[("elementwise", ""), ("gemm", "expert_up"), ("activation", "expert_act"), ("gemm", "expert_up"),
      ("gemm", "expert_down")] * 3,
]  # fmt: skip
DENSE_FP8: Block = [
    ("norm", ""), ("quantize", "quantize dense_gate_up"), ("gemm", "dense_gate_up"), ("activation", ""),
    ("quantize", "quantize dense_down"), ("gemm", "dense_down"),
]  # fmt: skip
DENSE_SPLIT_K: Block = [
    ("norm", ""), ("gemm", "dense_gate_up"), ("gemm_reduce", "reduce dense_gate_up"), ("activation", ""),
    ("gemm", "dense_down"), ("gemm_reduce", "reduce dense_down"),
]  # fmt: skip
MOE: Block = [
    ("norm", ""), ("gemm", "router"), ("topk", ""), ("moe_align", ""), ("moe_gemm", "moe_gate_up"),
    ("activation", "moe_act"), ("moe_gemm", "moe_down"), ("moe_combine", ""),
]  # fmt: skip
MOE_NAMED: Block = [
    ("norm", ""), ("gemm", "router"), ("elementwise", ""), ("topk", ""), ("moe_align", ""), ("moe_gate_up", ""),
    ("moe_down", ""), ("moe_combine", ""),
]  # fmt: skip
SHARED_AFTER: Block = [
    *MOE, ("gemm", "shared_gate_up"), ("activation", "shared_act"), ("gemm", "shared_down"), ("elementwise", ""),
]  # fmt: skip
SHARED_BEFORE: Block = [
    ("norm", ""), ("gemm", "shared_gate_up"), ("activation", "shared_act"), ("gemm", "shared_gate_up"), *MOE[1:],
]  # fmt: skip
SPLIT_EXPERTS: Block = [  # two batches of tokens, each with its pair of expert GEMMs
    ("norm", ""), ("gemm", "router"), ("topk", ""), ("moe_gemm", "moe_gate_up"), ("activation", "moe_act"),
    ("moe_gemm", "moe_down"), ("moe_gemm", "moe_gate_up"), ("activation", "moe_act"), ("moe_gemm", "moe_down"),
]  # fmt: skip
REDUCE: Block = [("all_reduce", "")]
EP_MOE: Block = [
    ("norm", ""), ("gemm", "router"), ("topk", ""), ("moe_dispatch", ""), ("moe_gemm", "moe_gate_up"),
    ("activation", "moe_act"), ("moe_gemm", "moe_down"), ("moe_collect", ""),
]  # fmt: skip
HEAD: Block = [("norm", ""), ("gemm", "lm_head"), ("sampling", "")]
FRONT: Block = [("memcpy", ""), ("embedding", "")]


def check(front: Block, layers: list[Block], tail: Block) -> None:
    """Every op gets the layer it was put in and the role it was given."""
    sequence = [*front, *(op for layer in layers for op in layer), *tail]
    expected = [-1] * len(front) + [i for i, layer in enumerate(layers) for _ in layer] + [-1] * len(tail)
    found, roles = resolve([kind for kind, _ in sequence])
    assert found == expected
    assert roles == [role for _, role in sequence]


LAYERS = {
    "dense": ATTENTION + DENSE,
    "dense, gate and up apart": ATTENTION + DENSE_SPLIT,
    "dense, op by op": SPLIT_QKV + DENSE_EAGER,
    "dense, fp8": ATTENTION + DENSE_FP8,
    "dense, split k": ATTENTION + DENSE_SPLIT_K,
    "experts one by one": ATTENTION + EXPERT_LOOP,
    "dense, no norm of its own": NO_NORM + DENSE[1:],
    "qk norm, q k v apart": SPLIT_QKV + DENSE,
    "moe": ATTENTION + MOE,
    "moe with kernels that say which": ATTENTION + MOE_NAMED,
    "moe, qk norm": SPLIT_QKV + MOE,
    "mla, moe": MLA + MOE,
    "shared expert behind": ATTENTION + SHARED_AFTER,
    "two pairs of expert GEMMs": ATTENTION + SPLIT_EXPERTS,
    "expert parallel": ATTENTION + EP_MOE,
    "tensor parallel dense": ATTENTION + REDUCE + DENSE + REDUCE,
    "tensor parallel moe": ATTENTION + REDUCE + MOE + REDUCE,
    "tensor parallel shared": ATTENTION + REDUCE + SHARED_AFTER + REDUCE,
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_decoder_of_one_kind_of_layer(name: str, count: int) -> None:
    check(FRONT, [LAYERS[name]] * count, HEAD)


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_that_begins_and_ends_with_a_layer(name: str) -> None:
    if not name.startswith(
        ("tensor", "shared", "dense, op by op", "experts one by one")
    ):  # what follows the last block without a norm could be anything
        check([], [LAYERS[name]] * 3, [])


def test_hybrids() -> None:
    check(FRONT, [ATTENTION + DENSE, *[ATTENTION + MOE] * 3], HEAD)  # DeepSeek: dense layers first
    check(FRONT, [ATTENTION + DENSE, ATTENTION + MOE] * 2, HEAD)  # every other layer
    check(FRONT, [MLA + DENSE_SPLIT, MLA + SHARED_AFTER, MLA + SHARED_AFTER], HEAD)


@given(st.lists(st.sampled_from(sorted(set(LAYERS) - {"dense, no norm of its own"})), min_size=1, max_size=8))
def test_any_mixture_of_layers(names: list[str]) -> None:
    check(FRONT, [LAYERS[name] for name in names], HEAD)


def test_a_shared_expert_before_the_router_keeps_the_router() -> None:
    kinds = [kind for kind, _ in [*ATTENTION, *SHARED_BEFORE]]
    layers, roles = resolve(kinds)
    assert set(layers) == {0}
    assert roles[kinds.index("topk") - 1] == "router" and roles.count("router") == 1
    assert next(r for r in roles if r.startswith("shared")) == "shared_gate_up"
    assert roles.count("shared_act") == 1


def test_a_sampler_s_top_k_behind_the_last_layer_is_no_router() -> None:
    tail: Block = [("norm", ""), ("gemm", "lm_head"), ("topk", "sampling"), ("sampling", "")]
    check(FRONT, [ATTENTION + MOE] * 2, tail)
    check(FRONT, [ATTENTION + DENSE] * 2, tail)


def test_split_attention_kernels_are_one_layer() -> None:
    both = [*ATTENTION[:5], ("attention", ""), ("attention_reduce", ""), ("gemm", "o_proj")]
    check(FRONT, [both + MOE] * 3, HEAD)


def test_without_attention_order_says_only_which_expert_gemm_is_which() -> None:
    kinds = ["norm", "gemm", "moe_gemm", "activation", "moe_gemm", "gemm"]
    assert layer_starts(kinds) == ([], 0, 6)
    assert resolve(kinds) == ([-1] * 6, ["", "", "moe_gate_up", "", "moe_down", ""])
    assert resolve([]) == ([], [])


KINDS = sorted({kind for layer in LAYERS.values() for kind, _ in layer} | {"sampling", "other", "memcpy"})


@given(st.lists(st.sampled_from(KINDS), max_size=60))
def test_any_sequence_has_layers_in_order_and_one_attention_each(kinds: list[str]) -> None:
    layers, roles = resolve(kinds)
    assert len(layers) == len(roles) == len(kinds)
    inside = [i for i in layers if i >= 0]
    assert inside == sorted(inside) and set(inside) == set(range(max(inside, default=-1) + 1))
    assert all(layers[i] >= 0 for i, kind in enumerate(kinds) if kind in ("attention", "mla_attention"))
    for layer in set(inside):
        here = [kinds[i] for i in range(len(kinds)) if layers[i] == layer]
        assert any(kind.endswith("attention") for kind in here)
        assert [roles[i] for i in range(len(kinds)) if layers[i] == layer].count("o_proj") <= 1


def roles_of(block: Block, hints: Hints) -> list[str]:
    kinds = [kind for kind, _ in [*block, *DENSE, *HEAD]]
    return [role for kind, role in zip(kinds, resolve(kinds, (), hints)[1], strict=True) if kind == "gemm"]


def gemms(count: int) -> Block:
    return [("gemm", "")] * count


def test_mla_projections_by_number_and_place() -> None:
    deepseek = Hints(mla=True, q_lora=True)
    latent: Block = [("mla_attention", ""), *gemms(2)]
    rest = ["dense_gate_up", "dense_down", "lm_head"]
    named = ["qkv_a", "q_b", "absorb", "v_up", "o_proj"]
    assert roles_of([("norm", ""), *gemms(3), *latent], deepseek) == named + rest
    apart: Block = [("norm", ""), *gemms(1), ("norm", ""), *gemms(3), *latent]
    assert roles_of(apart, deepseek) == ["q_a", "q_b", "kv_a", "absorb", "v_up", "o_proj", *rest]
    expanded: Block = [("norm", ""), *gemms(3), ("attention", ""), *gemms(1)]
    assert roles_of(expanded, deepseek) == ["qkv_a", "q_b", "kv_b", "o_proj", *rest]
    # an indexer's projections, or engines that differ in order: nothing is guessed
    assert roles_of([("norm", ""), *gemms(6), *latent], deepseek)[:6] == ["mla_part"] * 6
    assert roles_of([("norm", ""), *gemms(3), *latent], Hints(mla=True))[:2] == ["mla_part"] * 2


def test_an_mla_step_of_prefill_and_decode_has_one_layer_per_layer() -> None:
    both: Block = [
        ("norm", ""), *gemms(3), ("attention", ""), *gemms(1), ("mla_attention", ""), *gemms(2),
    ]  # fmt: skip
    kinds = [kind for kind, _ in [*both, *SHARED_AFTER, *both, *SHARED_AFTER, *HEAD]]
    layers, roles = resolve(kinds)
    assert max(layers) == 1
    assert roles.count("o_proj") == 2 and roles.count("shared_gate_up") == 2
    assert roles.count("mla_part") == 2 * 5  # rows of prefill and decode apart: no sizes are known


def test_gate_and_up_apart_without_norms_by_their_shapes() -> None:
    attention = [("gemm", (64, 64))] * 3 + [("attention", (0, 0)), ("gemm", (64, 64))]
    mlp = [("gemm", (96, 64)), ("activation", (0, 0)), ("gemm", (96, 64)), ("gemm", (64, 96))]
    sequence = [*attention, *mlp] * 2 + [("gemm", (999, 64))]
    layers, roles = resolve([k for k, _ in sequence], [w for _, w in sequence])
    assert layers == [0] * 9 + [1] * 9 + [-1]
    one = ["q_proj", "k_proj", "v_proj", "", "o_proj", "dense_half", "", "dense_half", "dense_down"]
    assert roles == [*one, *one, "lm_head"]


def test_the_last_round_of_experts_one_by_one_is_the_shared_expert_s() -> None:
    kinds = [kind for kind, _ in [*ATTENTION, *EXPERT_LOOP, *HEAD]]
    roles = resolve(kinds, (), Hints(shared=True))[1]
    assert (roles.count("expert_up"), roles.count("expert_down"), roles.count("expert_act")) == (4, 2, 2)
    assert roles.count("shared_act") == 1 and sum(r.startswith("shared") for r in roles) == 4


def test_a_draft_behind_the_head_is_no_layer_of_the_model() -> None:
    draft: Block = [("embedding", ""), *gemms(1), *ATTENTION, *DENSE, *HEAD]
    kinds = [kind for kind, _ in [*FRONT, *(ATTENTION + MOE) * 3, *HEAD, *draft]]
    layers, roles = resolve(kinds, (), Hints(layers=3))
    first = len(kinds) - len(draft)
    assert max(layers) == 2 and layers[first:] == [-1] * len(draft)
    assert all(role.startswith("draft") for role in roles[first:])
    assert not any(role.startswith("draft") for role in roles[:first])
    assert roles[first - 2] == "lm_head" and roles[:first].count("qkv_proj") == 3


def test_an_expert_s_quantising_is_part_of_routing() -> None:
    block: Block = [
        ("norm", ""), ("gemm", "router"), ("topk", ""), ("quantize", "moe_align"), ("moe_gemm", "moe_gate_up"),
        ("activation", "moe_act"), ("quantize", "moe_align"), ("moe_gemm", "moe_down"), ("moe_combine", ""),
    ]  # fmt: skip
    check(FRONT, [ATTENTION + block] * 2, HEAD)
