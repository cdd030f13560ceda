"""Intervals against oracles that look at every pair or every nanosecond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.parse.nesting import IntArray, Ranges, exposed, exposed_by, parents, sort_ranges

Interval = tuple[int, int, int]  # lane or group, start, end
INTERVALS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 12)).map(
        lambda t: (t[0], t[1], t[1] + t[2])
    ),
    max_size=25,
)
MOMENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 45)), max_size=25)
FAR = (1 << 61) - 1000  # ns: as far apart as a reader lets two times be


def union_ns(start: IntArray, end: IntArray) -> int:
    """The oracle: total length of the union of intervals, overlap counted once."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    before = np.concatenate(([start[0]], reach[:-1]))
    return int(np.sum(np.maximum(0, end - np.maximum(start, before))))


def columns(rows: list[Interval]) -> tuple[IntArray, IntArray, IntArray]:
    matrix = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return matrix[:, 0], matrix[:, 1], matrix[:, 2]


def nested(low: int, high: int, depth: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Ranges as a thread writes them: each within its parent, siblings apart."""

    @st.composite
    def draw(choose: st.DrawFn) -> list[tuple[int, int]]:
        cuts = sorted(choose(st.lists(st.integers(low, high), max_size=6, unique=True)))
        found = []
        for a, b in zip(cuts[::2], cuts[1::2], strict=False):
            found.append((a, b))
            if depth and b - a > 2:
                found += choose(nested(a, b, depth - 1))
        return found

    return draw()


def innermost(rows: list[Interval], lane: int, moment: int) -> Interval | None:
    covering = [r for r in rows if r[0] == lane and r[1] <= moment <= r[2]]
    return max(covering, key=lambda r: (r[1], -r[2])) if covering else None


@settings(max_examples=200, deadline=None)
@given(INTERVALS, MOMENTS)
def test_covering_is_the_last_begun_of_all_that_cover(
    rows: list[Interval], moments: list[tuple[int, int]]
) -> None:
    lane, moment = np.array(moments, dtype=np.int64).reshape(-1, 2).T
    found = Ranges(*columns(rows)).covering(lane, moment)
    assert [rows[i] if i >= 0 else None for i in found] == [innermost(rows, *m) for m in moments]


@settings(max_examples=100, deadline=None)
@given(INTERVALS, MOMENTS)
def test_covering_survives_a_time_far_from_all_others(
    rows: list[Interval], moments: list[tuple[int, int]]
) -> None:
    late = [(lane, start + FAR, end + FAR) for lane, start, end in rows]
    stray = [*late, *((lane, -FAR, -FAR) for lane in range(5))]
    asked = [(lane, moment + FAR) for lane, moment in moments] + [(0, -FAR), (4, FAR)]
    lane, moment = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    found = Ranges(*columns(stray)).covering(lane, moment)
    assert [stray[i] if i >= 0 else None for i in found] == [innermost(stray, *m) for m in asked]


@settings(max_examples=100, deadline=None)
@given(st.lists(nested(0, 60, 3), min_size=1, max_size=3))
def test_parents_of_what_nests_are_the_smallest_holders(threads: list[list[tuple[int, int]]]) -> None:
    rows = [(lane, start, end) for lane, ranges in enumerate(threads) for start, end in ranges]
    lane, start, end = columns(rows)
    order = sort_ranges(lane, start, end)
    lane, start, end = lane[order], start[order], end[order]
    parent = parents(lane, start, end)
    for i in range(len(rows)):
        holders = [
            j
            for j in range(i)
            if lane[j] == lane[i] and start[j] <= start[i] and end[i] <= end[j] and end[j] > start[i]
        ]
        assert parent[i] == (holders[-1] if holders else -1)


def test_ranges_that_only_touch_are_side_by_side() -> None:
    rows = [(0, 0, 10), (0, 0, 4), (0, 4, 7), (0, 7, 10), (0, 7, 7), (0, 10, 12), (1, 2, 3)]
    assert parents(*columns(rows)).tolist() == [-1, 0, 0, 0, 3, -1, -1]


def test_ranges_without_any_and_empty_questions() -> None:
    none = np.zeros(0, np.int64)
    assert Ranges(none, none, none).covering(np.array([0, 1]), np.array([5, -5])).tolist() == [-1, -1]
    assert Ranges(*columns([(0, 1, 2)])).covering(none, none).tolist() == []
    assert len(parents(none, none, none)) == 0
    assert (
        union_ns(none, none) == 0 and len(exposed(none, none)[0]) == len(exposed_by(none, none, none)[0]) == 0
    )


def test_both_ends_of_a_range_belong_to_it() -> None:
    ranges = Ranges(*columns([(7, 10, 20), (7, 12, 12), (8, 10, 20)]))
    moments = np.array([9, 10, 12, 13, 20, 21])
    assert ranges.covering(np.full(6, 7), moments).tolist() == [-1, 0, 1, 0, 0, -1]
    assert ranges.covering(np.full(6, 9), moments).tolist() == [-1] * 6


def busy_ns(rows: list[Interval]) -> int:
    return len({ns for _, start, end in rows for ns in range(start, end)})


@given(INTERVALS, st.integers(-(10**12), FAR), st.randoms(use_true_random=False))
def test_union_counts_overlap_once_wherever_and_in_any_order(
    rows: list[Interval], shift: int, rng: object
) -> None:
    _, start, end = columns(rows)
    expected = busy_ns(rows)
    assert union_ns(start, end) == expected
    assert union_ns(start + shift, end + shift) == expected
    rng.shuffle(rows)  # type: ignore[attr-defined]
    _, start, end = columns(rows)
    assert union_ns(start, end) == expected


@given(INTERVALS.filter(bool), st.integers(-(10**12), FAR))
def test_parts_and_gaps_sum_to_the_span(rows: list[Interval], shift: int) -> None:
    rows.sort(key=lambda r: r[1])
    _, start, end = columns(rows)
    part, gap = exposed(start, end)
    assert (part >= 0).all() and (gap >= 0).all() and gap[0] == 0
    assert (part <= end - start).all()
    assert part.sum() == union_ns(start, end) == busy_ns(rows)
    assert part.sum() + gap.sum() == end.max() - start.min()
    for here, there in zip((part, gap), exposed(start + shift, end + shift), strict=True):
        assert (here == there).all()


@pytest.mark.parametrize("stray", [False, True])
@given(rows=INTERVALS.filter(bool), rng=st.randoms(use_true_random=False))
def test_groups_are_exposed_each_for_itself(stray: bool, rows: list[Interval], rng: object) -> None:
    if stray:  # too long a span for one running maximum over all groups
        rows = [(group, start + FAR, end + FAR) for group, start, end in rows] + [
            (g, -FAR, 1 - FAR) for g in range(4)
        ]
    rng.shuffle(rows)  # type: ignore[attr-defined]
    group, start, end = columns(rows)
    part, gap = exposed_by(group, start, end)
    for code in set(group.tolist()):
        at = np.flatnonzero(group == code)
        at = at[np.argsort(start[at], kind="stable")]
        alone, gaps = exposed(start[at], end[at])
        assert part[at].tolist() == alone.tolist() and gap[at].tolist() == gaps.tolist()
        assert part[at].sum() + gap[at].sum() == end[at].max() - start[at].min()
