"""Popularity held against counts: met where they were taken, between none and all elsewhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.routing import popularity_distinct, uniform_distinct
from moetrace.routing.evened import Evened, evened
from moetrace.routing.skewed import shares

EXPERTS = 64


def _touched(even: Evened, q: np.ndarray, topk: int, tokens: int) -> float:
    flat = even.popularity(q)
    assert flat.sum() == pytest.approx(topk)
    return even.scaled(float(popularity_distinct(flat, tokens)), flat, tokens, EXPERTS)


@given(
    st.lists(st.floats(0.01, 1), min_size=EXPERTS, max_size=EXPERTS),
    st.integers(1, 8),
    st.integers(1, 64),
    st.floats(0, 1),
)
def test_the_counts_are_met_and_more_tokens_touch_no_fewer(
    weights: list[float], topk: int, tokens: int, place: float
) -> None:
    q = shares(np.array(weights), topk)
    most = min(EXPERTS, tokens * topk)
    counted = topk + place * (most - topk)
    even = evened(q, np.array([tokens]), counted)
    assert even.popularity(q).sum() == pytest.approx(q.sum()) and 0 <= even.share <= 1
    assert _touched(even, q, topk, tokens) == pytest.approx(counted, rel=1e-6)
    assert _touched(even, q, topk, 1) == pytest.approx(topk, rel=1e-6)
    found = [_touched(even, q, topk, n) for n in range(1, 4 * tokens)]
    assert all(b >= a - 1e-9 for a, b in pairwise(found)) and max(found) <= EXPERTS


def test_sequences_that_choose_alike_step_after_step_are_taken_for_what_they_are() -> None:
    """What 16 of them show looks uneven; drawn from it they touch too few, evened out about as many as others would."""
    rng = np.random.default_rng(0)
    chosen = np.zeros((16, EXPERTS))
    for row in chosen:
        row[rng.permutation(EXPERTS)[:8]] = 1
    q, counted = chosen.mean(axis=0), float(chosen.any(axis=0).sum())
    even = evened(q, np.full(4, 16), counted)
    for tokens in (4, 8, 32):
        real = uniform_distinct(EXPERTS, 8, tokens)
        assert abs(_touched(even, q, 8, tokens) - real) < 0.5 * abs(popularity_distinct(q, tokens) - real)


def test_steps_that_touched_all_say_nothing_of_popularity() -> None:
    q = shares(np.linspace(1, 9, EXPERTS), 8)
    even = evened(q, np.array([4096]), EXPERTS)
    assert even.share == 0 and even.factor == pytest.approx(1)


def test_tokens_that_choose_alike_stay_below_independent_ones() -> None:
    q = np.full(EXPERTS, 8 / EXPERTS)
    even = evened(q, np.array([16, 16]), 40.0)
    assert even.share == 0 and even.factor == pytest.approx(40 / uniform_distinct(EXPERTS, 8, 16))
    assert 8 < _touched(even, q, 8, 8) < uniform_distinct(EXPERTS, 8, 8)


def test_sequences_of_one_prompt_touch_what_one_does_whatever_their_number() -> None:
    """Fewer of them than were recorded came out with several times as many experts as all of them."""
    q = np.full(EXPERTS, 8 / EXPERTS)
    even = evened(q, np.full(4, 16), 8.0)
    assert [_touched(even, q, 8, n) for n in (1, 2, 8, 15, 16)] == pytest.approx([8.0] * 5)
