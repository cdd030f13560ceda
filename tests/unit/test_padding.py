"""Decode steps run in graphs that an engine captured for some sizes: which ones, and which ops have the padded rows."""

from __future__ import annotations

import pytest

from moetrace import ops as work_of
from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.replay import replay, simulate
from moetrace.replay.draft import Draft
from moetrace.replay.editing import edited
from moetrace.replay.padding import graph_size
from moetrace.replay.scenario import Scenario
from moetrace.replay.speculate import places
from moetrace.synthesize import Workload, synthesize
from tests.unit.replay_runs import H100, decode_run

QWEN = load_model("qwen3-30b-a3b")
LOAD = Workload(17, 100, 8)


def decoding(*sets: str, load: Workload = LOAD, hw: str = "h100-sxm") -> Draft:
    return edited(synthesize(QWEN, load), load_hardware(hw), Scenario.of(*sets))


def one(draft: Draft, kind: str, phase: str = "decode") -> Op:
    """The first op of a kind in a step of a phase."""
    found = zip(draft.ops, draft.at, strict=True)
    return next(op for op, at in found if op.kind == kind and draft.steps[at.step].phase == phase)


def tpot(*sets: str, batch: int = 17) -> float:
    load = Workload(batch, 100, 8)
    return float(simulate(QWEN, load, H100, Scenario.of(*sets)).summary["metrics"]["tpot"]["value"])


# -- sizes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "sizes"),
    [
        ("vllm", {1: 1, 2: 2, 3: 4, 5: 8, 9: 16, 17: 24, 248: 248, 249: 256, 257: 272, 512: 512, 513: 513}),
        ("any", {3: 4, 9: 16, 17: 24, 513: 513}),
        ("sglang", {3: 4, 5: 8, 9: 12, 13: 16, 17: 24, 257: 272, 497: 512, 513: 513}),
        ("trtllm", {3: 4, 9: 16, 121: 128, 129: 192, 193: 256, 1985: 2048, 2049: 2049}),
    ],
)
def test_a_batch_runs_in_the_next_size_that_is_captured(engine: str, sizes: dict[int, int]) -> None:
    assert {n: graph_size(engine, n, 1) for n in sizes} == sizes


def test_drafted_tokens_have_sizes_of_their_own() -> None:
    """vLLM's sizes are tokens, rounded up to whole sequences; SGLang captures more of the small ones."""
    assert [graph_size("vllm", n, 4) for n in (1, 2, 3, 5, 9, 127, 128, 129)] == [
        1,
        2,
        4,
        6,
        10,
        128,
        128,
        129,
    ]
    assert [graph_size("vllm", n, 5) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 5]
    assert [graph_size("sglang", n, 4) for n in (3, 9, 33, 65)] == [3, 10, 40, 72]
    assert [graph_size("trtllm", n, 4) for n in (3, 9, 33)] == [4, 16, 40]


def test_sglang_drops_sizes_that_do_not_divide() -> None:
    assert [graph_size("sglang", n, 1, 8) for n in (1, 9, 17)] == [8, 16, 24]
    assert (
        one(decoding("dp=2", "tp=2", "engine=sglang", hw="h100-sxm-x4", load=Workload(2, 100, 8)), "o_proj")[
            "m"
        ]
        == 2
    )
    assert (
        one(decoding("dp=2", "tp=4", "engine=sglang", hw="h100-sxm-x8", load=Workload(2, 100, 8)), "o_proj")[
            "m"
        ]
        == 4
    )


# -- ops -------------------------------------------------------------------------------------------------------------
def test_padded_rows_go_through_gemms_and_norms_but_not_to_attention_experts_or_logits() -> None:
    draft = decoding()
    assert {one(draft, kind)["m"] for kind in ("qkv_proj", "o_proj", "router")} == {24}
    assert {
        one(draft, kind)["tokens"] for kind in ("norm", "embedding", "topk", "moe_align", "moe_combine")
    } == {24}
    attention = one(draft, "attention")
    assert attention["batch"] == 17 and attention["kv"] == 17 * 101
    assert {one(draft, kind)["tokens"] for kind in ("moe_gate_up", "moe_act", "moe_down", "sampling")} == {17}
    assert one(draft, "lm_head")["m"] == 17
    assert one(draft, "kv_write")["elements"] == one(decoding("pad=none"), "kv_write")["elements"]
    assert one(draft, "qkv_proj", "prefill")["m"] == 1700
    assert draft.padded and any("17 sequences run as 24" in note for note in draft.notes)


def test_routed_rows_choose_experts_as_further_tokens_would() -> None:
    found = [
        work_of.distinct_experts(one(decoding(*sets), "moe_gate_up"))[0] for sets in ((), ("pad=routed",))
    ]
    more = work_of.distinct_experts(one(decoding(load=Workload(24, 100, 8)), "moe_gate_up"))[0]
    assert found[1] == more > 1.15 * found[0]
    assert tpot("pad=none") <= tpot() < tpot("pad=routed") < tpot(batch=24)


def test_rows_alike_choose_as_one_sequence_more() -> None:
    """In TensorRT-LLM, and in SGLang but under expert parallelism."""
    for engine, rows in (("trtllm", 18), ("sglang", 18), ("vllm", 17)):
        draft = decoding(f"engine={engine}")
        assert one(draft, "moe_gate_up")["tokens"] == rows and one(draft, "topk")["tokens"] == 24, engine
        assert any("as one sequence more does" in note for note in draft.notes) is (rows == 18)
    node, load = (
        "h100-sxm-x4",
        Workload(66, 100, 8),
    )  # 17, 17, 16 and 16: each of the four groups has padded rows
    assert one(decoding("dp=4", "engine=trtllm", hw=node, load=load), "moe_gate_up")["tokens"] == 70
    assert one(decoding("dp=4", "ep=4", "engine=sglang", hw=node, load=load), "moe_gate_up")["tokens"] == 66
    uneven = Workload(63, 100, 8)  # 16, 16, 16 and 15: one has
    assert one(decoding("dp=4", "engine=trtllm", hw=node, load=uneven), "moe_gate_up")["tokens"] == 64
    sent = one(decoding("dp=4", "ep=4", "engine=trtllm", hw=node, load=load), "moe_dispatch")
    assert sent["tokens"] == 24
    verified = Workload(17, 100, 8, verify=3)
    assert one(decoding("engine=trtllm", load=verified), "moe_gate_up")["tokens"] == 18 * 3


def test_a_captured_size_changes_nothing() -> None:
    load = Workload(16, 100, 8)
    draft = decoding(load=load)
    assert draft.ops == decoding("pad=none", load=load).ops and not draft.padded and not draft.notes


def test_groups_are_padded_to_the_size_of_the_one_with_most() -> None:
    """What is gathered has all rows, what is dispatched those that chose experts."""
    load, node = Workload(66, 100, 8), "h100-sxm-x4"  # 17, 17, 16 and 16
    draft, plain = (decoding("dp=4", *more, hw=node, load=load) for more in ((), ("pad=none",)))
    assert one(draft, "o_proj")["m"] == 24 and one(draft, "moe_gate_up")["tokens"] == 66
    assert one(draft, "all_gather")["bytes"] * 17 == one(plain, "all_gather")["bytes"] * 24
    assert one(draft, "reduce_scatter")["bytes"] * 66 == one(plain, "reduce_scatter")["bytes"] * 96
    draft, plain = (decoding("dp=4", "ep=4", *more, hw=node, load=load) for more in ((), ("pad=none",)))
    assert one(draft, "moe_dispatch") == one(plain, "moe_dispatch")
    assert one(decoding("dp=4", "ep=4", "pad=routed", hw=node, load=load), "moe_dispatch")["tokens"] == 24
    uneven = Workload(63, 100, 8)  # 16, 16, 16 and 15
    assert one(decoding("dp=4", hw=node, load=uneven), "reduce_scatter") == one(
        decoding("dp=4", hw=node, load=Workload(64, 100, 8)), "reduce_scatter"
    )


def test_parts_of_a_pipeline_are_padded_and_halves_of_what_is_padded() -> None:
    node = "h100-sxm-x4"
    assert one(decoding("pp=2", "tp=2", hw=node), "o_proj")["m"] == 16  # 9 and 8
    assert one(decoding("tp=4", "overlap=two_batch", hw=node), "o_proj")["m"] == 12  # of 24
    lone = Workload(1, 100, 8)
    assert one(decoding("tp=4", "overlap=two_batch", hw=node, load=lone), "o_proj")["m"] == 1


def test_the_logits_that_ranks_gather_are_of_real_rows() -> None:
    draft, plain = (decoding("tp=4", *more, hw="h100-sxm-x4") for more in ((), ("pad=none",)))
    assert one(draft, "all_gather") == one(plain, "all_gather")
    assert one(draft, "all_reduce")["bytes"] * 17 == one(plain, "all_reduce")["bytes"] * 24


# -- where ------------------------------------------------------------------------------------------------------------
def test_only_graphs_of_gpus_have_sizes() -> None:
    assert not decoding("graph=off").padded
    for sets, hw in (
        (("pad=engine",), "cs3"),
        (("pad=routed",), "cpu"),
        (("graph=off", "pad=engine"), "h100-sxm"),
    ):
        with pytest.raises(ScenarioError, match=r"sizes of graphs|of no graph's size"):
            decoding(*sets, hw=hw)
    assert not decoding("pad=none", hw="cs3").padded


def test_a_recording_has_the_rows_that_ran() -> None:
    run = decode_run()
    draft = edited(run, H100, Scenario.of("batch=17"))
    assert not draft.padded
    asked = edited(run, H100, Scenario.of("batch=17", "pad=engine"))
    assert asked.padded and {op["m"] for op in asked.ops if op.kind == "o_proj"} == {24}


@pytest.mark.parametrize("edit", ["batch=34", "pad=engine", "graph=off"])
def test_a_padded_prediction_is_not_edited_where_rows_would_follow(edit: str) -> None:
    made = simulate(QWEN, LOAD, H100)
    with pytest.raises(ScenarioError, match="padded to sizes of graphs"):
        replay(made.run, H100, Scenario.of(edit))
    assert replay(made.run, H100).step_s.tolist() == made.prediction.step_s.tolist()
    captured = simulate(QWEN, Workload(16, 100, 8), H100)
    assert replay(captured.run, H100, Scenario.of("batch=32")).run.meta.steps[1].batch == 32


@pytest.mark.parametrize(
    ("made", "then"), [("vllm", "sglang"), ("sglang", "vllm"), ("any", "trtllm"), ("trtllm", "any")]
)
def test_a_padded_prediction_keeps_the_engine_whose_graphs_it_has(made: str, then: str) -> None:
    """Ten sequences run as 12 in SGLang, as 16 elsewhere, of which TensorRT-LLM's padded rows choose experts."""
    run = simulate(QWEN, Workload(10, 100, 8), H100, Scenario.of(f"engine={made}")).run
    with pytest.raises(ScenarioError, match=f"engine={then}: .* padded to sizes of graphs"):
        replay(run, H100, Scenario.of(f"engine={then}"))
    unpadded = simulate(QWEN, Workload(10, 100, 8), H100, Scenario.of(f"engine={made}", "pad=none")).run
    found = replay(unpadded, H100, Scenario.of(f"engine={then}"))
    direct = simulate(QWEN, Workload(10, 100, 8), H100, Scenario.of(f"engine={then}", "pad=none"))
    assert found.step_s.tolist() == direct.prediction.step_s.tolist()


@pytest.mark.parametrize(
    ("made", "then"), [("any", "vllm"), ("vllm@0.19.0", "any"), ("sglang", "sglang@0.5")]
)
def test_a_padded_prediction_takes_an_engine_with_the_same_graphs(made: str, then: str) -> None:
    run = simulate(QWEN, Workload(10, 100, 8), H100, Scenario.of(f"engine={made}")).run
    direct = simulate(QWEN, Workload(10, 100, 8), H100, Scenario.of(f"engine={then}"))
    assert (
        replay(run, H100, Scenario.of(f"engine={then}")).step_s.tolist() == direct.prediction.step_s.tolist()
    )


def test_padded_rows_of_sglang_that_choose_experts_are_not_shared_out_anew() -> None:
    """With ep they choose none, and what goes in halves has even sizes; vLLM's choose none in any case."""
    made = {
        engine: simulate(QWEN, Workload(10, 100, 8), H100, Scenario.of(f"engine={engine}")).run
        for engine in ("sglang", "vllm")
    }
    pair = load_hardware("h100-sxm-x2")
    for sets in (("tp=2", "ep=2"), ("tp=2", "overlap=two_batch")):
        with pytest.raises(ScenarioError, match="padded to sizes of graphs"):
            replay(made["sglang"], pair, Scenario.of(*sets))
    for engine, sets in (("sglang", ("tp=2",)), ("vllm", ("tp=2", "ep=2"))):
        direct = simulate(QWEN, Workload(10, 100, 8), pair, Scenario.of(f"engine={engine}", *sets))
        assert (
            replay(made[engine], pair, Scenario.of(*sets)).step_s.tolist()
            == direct.prediction.step_s.tolist()
        )


def test_a_drafting_model_runs_in_graphs_where_the_model_does() -> None:
    for said in ("graph=off", "graph=on", "pad=none"):
        assert [str(how.label) for _, how in places(H100, Scenario.of(said))] == [said]
    assert [str(how.label) for _, how in places(H100, Scenario())] == ["as recorded"]
    assert [how.settings for _, how in places(load_hardware("cs3"), Scenario())] == [()]


def test_a_drafting_model_runs_under_the_engine_of_the_one_it_drafts_for() -> None:
    assert [str(how.label) for _, how in places(H100, Scenario.of("engine=vllm"))] == ["engine=vllm"]
    assert [
        how.get("engine")
        for _, how in places(load_hardware("h100-sxm-x4"), Scenario.of("tp=4", "engine=vllm"))
    ] == ["vllm"] * 2
