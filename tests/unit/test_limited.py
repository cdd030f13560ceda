"""Routers that keep to groups of experts, given logits that were made for one that does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.routing.limited import limited_ids, limited_load


@given(st.integers(0, 2**32 - 1), st.sampled_from((64, 128, 256)), st.integers(1, 8))
def test_a_token_gets_as_many_experts_of_at_most_four_groups(seed: int, experts: int, topk: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.array([random.permutation(experts)[:topk] for _ in range(20)])
    chosen = limited_ids(ids, experts)
    for before, after in zip(ids.tolist(), chosen.tolist(), strict=True):
        assert len(set(after)) == topk and set(after) <= set(range(experts))
        groups = {each * 8 // experts for each in after}
        assert len(groups) <= 4
        if len({each * 8 // experts for each in before}) <= 4:
            assert set(after) == set(before)


def test_choices_outside_of_the_groups_become_those_of_the_lowest_index_by_hand() -> None:
    """One choice in each of eight groups of 32: four stay, and experts 0, 1, 3, 4 stand for the others, since 2 is chosen."""
    ids = 2 + 32 * np.arange(8)[None]
    assert sorted(limited_ids(ids, 256)[0].tolist()) == [0, 1, 2, 3, 4, 34, 66, 98]
    # Two choices make a group better than one; of groups with one the first stays.
    ids = np.array([[40, 41, 100, 101, 200, 201, 230, 10]])
    assert sorted(limited_ids(ids, 256)[0].tolist()) == [0, 10, 40, 41, 100, 101, 200, 201]


@pytest.mark.parametrize(
    ("routing", "tokens", "ranks", "distinct", "rows"),
    [
        ("balanced", 4, 1, 20, 32),  # four own choices of each token and four that all share
        ("balanced", 64, 1, 128, 512),  # half of the experts, however many tokens
        ("balanced", 64, 2, 128, 512),  # all of them the first rank's
        ("balanced", 64, 8, 32, 64 + 4 * 64),
        ("power_law_1.01", 2, 1, 16, 16),  # sixteen experts of one group
        ("power_law_1.01", 1, 2, 4, 4),
    ],
)
def test_what_the_first_rank_of_deepseeks_router_gets(
    routing: str, tokens: int, ranks: int, distinct: float, rows: float
) -> None:
    found = limited_load([routing], 256, 8, [tokens], [ranks])
    assert [float(each[0]) for each in found] == pytest.approx([distinct, rows])
