"""Laying out new durations: exact where nothing changes, monotone, and right in cases worked out by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.replay.schedule import Timeline, lay_out, measure

Rows = tuple[np.ndarray, ...]


@st.composite
def recordings(draw: st.DrawFn) -> Rows:
    """Rows of one to three segments on up to three streams: overlaps, gaps, graphs, launches before the start."""
    n = draw(st.integers(1, 25))

    def column(low: int, high: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)), dtype=np.int64)

    segment = np.sort(column(0, 2))
    segment = np.unique(segment, return_inverse=True)[1]
    start = np.cumsum(column(0, 60)) + 10_000
    dur, stream = column(0, 80), column(0, 2)
    launch = np.where(column(0, 2) > 0, start - column(1, 300), -1)
    graph = np.where((column(0, 1) > 0) & (launch >= 0), column(0, 3), -1)
    return segment, start, dur, stream, launch, graph


def laid(line: Timeline, dur: np.ndarray, gaps: bool = True) -> tuple[np.ndarray, np.ndarray]:
    n = dur.size
    return lay_out(line, np.arange(n), np.zeros(n, bool), dur, gaps)


def one_stream(start: list[int], dur: list[int], launch: list[int] | None = None) -> Timeline:
    n = len(start)
    zeros, none = np.zeros(n, np.int64), np.full(n, -1)
    return measure(
        zeros, np.array(start), np.array(dur), zeros, none if launch is None else np.array(launch), none
    )


@given(recordings())
@settings(max_examples=300)
def test_unchanged_durations_give_every_start_back(rows: Rows) -> None:
    segment, start, dur, *_ = rows
    line = measure(*rows)
    at, spans = laid(line, dur)
    for s in range(segment[-1] + 1):
        mine = segment == s
        assert (at[mine] == start[mine] - start[mine].min()).all()
        assert spans[s] == (start + dur)[mine].max() - start[mine].min()


@given(recordings(), st.data())
@settings(max_examples=300)
def test_faster_ops_never_lengthen_a_step(rows: Rows, data: st.DataObject) -> None:
    dur = rows[2]
    factors = st.lists(st.floats(0, 4), min_size=dur.size, max_size=dur.size)
    slow = np.rint(dur * np.array(data.draw(factors))).astype(np.int64)
    cuts = st.lists(st.floats(0, 1), min_size=dur.size, max_size=dur.size)
    fast = np.minimum(slow, np.rint(slow * np.array(data.draw(cuts))).astype(np.int64))
    line = measure(*rows)
    for gaps in (True, False):
        at_fast, fast_spans = laid(line, fast, gaps)
        at_slow, slow_spans = laid(line, slow, gaps)
        assert (fast_spans <= slow_spans).all()
        assert (at_fast >= 0).all() and (at_slow >= 0).all()


@given(recordings(), st.integers(0, 10**18))
def test_a_shift_in_time_changes_nothing(rows: Rows, shift: int) -> None:
    segment, start, dur, stream, launch, graph = rows
    moved = (segment, start + shift, dur, stream, np.where(launch >= 0, launch + shift, -1), graph)
    new = dur * 2 + 3
    (at, spans), (at_moved, spans_moved) = laid(measure(*rows), new), laid(measure(*moved), new)
    assert (at == at_moved).all()
    assert (spans == spans_moved).all()


@given(recordings())
def test_a_step_is_never_shorter_than_what_one_stream_does_in_order(rows: Rows) -> None:
    segment, start, dur, stream, *_ = rows
    apart = np.array([segment * 3 + stream])[0]
    order = np.lexsort((start, apart))
    overlapping = (np.diff(apart[order]) == 0) & ((start + dur)[order][:-1] > start[order][1:])
    if overlapping.any():
        return  # the recording itself overlaps rows of one stream
    new = dur * 3
    _, spans = laid(measure(*rows), new)
    for s in range(segment[-1] + 1):
        for lane in range(3):
            assert spans[s] >= new[(segment == s) & (stream == lane)].sum()


@given(recordings(), st.integers(1, 5))
def test_without_gaps_a_step_is_the_sum_of_its_ops(rows: Rows, factor: int) -> None:
    segment, dur = rows[0], rows[2] * factor
    at, spans = laid(measure(*rows), dur, gaps=False)
    assert (spans == np.bincount(segment, dur)).all()
    first = np.flatnonzero(np.diff(segment, prepend=-1))
    assert (at[first] == 0).all()


def test_gaps_of_a_graph_stay_when_ops_get_faster() -> None:
    line = one_stream([0, 120, 240], [100, 100, 100])
    at, spans = laid(line, np.array([10, 10, 10]))
    assert at.tolist() == [0, 30, 60]
    assert spans.tolist() == [70]


def test_eager_ops_wait_for_their_launch() -> None:
    """Launched every 120 ns, 20 ns before they start: ten times faster ops leave the step as long but for the last."""
    line = one_stream([20, 140, 260], [100, 100, 100], launch=[0, 120, 240])
    _, spans = laid(line, np.array([10, 10, 10]))
    assert spans.tolist() == [250]


def test_slower_eager_ops_hide_their_launch() -> None:
    line = one_stream([20, 140, 260], [100, 100, 100], launch=[0, 120, 240])
    _, spans = laid(line, np.array([200, 200, 200]))
    assert spans.tolist() == [600]


def test_a_queued_op_is_held_by_its_launch_once_the_queue_is_empty() -> None:
    """The second op was launched 50 ns before the first ended; made instant, the first no longer hides that."""
    line = one_stream([20, 120, 300], [100, 100, 100], launch=[0, 70, 280])
    at, _ = laid(line, np.array([1, 100, 100]))
    assert at.tolist() == [0, 70, 280]  # from launch to start takes 20


def test_an_op_hidden_behind_another_comes_out_when_that_gets_faster() -> None:
    zeros, none = np.zeros(2, np.int64), np.full(2, -1)
    line = measure(zeros, np.array([0, 10]), np.array([100, 80]), np.array([0, 1]), none, none)
    _, spans = laid(line, np.array([10, 80]))
    assert spans.tolist() == [81]  # starts after a tenth of the first op, as before


def test_rows_of_one_stream_stay_in_order_when_they_get_slower() -> None:
    """Two short ops on one stream under a long one on another: made ten times slower they need 600 between them."""
    zeros, none = np.zeros(3, np.int64), np.full(3, -1)
    line = measure(zeros, np.array([0, 0, 40]), np.array([100, 30, 30]), np.array([0, 1, 1]), none, none)
    at, spans = laid(line, np.array([100, 300, 300]))
    assert spans.tolist() == [600]
    assert at.tolist() == [0, 0, 300]


def test_repeated_and_inserted_rows_follow_with_their_own_gaps() -> None:
    line = one_stream([0, 110, 230], [100, 100, 100])
    rows, inserted = np.array([0, 1, 1, 1, 2]), np.array([False, False, True, False, False])
    at, spans = lay_out(line, rows, inserted, np.array([100, 100, 7, 100, 100]))
    assert at.tolist() == [
        0,
        110,
        210,
        227,
        347,
    ]  # the repeated row keeps its gap of 10, the inserted one has none
    assert spans.tolist() == [447]


def test_the_host_goes_on_through_repeated_rows() -> None:
    line = one_stream([20, 140, 260], [100, 100, 100], launch=[0, 120, 240])
    rows = np.array([0, 1, 1, 1, 2])
    _, spans = lay_out(line, rows, np.zeros(5, bool), np.array([10] * 5))
    assert spans.tolist() == [4 * 120 + 10]
