"""Expert ids made to follow a distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.errors import ScenarioError
from moetrace.routing import (
    dealt_ids,
    drawn_ids,
    ep_max_distinct,
    popularity_distinct,
    power_law_counts,
    uniform_distinct,
)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def twice(ids: np.ndarray) -> bool:
    return bool((np.diff(np.sort(ids, axis=1), axis=1) == 0).any())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_draw_takes_k_distinct_experts_and_one_of_share_one_always(
    experts: int, tokens: int, seed: int
) -> None:
    q = random(seed).dirichlet(np.ones(experts))
    k = max(1, experts // 3)
    q = np.minimum(q * k, 1.0)
    while (rest := k - q.sum()) > 1e-12:  # what was cut off goes to those with room
        q += np.where(q < 1, (1 - q), 0) * rest / (1 - q).sum()
    q = np.minimum(q, 1.0)
    ids = drawn_ids(q, tokens, random(seed))
    assert ids.shape == (tokens, k)
    assert not twice(ids)
    assert set(np.flatnonzero(q >= 1)) <= set(ids[0])
    assert not set(ids.ravel()) & set(np.flatnonzero(q == 0))


def test_draws_follow_the_popularity_and_its_distinct_experts() -> None:
    q = np.array([0.9, 0.5, 0.25, 0.2, 0.1, 0.05, 0.0, 0.0])
    ids = drawn_ids(q, 40_000, random())
    share = np.bincount(ids.ravel(), minlength=8) / 40_000
    assert np.abs(share - q).max() < 0.01
    distinct = [len(np.unique(block)) for block in ids.reshape(10_000, 8)]
    assert np.mean(distinct) == pytest.approx(popularity_distinct(q, 4), rel=0.01)


def test_a_uniform_draw_touches_as_many_experts_as_the_formulas_say() -> None:
    steps = [drawn_ids(np.full(64, 8 / 64), 16, random(seed)) for seed in range(400)]
    distinct = [len(np.unique(ids)) for ids in steps]
    assert np.mean(distinct) == pytest.approx(uniform_distinct(64, 8, 16), rel=0.01)
    worst = [np.bincount(np.unique(ids) // 16, minlength=4).max() for ids in steps]
    assert np.mean(worst) == pytest.approx(ep_max_distinct(64, 8, 16, 4), rel=0.02)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 50), st.floats(0, 3), st.integers(0, 99))
def test_power_law_counts_can_be_dealt_exactly(
    experts: int, topk: int, tokens: int, alpha: float, seed: int
) -> None:
    topk = min(topk, experts)
    counts = power_law_counts(experts, topk, tokens, alpha, random(seed))
    assert (counts.sum(), counts.min() >= 0, counts.max() <= tokens) == (tokens * topk, True, True)
    ids = dealt_ids(counts, tokens, random(seed))
    assert ids.shape == (tokens, topk)
    assert not twice(ids)
    assert np.bincount(ids.ravel(), minlength=experts).tolist() == counts.tolist()


def test_the_power_law_touches_as_many_experts_as_the_public_tables_say() -> None:
    """128 experts, 8 a token, 16 tokens: 65 distinct at an exponent of 1.01, 56 at 1.2, as a mean of a few draws."""
    for alpha, said in ((1.01, 65), (1.2, 56)):
        distinct = [(power_law_counts(128, 8, 16, alpha, random(seed)) > 0).sum() for seed in range(200)]
        assert np.mean(distinct) == pytest.approx(said, abs=3.0)


def test_what_cannot_be_drawn_or_dealt_is_refused() -> None:
    for q in (np.full(8, 0.3), np.array([1.5, 0.5]), np.array([-0.5, 0.5, 1.0])):
        with pytest.raises(ScenarioError, match="popularity"):
            drawn_ids(q, 4, random())
    for counts in ([3, 0], [1, 1, 1], [0, 0]):
        with pytest.raises(ScenarioError, match="dealt"):
            dealt_ids(np.array(counts), 2, random())
    with pytest.raises(ScenarioError, match="exponent"):
        power_law_counts(8, 2, 4, -1.0, random())


def test_the_rest_of_a_power_law_reaches_equals_in_the_order_given() -> None:
    """One token of eight choices: no expert's share rounds to one, so all eight are dealt among equals."""
    first = power_law_counts(256, 8, 1, 1.01, random())
    last = power_law_counts(256, 8, 1, 1.01, random(), np.arange(256)[::-1])
    assert np.flatnonzero(first).tolist() == list(range(8)) and np.flatnonzero(last).tolist() == list(
        range(248, 256)
    )
