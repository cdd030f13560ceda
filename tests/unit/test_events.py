"""Events: codes for texts and tensors, order by start, and nothing lost on the way into columns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moetrace.formats.events import FAR, KERNEL, LAUNCH, MEMCPY, OPERATOR, RANGE, EventsBuilder, Tensors

ROWS = st.lists(
    st.tuples(
        st.sampled_from([KERNEL, MEMCPY, LAUNCH, OPERATOR, RANGE]),
        st.sampled_from(["a", "b", "gemm <float>", "µ"]),
        st.integers(1 - FAR, FAR - 1),
        st.integers(0, 2**61),
        st.integers(0, 2**62),
        st.none() | st.builds(Tensors, st.tuples(st.tuples(st.integers(0, 9)))),
    ),
    max_size=12,
)


@given(ROWS)
def test_every_event_comes_back_from_its_columns(
    rows: list[tuple[int, str, int, int, int, Tensors | None]],
) -> None:
    builder = EventsBuilder()
    for cls, name, start, dur, lane, tensors in rows:
        builder.add(cls, name, start, dur, lane, tensors=tensors, launched=f"{name}!")
    events = builder.build(rank=3, world_size=8)
    back = [
        (
            int(events.cls[i]),
            events.texts[events.name[i]],
            int(events.start[i]),
            int(events.dur[i]),
            int(events.lane[i]),
            events.tensor_sets[events.tensors[i]] if events.tensors[i] >= 0 else None,
        )
        for i in range(len(rows))
    ]
    assert back == rows
    assert [events.texts[i] for i in events.launched] == [f"{row[1]}!" for row in rows]
    assert len(set(events.texts)) == len(events.texts) and len(set(events.tensor_sets)) == len(
        events.tensor_sets
    )
    assert (events.rank, events.world_size, events.devices) == (3, 8, ())


@given(ROWS)
def test_where_sorts_by_start_and_puts_the_longer_first(
    rows: list[tuple[int, str, int, int, int, object]],
) -> None:
    builder = EventsBuilder()
    for cls, name, start, dur, lane, _ in rows:
        builder.add(cls, name, start, dur, lane)
    events = builder.build()
    at = events.where(KERNEL, OPERATOR)
    assert sorted(at.tolist()) == [i for i, row in enumerate(rows) if row[0] in (KERNEL, OPERATOR)]
    keys = [(rows[i][2], -rows[i][3]) for i in at]
    assert keys == sorted(keys)


def test_no_events_are_columns_too() -> None:
    events = EventsBuilder().build()
    assert len(events.cls) == len(events.start) == 0 and events.texts == []
    assert events.where(KERNEL).tolist() == [] and events.start.dtype == np.int64


def test_what_is_not_said_is_minus_one() -> None:
    builder = EventsBuilder()
    builder.add(KERNEL, "k", 1, 2, 3)
    events = builder.build()
    for column in (events.device, events.correlation, events.external, events.tensors, events.launched):
        assert column.tolist() == [-1]
    assert events.nbytes.tolist() == [0]


def test_an_event_beyond_any_clock_is_left_out_and_counted() -> None:
    builder = EventsBuilder()
    builder.add(KERNEL, "k", FAR, 2, 3)
    builder.add(KERNEL, "k", FAR - 1, 2, 3)
    events = builder.build(counts={})
    assert events.start.tolist() == [FAR - 1] and events.counts == {"damaged": 1}
