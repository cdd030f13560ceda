"""Knobs of the model's shape beyond n_a: kept experts, expert widths, element types, parts of the depth, unfused experts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import ops as work_of
from moetrace.errors import ScenarioError
from moetrace.model import load_model
from moetrace.replay import Scenario, simulate
from moetrace.replay.draft import Draft
from moetrace.replay.editing import edited
from moetrace.replay.grammar import Segments
from moetrace.replay.popularity import kept_popularity
from moetrace.routing import popularity_distinct, uniform_distinct
from moetrace.run import Run
from moetrace.synthesize import Workload, synthesize
from tests.unit.replay_runs import EXPERTS, H100, NODE, decode_run, recorded_routing
from tests.unit.test_knobs import ops_of, refusal, turned

OLMOE = load_model("olmoe-1b-7b")
LOAD = Workload(16, 128, 64)


@pytest.fixture(scope="module")
def plain() -> Run:
    return synthesize(OLMOE, LOAD)


def drafted(run: Run, *sets: str) -> Draft:
    return edited(run, H100, Scenario.of(*sets))


# -- n_e and pruning -----------------------------------------------------------------------------------------------
def test_fewer_experts_change_the_router_the_choice_and_what_is_read(plain: Run) -> None:
    draft = drafted(plain, "n_e=32")
    assert {op["experts"] for op in ops_of(draft, "moe_gate_up")} == {32}
    assert {op["n"] for op in ops_of(draft, "router")} == {32}
    assert {op["experts"] for op in ops_of(draft, "topk")} == {32}
    decode = next(op for op in ops_of(draft, "moe_down") if op["tokens"] == 16)
    assert work_of.distinct_experts(decode)[0] == pytest.approx(uniform_distinct(32, 8, 16))
    assert draft.model is not None and draft.model.experts == 32
    assert draft.model.weight_bytes() < OLMOE.weight_bytes() * 0.6


def test_experts_kept_of_a_recording_take_the_choices_of_the_others() -> None:
    run = decode_run()
    q = recorded_routing(2, 16, 2).popularity(0)
    for how in ("popular", "random"):
        op = ops_of(turned(run, f"n_e=32@{how}"), "moe_gate_up")[0]
        kept = kept_popularity(q, 32, 8, how == "popular")
        assert popularity_distinct(kept, 16) < op["distinct_est"] <= 32


def test_a_few_experts_less_are_a_few_distinct_ones_less() -> None:
    """What is left of the experts is held against the same counts as all of them."""
    whole = [work_of.distinct_experts(op)[0] for op in ops_of(turned(decode_run(), "n_e=64"), "moe_gate_up")]
    fewer = [work_of.distinct_experts(op)[0] for op in ops_of(turned(decode_run(), "n_e=63"), "moe_gate_up")]
    assert 0 < np.mean(whole) - np.mean(fewer) < 1


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=64).filter(lambda q: sum(q) > 0.1),
    st.integers(1, 64),
    st.integers(1, 8),
    st.booleans(),
)
def test_popularity_of_kept_experts_is_one(q: list[float], experts: int, topk: int, popular: bool) -> None:
    experts = min(experts, len(q))
    topk = min(topk, experts)
    kept = kept_popularity(np.array(q), experts, topk, popular)
    assert kept.shape == (experts,) and kept.min() >= 0 and kept.max() <= 1 + 1e-9
    assert kept.sum() == pytest.approx(topk, rel=1e-6)


def test_pruning_in_per_cent_is_n_e_and_ffn(plain: Run) -> None:
    assert drafted(plain, "prune_inter=25").ops == drafted(plain, "n_e=48").ops
    assert drafted(plain, "prune_intra=12.5").ops == drafted(plain, "ffn=896").ops
    assert {op["inter"] for op in ops_of(drafted(plain, "prune_intra=50"), "moe_act")} == {512}


def test_what_pruning_cannot_do(plain: Run) -> None:
    for sets, words in (
        (("n_e=65",), "at most 64"),
        (("n_e=4",), "set n_a to 4 or fewer too"),
        (("n_e=32", "prune_inter=25"), "n_e says already"),
        (("ffn=512", "prune_intra=25"), "ffn says already"),
        (("n_e=32@popular",), "no routing was recorded"),
    ):
        with pytest.raises(ScenarioError, match=words):
            drafted(plain, *sets)
    for text in ("n_e=32@best", "prune_inter=100", "prune_intra=-1", "ffn=0"):
        with pytest.raises(ScenarioError):
            Scenario.of(text)
    of_eight = decode_run(tp=8, gpus=8, hardware="node-x8")
    assert "holds the whole model" in refusal(of_eight, "n_e=32", hw=NODE)


def test_fewer_experts_with_fewer_activated(plain: Run) -> None:
    assert {op["topk"] for op in ops_of(drafted(plain, "n_e=4", "n_a=4"), "topk")} == {4}


# -- widths --------------------------------------------------------------------------------------------------------
def test_a_width_scales_expert_weights_and_nothing_else(plain: Run) -> None:
    half, whole = drafted(plain, "ffn=512"), drafted(plain)
    for kind in ("moe_gate_up", "moe_down"):
        a, b = (work_of.work(ops_of(d, kind)[0]).resident_bytes for d in (half, whole))
        assert a == b / 2
    for kind in ("qkv_proj", "router", "moe_combine", "attention"):
        assert ops_of(half, kind) == ops_of(whole, kind)


def test_stored_widths_stay_padded() -> None:
    model = load_model("gpt-oss-20b")
    draft = drafted(synthesize(model, LOAD), "ffn=1440")
    assert {op["inter"] for op in ops_of(draft, "moe_gate_up")} == {1536}  # 1440 up to a multiple of 256
    assert draft.model is not None and draft.model.expert_inter == 1440


# -- element types -------------------------------------------------------------------------------------------------
def test_activations_and_cache_in_types_of_their_own(plain: Run) -> None:
    draft = drafted(plain, "dtype=int4", "act=fp8", "kv=fp8")
    assert {op.dtype for op in ops_of(draft, "moe_down")} == {"int4/fp8"}
    assert {op.dtype for op in ops_of(draft, "attention")} == {"fp8/bf16"}
    assert {op.dtype for op in ops_of(draft, "lm_head")} == {"bf16"}
    assert draft.kv_dtype == "fp8" and drafted(plain).kv_dtype == "bf16"
    assert {op.dtype for op in ops_of(drafted(plain, "kv=bf16"), "attention")} == {"bf16"}


def test_a_narrow_cache_halves_its_memory() -> None:
    one, two = (
        simulate(OLMOE, LOAD, H100, Scenario.of(f"kv={d}")).summary["memory"] for d in ("bf16", "fp8")
    )
    assert two["kv_bytes"] == pytest.approx(one["kv_bytes"] / 2)
    assert two["largest_batch"] == pytest.approx(2 * one["largest_batch"], abs=2)


# -- parts of the depth --------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(6, 60))
def test_parts_of_the_depth_are_equal_and_in_order(values: list[int], layers: int) -> None:
    spread = Segments(tuple(values)).spread(layers, "n_a")
    assert len(spread) == layers and spread[0] == values[0] and spread[-1] == values[-1]
    sizes = [len(part) for part in np.array_split(np.arange(layers), len(values))]
    assert max(sizes) - min(sizes) <= 1
    assert sum(spread) == pytest.approx(sum(v * layers / len(values) for v in values), abs=8 * len(values))


def test_n_a_by_parts_of_the_depth(plain: Run) -> None:
    by_parts, by_layer = drafted(plain, "n_a=8/6/4"), drafted(plain, "n_a=8x6:6x5:4x5")
    assert by_parts.ops == by_layer.ops
    with pytest.raises(ScenarioError, match="17 parts of a depth of 16"):
        drafted(plain, "n_a=" + "/".join(["8"] * 17))


# -- experts one by one --------------------------------------------------------------------------------------------
def test_unfused_experts_do_the_same_work_in_more_kernels(plain: Run) -> None:
    fused, alone = drafted(plain), drafted(plain, "experts=unfused")
    distinct = work_of.distinct_experts(next(op for op in ops_of(fused, "moe_down") if op["tokens"] == 16))[0]
    decode = [op for op in ops_of(alone, "expert_down") if op["m"] == round(16 * 8 / round(distinct))]
    assert len(decode) >= 16 * round(distinct)  # layers x experts, in every decode step
    assert not ops_of(alone, "moe_gate_up") and not ops_of(alone, "moe_act")

    def weights(draft: Draft, *kinds: str) -> float:
        return sum(work_of.work(op).weight_bytes for kind in kinds for op in ops_of(draft, kind))

    pair = weights(fused, "moe_gate_up", "moe_down"), weights(alone, "expert_up", "expert_down")
    assert pair[1] == pytest.approx(pair[0], rel=0.02)
    a, b = (
        simulate(OLMOE, LOAD, H100, Scenario.of(f"experts={how}")).summary["metrics"]
        for how in ("fused", "unfused")
    )
    assert b["tpot"]["value"] > 1.2 * a["tpot"]["value"]


def test_what_cannot_be_unfused() -> None:
    dense = synthesize(load_model("qwen3-0.6b"), LOAD)
    with pytest.raises(ScenarioError, match="is a dense model, it has no experts"):
        drafted(dense, "experts=unfused")
    assert drafted(dense, "experts=fused").ops == drafted(dense).ops


def test_distinct_experts_of_every_moe_layer_are_settled(plain: Run) -> None:
    assert {op["experts"] for op in ops_of(drafted(plain), "moe_down")} == {EXPERTS}
