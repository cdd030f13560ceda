"""When ops start: new durations laid out as the recorded ones were. Arrays throughout, no loop over rows; whole ns.

Rows of one step and rank (a segment), sorted by start, form *clusters*: runs of rows that overlap in time. A row that
starts when all earlier ones have ended begins a cluster, which on one stream means nearly every row. What is kept:

* between clusters, the idle time before the first row: for rows replayed by a graph it is a dependency gap and stays; for
  rows launched one by one the host's own timeline stays, so faster ops wait for their launch and slower ones hide it;
* within a cluster, each row's offset from the row that it overlaps, in proportion to that row's duration, and the order
  of rows on one stream, which never overlap more than recorded.

With durations unchanged every start comes back to the ns, and no op made faster ever lengthens a step.
Not modelled: dependencies between streams other than these, and a host that waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Of the times from launch call to start of rows that an idle device waited for, this percentile is the bare launch latency.
_LATENCY_PERCENTILE = 10


@dataclass(frozen=True, slots=True)
class Timeline:
    """The recorded order in time. One entry per row; `start` is ns from the first start of the row's segment."""

    segment: IntArray
    start: IntArray
    dur: IntArray
    stream: IntArray
    head: BoolArray  # begins a cluster
    outer: BoolArray  # ends later than all rows before it
    wait: IntArray  # idle ns before a head that are not the host's doing
    host: IntArray  # ns by which the host's timeline moves on at this row
    launched: BoolArray  # by the host, itself or as the first row of a graph


def measure(
    segment: IntArray, start: IntArray, dur: IntArray, stream: IntArray, launch: IntArray, graph: IntArray
) -> Timeline:
    """The timeline of rows sorted by (segment, start), segments numbered from 0 without a gap. Shapes [rows], times in ns
    of one clock; `launch` and `graph` are -1 where not known."""
    origin = start[_firsts(segment)][segment]
    at = start - origin
    before = _running_max(at + dur, segment, exclusive=True)  # when all earlier rows had ended
    head = at >= before
    outer = head | (at + dur > before)
    known = (launch >= 0) & ((graph < 0) | _first_of_graph(segment, graph))
    queued = start - launch
    waited = known & head & (at > before)
    sample = queued[waited] if waited.any() else queued[known]
    latency = int(np.percentile(sample, _LATENCY_PERCENTILE)) if sample.size else 0
    release = np.clip(np.minimum(start, launch + latency) - origin, 0, None)
    clock = _running_max(np.where(known, release, 0), segment)
    host = np.diff(clock, prepend=0)
    host[_firsts(segment)] = clock[_firsts(segment)]
    wait = np.where(head, at - np.maximum(before, np.where(known, clock, 0)), 0)
    return Timeline(segment, at, dur, stream, head, outer, wait, host, known)


def lay_out(
    line: Timeline,
    rows: IntArray,
    inserted: BoolArray,
    dur: IntArray,
    gaps: bool = True,
    launch_s: FloatArray | float = 0.0,
    waits: tuple[IntArray, IntArray] | None = None,
    host: float = 1.0,
    ahead: FloatArray | float = 0.0,
) -> tuple[IntArray, IntArray]:
    """(start of each row in ns from its segment's begin, ns that each segment takes) with new durations.

    `rows` [n] are entries of the timeline in their new order, segments still ascending: some may be repeated or left
    out. Where they are not consecutive, and round an `inserted` row (it names the row it follows), nothing overlaps.
    Without `gaps` all rows follow one another at once: how another class of device would overlap them is not known. With
    `launch_s` too, of each segment or of all, the host launches one row after another, each taking it so long, and a row waits
    for its launch; 0: none does. It is `ahead` ns ahead of the device as its segment begins.
    `waits` [n] are what of the recorded and of the new durations is waiting for other ranks: what overlaps that does not move
    with it. The recorded host takes `host` times as long.
    """
    segment = line.segment[rows]
    joint = np.ones(rows.size, dtype=bool)
    joint[1:] = (np.diff(rows) != 1) | inserted[1:] | inserted[:-1] | (np.diff(segment) != 0) | (not gaps)
    own = gaps & ~inserted
    head = joint | (line.head[rows] & own)
    cluster, heads = np.cumsum(head) - 1, np.flatnonzero(head)
    none = np.zeros(rows.size, dtype=np.int64)
    offset = _within_clusters(line, rows, inserted, dur, head, cluster, waits or (none, none))
    length = np.maximum.reduceat(offset + dur, heads)
    # Between clusters: end = max(end before, host) + wait + length, solved with a running maximum of what is left of
    # the host's time after all waits and lengths so far.
    seg = segment[heads]
    pace = _by_segment(np.asarray(launch_s) * 1e9, line)[segment]
    own_host = np.where(own, _times(line.host[rows], host), 0)
    clock = _running_sum(np.where(pace > 0, pace, own_host), segment)[heads]
    clock = np.where(pace[heads] > 0, clock - _by_segment(ahead, line)[seg], clock)
    step = np.where(own & line.head[rows], line.wait[rows], 0)[heads] + length
    total = _running_sum(step, seg)
    held = (own & line.launched[rows])[heads] | (pace[heads] > 0)
    slack = np.where(held, np.maximum(clock + step - total, 0), 0)
    end = total + _running_max(slack, seg)
    spans = np.zeros(int(line.segment[-1]) + 1, dtype=np.int64)
    np.maximum.at(spans, seg, end)
    return (end - length)[cluster] + offset, spans


def _by_segment(ns: FloatArray | float, line: Timeline) -> IntArray:
    """Whole ns of each segment, given for each or for all."""
    return np.broadcast_to(np.rint(ns).astype(np.int64), int(line.segment[-1]) + 1)


def _within_clusters(
    line: Timeline,
    rows: IntArray,
    inserted: BoolArray,
    dur: IntArray,
    head: BoolArray,
    cluster: IntArray,
    waits: tuple[IntArray, IntArray],
) -> IntArray:
    """Start of each row in ns from its cluster's."""
    if head.all():
        return np.zeros(rows.size, dtype=np.int64)
    was = line.dur[rows]
    worked = was - waits[0]
    ratio = np.where((worked > 0) & ~inserted, (dur - waits[1]) / np.maximum(worked, 1), 1.0)
    outer = line.outer[rows] | head
    here = np.arange(rows.size)
    parent = np.concatenate([[0], np.maximum.accumulate(np.where(outer, here, 0))[:-1]])
    start = line.start[rows]
    moved = np.where(head, 0, np.rint((start - start[parent]) * ratio[parent])).astype(np.int64)
    chain = _running_sum(np.where(outer, moved, 0), cluster)
    offset = np.where(outer, chain, chain[parent] + moved)
    # One stream runs its rows in order: the next starts when what had passed before it started has passed again.
    order = np.lexsort((here, line.stream[rows], cluster))
    group = (
        np.cumsum(
            (np.diff(cluster[order], prepend=-1) != 0) | (np.diff(line.stream[rows][order], prepend=0) != 0)
        )
        - 1
    )
    same = np.diff(group) == 0
    stride = np.diff(start[order])
    part = np.rint(np.minimum(was[order][:-1], stride) * ratio[order][:-1])
    stride = np.where(stride >= was[order][:-1], dur[order][:-1], part)  # it had ended, or is under way
    passed = np.concatenate([[0], stride.astype(np.int64)])
    passed = _running_sum(np.where(np.concatenate([[False], same]), passed, 0), group)
    ready = passed + _running_max(offset[order] - passed, group)
    result = np.empty_like(offset)
    result[order] = ready
    return result


def _times(ns: IntArray, factor: float) -> IntArray:
    return ns if factor == 1.0 else np.asarray(np.rint(ns * factor), dtype=np.int64)


def _firsts(group: IntArray) -> IntArray:
    """Index of the first entry of each run of equal values."""
    return np.flatnonzero(np.diff(group, prepend=group[:1] - 1))


def _run_of(group: IntArray) -> IntArray:
    """Number of the run of equal values that each entry lies in, from 0."""
    return np.cumsum(np.diff(group, prepend=group[:1] - 1) != 0) - 1


def _running_sum(values: IntArray, group: IntArray) -> IntArray:
    """Running sum within each run of equal `group`."""
    total, first = np.cumsum(values), _firsts(group)
    return np.asarray(total - (total[first] - values[first])[_run_of(group)])


def _running_max(values: IntArray, group: IntArray, exclusive: bool = False) -> IntArray:
    """Running maximum within each run of equal `group`; `exclusive`: of the entries before, 0 for the first."""
    if not values.size:
        return values
    run, low = _run_of(group), values.min()
    shift = run * (int(values.max()) - int(low) + 1) - low  # runs apart, so that none reaches into the next
    most = np.maximum.accumulate(values + shift) - shift
    if not exclusive:
        return np.asarray(most)
    before = np.concatenate([[0], most[:-1]])
    before[_firsts(group)] = 0
    return np.asarray(before)


def _first_of_graph(segment: IntArray, graph: IntArray) -> BoolArray:
    """Whether a row is the first of its graph launch in its segment."""
    _, first = np.unique(segment * (graph.max(initial=0) + 2) + graph + 1, return_index=True)
    result = np.zeros(graph.size, dtype=bool)
    result[first] = True
    return result
