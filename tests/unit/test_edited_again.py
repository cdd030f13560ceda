"""Predictions that are edited again: back to what was recorded, or refused with the reason."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import ScenarioError
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.grid.recorded import replays_of
from moetrace.run import Run
from moetrace.synthesize import Workload
from tests.drawn_replays import check_replays
from tests.unit.replay_runs import H100, decode_run


@pytest.fixture(scope="module")
def run() -> Run:
    return decode_run()


def predicted(run: Run, *sets: str) -> Run:
    return replay(run, H100, Scenario.of(*sets)).run


@pytest.mark.parametrize(
    ("before", "then", "words"),
    [
        ("prune_inter=50", "prune_inter=0", "prediction with prune_inter=50, .* with n_e, or replay"),
        ("n_e=32", "prune_inter=50", "prediction with n_e=32"),
        ("prune_intra=50", "prune_intra=0", "prediction with prune_intra=50, .* with ffn, or replay"),
        ("ffn=512", "prune_intra=50", "prediction with ffn=512"),
        ("n_a=4", "n_a=native", "prediction with n_a=4 and no longer holds what was recorded"),
        ("routing=uniform", "routing=recorded", "prediction with routing=uniform and no longer"),
        ("experts=unfused", "experts=fused", "prediction with experts=unfused and no longer"),
        ("experts=unfused", "dtype=fp8", "prediction with experts=unfused, whose experts stay as they are"),
        ("experts=unfused", "batch=32", "prediction with experts=unfused, whose experts stay as they are"),
        ("experts=unfused", "n_a=4", "prediction with experts=unfused, whose experts stay as they are"),
    ],
)
def test_what_a_prediction_no_longer_holds_is_refused(before: str, then: str, words: str, run: Run) -> None:
    again = predicted(run, before)
    with pytest.raises(ScenarioError, match=f"^{then}: the run is a {words}"):
        replay(again, H100, Scenario.of(then))
    assert check_replays(replays_of(again, "a prediction", [H100], (then,))) == 1


@pytest.mark.parametrize(
    ("before", "then"),
    [
        ("ffn=512", "ffn=1024"),
        ("dtype=fp8", "dtype=bf16"),
        ("kv=fp8", "kv=bf16"),
        ("graph=off", "graph=on"),
        ("context=999", "context=128"),
    ],
)
def test_a_value_that_says_all_of_itself_goes_back(before: str, then: str) -> None:
    load = Workload(4, 128, 2)
    made = replay(simulate("olmoe-1b-7b", load, H100).run, H100, Scenario.of("context=128")).run
    back = replay(predicted(made, before), H100, Scenario.of(then))
    assert back.step_s == pytest.approx(replay(made, H100).step_s, rel=1e-6)


def test_what_is_pruned_is_named_as_it_was_asked_also_of_a_prediction_of_ranks() -> None:
    node = Scenario.of("tp=4")
    made = simulate("olmoe-1b-7b", Workload(4, 128, 2), "h100-sxm-x4", node).run
    for asked in ("prune_inter=50", "prune_intra=50", "n_e=32", "ffn=512"):
        with pytest.raises(
            ScenarioError, match=f"^{asked}: the run is a prediction whose ranks share the model as tp=4"
        ):
            replay(made, "h100-sxm-x4", Scenario.of(asked))


def test_the_models_depth_is_known_after_layers_were_left_out() -> None:
    """The first layer's norm has no residual, which its copies have not either: a third of a per cent."""
    made = simulate("olmoe-1b-7b", Workload(4, 128, 2), H100).run
    back = replay(predicted(made, "layers=1"), H100, Scenario.of("layers=native"))
    assert back.run.meta.model is not None and back.run.meta.model.layers == 16
    assert back.step_s == pytest.approx(replay(made, H100).step_s, rel=5e-3)


def test_a_per_cent_follows_other_edits_and_gives_way_to_a_number(run: Run) -> None:
    once = predicted(predicted(run, "kv=fp8"), "prune_inter=50")
    assert once.meta.facts["scenario"] == {"kv": "fp8", "prune_inter": "50"}
    again = predicted(once, "n_e=16")
    assert again.meta.facts["scenario"] == {"kv": "fp8", "n_e": "16"}
    assert again.meta.model is not None and again.meta.model.experts == 16


def test_activations_stated_before_stay_when_the_weights_follow(run: Run) -> None:
    both = replay(run, "h200-sxm", Scenario.of("dtype=fp8", "act=bf16"))
    for first in (("act=bf16",), ("dtype=int8", "act=bf16")):
        then = replay(replay(run, "h200-sxm", Scenario.of(*first)).run, "h200-sxm", Scenario.of("dtype=fp8"))
        assert then.run.distinct_ops[1] == both.run.distinct_ops[1]


def test_a_fusion_that_nobody_asked_for_is_not_undone_in_silence(run: Run) -> None:
    own = run.with_meta(device_class="cpu", hardware=None)
    fused = predicted(own)
    with pytest.raises(ScenarioError, match="prediction with fusion=runs and no longer"):
        replay(fused, H100, Scenario.of("fusion=recorded"))
    assert replay(fused, H100, Scenario.of("fusion=runs")).run.num_rows == fused.num_rows
    kept = predicted(own, "fusion=recorded")
    with pytest.raises(ScenarioError, match="fusion=runs: the run is a prediction, which keeps its kernels"):
        replay(kept, H100, Scenario.of("fusion=runs"))


@pytest.mark.parametrize(
    ("before", "then"), [((), "fp8"), (("dtype=fp8",), "bf16"), (("dtype=fp8",), "fp8_block")]
)
def test_tokens_are_dispatched_in_the_type_that_experts_get_later(before: tuple[str, ...], then: str) -> None:
    load, node, groups = Workload(16, 512, 3), "h200-sxm-x4", ("dp=4", "ep=4")
    both = simulate("olmoe-1b-7b", load, node, Scenario.of(*groups, f"dtype={then}")).prediction
    made = simulate("olmoe-1b-7b", load, node, Scenario.of(*groups, *before)).run
    again = replay(made, node, Scenario.of(f"dtype={then}"))
    assert again.step_s[:, 0] == pytest.approx(both.step_s[:, 0], rel=1e-3)


EDITS = (
    "layers=4", "n_e=32", "prune_inter=50", "ffn=512", "prune_intra=50", "dtype=fp8", "act=bf16", "kv=fp8", "n_a=4",
    "batch=32", "context=900", "routing=skewed", "engine=vllm", "experts=unfused", "graph=off",
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.permutations(EDITS).map(lambda some: some[:3]))
def test_edits_one_after_the_other_are_what_they_are_at_once_or_refused(edits: list[str]) -> None:
    """But a count of experts may follow their per cent, which at once would say two things."""
    run = simulated()
    try:
        both = replay(run, H100, Scenario.of(*edits))
        for edit in edits:
            run = predicted(run, edit)
    except ScenarioError:
        return
    assert replay(run, H100).step_s[:, 0] == pytest.approx(both.step_s[:, 0], rel=0.01)


@cache
def simulated() -> Run:
    return simulate("olmoe-1b-7b", Workload(16, 512, 3), H100).run
