"""Routing that a scenario states: distinct experts and rows of the busiest rank, and what redundant experts even out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import ScenarioError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import Scenario, simulate
from moetrace.replay.draft import EXPERTS
from moetrace.replay.editing import edited
from moetrace.replay.stated_routing import SIGMA, load
from moetrace.routing import popularity_distinct, uniform_distinct
from moetrace.routing.load import rank_load
from moetrace.routing.skewed import lognormal_popularity
from moetrace.synthesize import Workload, synthesize
from tests.unit.test_knobs import ops_of

QWEN = load_model("qwen3-30b-a3b")
NODE = load_hardware("h100-sxm-x8")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([8, 16, 60, 64, 128, 256]), st.integers(1, 8), st.floats(0, 3), st.integers(1, 300))
def test_skew_only_ever_lowers_the_distinct_experts(
    experts: int, topk: int, sigma: float, tokens: int
) -> None:
    q = lognormal_popularity(experts, topk, sigma)
    assert q.sum() == pytest.approx(topk) and q.min() > 0 and q.max() <= 1 + 1e-9
    assert popularity_distinct(q, tokens) <= uniform_distinct(experts, topk, tokens) + 1e-6


def test_no_skew_is_uniform_and_neighbours_differ() -> None:
    assert lognormal_popularity(64, 8, 0.0) == pytest.approx(np.full(64, 1 / 8))
    blocks = lognormal_popularity(128, 8, SIGMA).reshape(8, -1).sum(axis=1)
    assert 1.1 < blocks.max() / blocks.mean() < 2  # as of experts that are placed at random


def test_the_skew_is_what_was_counted_on_text() -> None:
    """Qwen3-30B-A3B, 16 tokens: 43.0 on AIME24 and 53.5 on MATH500 (arXiv 2511.02237, table 4)."""
    assert 43.0 < load("skewed", 128, 8, 16, 1)[0] < 53.5


def test_each_routing_says_what_the_busiest_rank_reads() -> None:
    assert load("uniform", 128, 8, 16, 1)[0] == pytest.approx(uniform_distinct(128, 8, 16))
    assert load("balanced", 128, 8, 16, 1)[0] == 128
    table = rank_load(["power_law:1.2"], 128, 8, 64, 8)
    assert load("power_law:1.2", 128, 8, 64, 8) == (table.distinct[0], table.rows[0])
    skewed, rows = load("skewed", 128, 8, 64, 8)
    assert skewed <= 16 and rows is not None and rows > 64 * 8 / 8


def test_a_stated_routing_stands_in_the_ops() -> None:
    run = synthesize(QWEN, Workload(16, 64, 8))
    draft = edited(run, load_hardware("h100-sxm"), Scenario.of("routing=skewed:1.6"))
    decode = next(op for op in ops_of(draft, "moe_down") if op["tokens"] == 16)
    assert decode["distinct_est"] == pytest.approx(load("skewed", 128, 8, 16, 1)[0], abs=1e-3)
    uniform = edited(run, load_hardware("h100-sxm"), Scenario.of("routing=uniform"))
    assert not any(op.has("distinct_est") for op in ops_of(uniform, "moe_down"))


def test_redundant_experts_even_out_a_skewed_load() -> None:
    """In a prefill, which multiplies many rows; in a small decode step copies are more weights to read."""
    work = Workload(64, 2048, 16)

    def ttft(*sets: str) -> float:
        done = simulate(QWEN, work, NODE, Scenario.of("dp=8", "ep=8", "routing=skewed", *sets)).summary
        return float(done["metrics"]["ttft"]["value"])

    assert ttft("eplb=32") < ttft()
    plain, more = (
        simulate(QWEN, work, NODE, Scenario.of("dp=8", "ep=8", "routing=skewed", *sets)).summary["memory"][
            "rank"
        ]["experts"]
        for sets in ((), ("eplb=32",))
    )
    assert more == pytest.approx(plain * 160 / 128)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("eplb=8",), "there are none: add ep"),
        (("routing=recorded",), "no routing was recorded"),
    ],
)
def test_what_cannot_be_stated(sets: tuple[str, ...], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        simulate(QWEN, Workload(4, 64, 8), "h100-sxm", Scenario.of(*sets))


def test_copies_let_ranks_share_experts_that_they_do_not_divide() -> None:
    spread = ("dp=72", "ep=72", "routing=uniform")
    run = simulate(
        load_model("deepseek-v3"), Workload(72, 64, 2), "h100-sxm-x72", Scenario.of(*spread, "eplb=32")
    ).run
    held = {op["local_experts"] for op in run.distinct_ops[1] if op.kind in EXPERTS}
    assert held == {(256 + 32) / 72}
    with pytest.raises(ScenarioError, match="256 experts do not divide by 72; with eplb=32"):
        simulate(load_model("deepseek-v3"), Workload(72, 64, 2), "h100-sxm-x72", Scenario.of(*spread))


def test_redundant_experts_want_ranks_and_a_routing() -> None:
    for sets, words in (
        (("ep=8", "eplb=7", "routing=uniform"), "do not divide by 8; with eplb=8"),
        (("ep=8", "eplb=8"), "say what it evens out"),
    ):
        with pytest.raises(ScenarioError, match=words):
            simulate(QWEN, Workload(4, 64, 8), NODE, Scenario.of(*sets))
    for text in (
        "routing=zipf",
        "routing=power_law",
        "routing=power_law:x",
        "routing=uniform:2",
        "routing=skewed:-1",
    ):
        with pytest.raises(ScenarioError):
            Scenario.of(text)
    with pytest.raises(ScenarioError, match="has no experts"):
        simulate(load_model("qwen3-0.6b"), Workload(4, 64, 8), "h100-sxm", Scenario.of("routing=uniform"))
