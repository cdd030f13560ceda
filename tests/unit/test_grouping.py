"""Distinct rows: what numpy's unique over rows finds, whatever the columns' ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.grouping import distinct_rows, rows_of_groups

WIDE = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 2)


@settings(deadline=None)
@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[WIDE] * width), min_size=1, max_size=30)))
def test_as_numpy_finds_them(rows: list[tuple[int, ...]]) -> None:
    matrix = np.array(rows, dtype=np.int64)
    values, first, inverse = np.unique(matrix, axis=0, return_index=True, return_inverse=True)
    index, ranks = distinct_rows(*matrix.T)
    assert (matrix[index] == values).all() and ranks.tolist() == inverse.reshape(-1).tolist()
    assert index.tolist() == first.tolist()


@pytest.mark.parametrize("width", [1, 3])
def test_no_rows(width: int) -> None:
    index, ranks = distinct_rows(*[np.zeros(0, np.int64)] * width)
    assert index.tolist() == ranks.tolist() == []


@given(st.lists(st.integers(-1, 4), max_size=20), st.integers(0, 4))
def test_rows_of_groups(groups: list[int], count: int) -> None:
    found = rows_of_groups(np.array(groups, dtype=np.int64), count)
    assert [rows.tolist() for rows in found] == [
        [i for i, g in enumerate(groups) if g == k] for k in range(count)
    ]
