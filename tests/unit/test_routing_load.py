"""The busiest rank's load under a stated routing: definitions, limits, simulation against formula, the cache on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.errors import ScenarioError
from moetrace.routing import (
    balanced_counts,
    ep_max_distinct,
    padded_rows,
    power_law_counts,
    rank_load,
    read_loads,
    save_loads,
    uniform_counts,
    uniform_distinct,
)
from moetrace.routing import load as room

sizes = st.tuples(st.sampled_from([8, 16, 60, 128]), st.integers(1, 8), st.integers(1, 96))


@pytest.mark.parametrize(
    ("routing", "distinct"), [("balanced", 128), ("power_law:1.01", 65), ("power_law:1.2", 56)]
)
def test_distinct_experts_as_published_for_16_tokens_of_8_out_of_128(routing: str, distinct: float) -> None:
    found = rank_load([routing], 128, 8, 16)
    assert found.distinct[0] == pytest.approx(distinct, abs=3) and found.rows[0] == 128


@pytest.mark.parametrize("experts", [8, 16, 60, 64])
def test_balanced_tokens_choose_no_expert_twice(experts: int) -> None:
    """A stride of ceil(E / k) round the experts comes back to its first: 5 of 8 were 4."""
    for topk in range(1, experts + 1):
        assert np.count_nonzero(balanced_counts(experts, topk, 1)) == topk
        for tokens in (2, 3, experts, 3 * experts + 1):
            counts = balanced_counts(experts, topk, tokens)
            assert counts.sum() == tokens * topk and counts.max() <= tokens


@settings(max_examples=40)
@given(sizes, st.sampled_from(["uniform", "balanced", "power_law:1.01", "power_law:1.2", "power_law:1"]))
def test_loads_stay_within_what_can_be(size: tuple[int, int, int], routing: str) -> None:
    experts, topk, tokens = size
    for ep in (1, 4):
        found = rank_load([routing], experts, topk, tokens, ep)
        least = max(1, -(-topk // ep)) if ep == 1 else 1
        assert least - 1e-9 <= found.distinct[0] <= min(experts / ep, tokens * topk) + 1e-9
        assert (
            tokens * topk / ep * (1 - 1e-9) <= found.rows[0] * 1.05
        )  # the busiest has no less than the mean
        assert found.rows[0] <= tokens * topk * 1.05


def test_what_rounding_leaves_is_dealt_one_by_one() -> None:
    """In rounds, and from the least loaded on: the counts are the same as with a round at a time."""
    for seed in range(30):
        counts = power_law_counts(16, 3, 40, 3.0, np.random.default_rng(seed))
        assert counts.sum() == 120 and counts.min() >= 0 and counts.max() <= 40
        weight = (1.0 + np.random.default_rng(seed).random(16) * (32.0**-2 - 1.0)) ** -0.5
        slow = np.minimum(np.rint(weight / weight.sum() * 120), 40).astype(np.int64)
        while rest := 120 - int(slow.sum()):
            open_to = slow < 40 if rest > 0 else slow > 0
            first = np.argsort(np.where(open_to, slow if rest > 0 else -slow, 121), kind="stable")
            slow[first[: min(abs(rest), int(open_to.sum()))]] += np.sign(rest)
        assert counts.tolist() == slow.tolist()


@pytest.mark.parametrize("routing", ["balanced", "power_law:1.2", "power_law:3", "uniform"])
def test_a_thousand_million_tokens_are_counted_without_one_of_them_being_drawn(routing: str) -> None:
    """288 million tokens of a prompt, at a batch of a million, took 23 GB."""
    found = rank_load([routing], 64, 6, 10**9, 4)
    assert found.distinct[0] <= 16 + 1e-9 and found.rows[0] >= 1.5 * 10**9 * (1 - 1e-9)


def test_left_over_choices_are_spread_over_ranks_or_all_on_the_first() -> None:
    """One token's eight choices on eight ranks: one each, or all on one, as two families of tables have them."""
    assert rank_load(["power_law:1.01"], 256, 8, 1, 8).distinct[0] == 1
    assert rank_load(["power_law:1.01"], 256, 8, 1, 8, ties="first").distinct[0] == 8


@given(sizes)
def test_balanced_routing_touches_as_many_as_it_can(size: tuple[int, int, int]) -> None:
    experts, topk, tokens = size
    counts = balanced_counts(experts, topk, tokens)
    assert counts.sum() == tokens * topk
    if experts % topk == 0:
        assert (counts > 0).sum() == min(experts, tokens * topk)


def test_simulated_uniform_routing_agrees_with_the_formulas() -> None:
    counts = uniform_counts(64, 6, 20, draws=400)
    assert (counts > 0).sum(1).mean() == pytest.approx(uniform_distinct(64, 6, 20), rel=0.01)
    ranks = counts.reshape(400, 8, 8)
    assert (ranks > 0).sum(2).max(1).mean() == pytest.approx(ep_max_distinct(64, 6, 20, 8), rel=0.02)
    assert uniform_counts(64, 6, 10_000, draws=40).sum(1).mean() == pytest.approx(60_000, rel=0.01)


@pytest.mark.parametrize("tile", [16, 64, 128])
@pytest.mark.parametrize("tokens", [1, 16, 128, 512])
@pytest.mark.parametrize("alpha", [1.01, 1.2])
def test_padded_rows_are_near_those_of_the_simulation(tile: int, tokens: int, alpha: float) -> None:
    random = np.random.default_rng(0)
    counts = np.array([power_law_counts(256, 8, tokens, alpha, random) for _ in range(50)], dtype=float)
    simulated = (np.ceil(counts / tile) * tile).sum(1).mean()
    distinct, rows = (counts > 0).sum(1).mean(), counts.sum(1).mean()
    assert padded_rows(np.array([rows]), np.array([distinct]), tile)[0] == pytest.approx(simulated, rel=0.12)


@given(st.floats(1, 1e4), st.floats(1, 512), st.sampled_from([16.0, 64.0, 128.0]))
def test_padding_lies_between_the_rows_and_one_tile_more_for_each_expert(
    r: float, d: float, tile: float
) -> None:
    rows = max(r, d)
    padded = padded_rows(np.array([rows]), np.array([d]), tile)[0]
    assert rows <= padded <= (rows + d * tile) * (1 + 1e-9) and padded >= d * tile * (1 - 1e-9)
    assert padded_rows(np.array([0.0]), np.array([0.0]), tile)[0] == 0


def test_tables_of_rows_are_one_call_and_kept() -> None:
    routing = ["balanced", "power_law_1.2", "power_law:1.2", "uniform"]
    found = rank_load(routing, [64, 64, 64, 64], 4, [3, 3, 3, 3])
    assert found.distinct[1] == found.distinct[2] and found.distinct[0] == 12
    assert found.distinct[3] == pytest.approx(uniform_distinct(64, 4, 3)) and found.distinct_spread[3] > 0


def test_loads_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rank_load(["power_law:1.3"], 32, 4, 7, 2)
    save_loads(tmp_path / "loads.parquet")
    monkeypatch.setattr(room, "_known", {})
    assert read_loads(tmp_path / "loads.parquet") >= 1
    monkeypatch.setattr(room, "_worked_out", None)  # must not be needed
    after = rank_load(["power_law:1.3"], 32, 4, 7, 2)
    assert (after.distinct, after.rows) == (before.distinct, before.rows)
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ScenarioError, match=r"bad\.parquet"):
        read_loads(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("routing", "experts", "topk", "ep", "said"),
    [
        ("zipf", 8, 2, 1, "routing 'zipf': expected uniform, balanced or power_law:ALPHA"),
        ("power_law:0", 8, 2, 1, "ALPHA above 0"),
        ("balanced", 8, 9, 1, "9 of 8 experts"),
        ("balanced", 8, 2, 3, "ep is 3: expected a divisor of 8"),
    ],
)
def test_what_cannot_be_is_refused(routing: str, experts: int, topk: int, ep: int, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        rank_load([routing], experts, topk, 4, ep)
