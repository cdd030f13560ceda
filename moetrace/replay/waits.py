"""Ranks that wait for each other: a collective begins to transfer on all its ranks when the last of them has arrived.

Of a recording of several ranks, each collective's duration is parted in two. *Transfer* is the shortest duration on any of its
ranks, the last one's to arrive; that is anchored and priced. The rest is *waiting*, and is worked out anew: every rank's ops
are laid out up to a collective, and each waits there for the slowest. Clocks need not agree to the ns: where a rank was
recorded to begin its transfer a little off the last arrival, it keeps that. With nothing changed every start comes back to
the ns.

Collectives belong together by step, name, group and their number in it, as in parse/ranks; where ranks of a group have
different numbers of one in a step, its duration is kept whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.op import Op
from moetrace.ops.communication import TOGETHER, matched_name
from moetrace.replay.draft import Draft

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Laid = tuple[IntArray, IntArray]
_ROUNDS = 64  # layouts at most; where one stream runs all, two are enough


@dataclass(frozen=True, slots=True)
class Waits:
    """The collectives of a draft that its ranks share. Arrays have an entry per rank of a collective.

    `row` is its row in the draft, `meeting` which collective it is, `wait` the recorded waiting in ns, `late` by how much its
    transfer was recorded to begin behind the last arrival, ns, `origin` [segments] where segments begin, ns.
    """

    row: IntArray
    meeting: IntArray
    wait: IntArray
    late: IntArray
    segment: IntArray
    origin: IntArray

    def recorded(self, rows: int) -> IntArray:
        """The recorded waiting of each of so many rows, ns."""
        out = np.zeros(rows, dtype=np.int64)
        out[self.row] = self.wait
        return out

    def laid_out(
        self, dur: IntArray, lay_out: Callable[[IntArray, IntArray], Laid]
    ) -> tuple[IntArray, IntArray, IntArray]:
        """(start of each row, ns that each segment takes, durations with waiting) of rows that take `dur` without waiting.

        `lay_out` gives the first two of durations with waiting, and the waiting in them. It begins with the recorded waiting
        and settles layout by layout.
        """
        none = np.zeros(dur.size, dtype=np.int64)
        if not self.row.size:
            return (*lay_out(dur, none), dur)
        wait, whole = self.wait, dur
        for _ in range(_ROUNDS):
            waits = none.copy()
            waits[self.row] = wait
            whole = dur + waits
            start, spans = lay_out(whole, waits)
            again = self._waited(start[self.row], wait)
            if np.array_equal(again, wait):
                break
            wait = again
        return start, spans, whole

    def _waited(self, start: IntArray, wait: IntArray) -> IntArray:
        """What each rank waits, from the starts of a layout with some waiting, if a change of it moves all that comes after.

        All segments go through their collectives in step. Exact where one stream runs everything and ranks meet in one order;
        elsewhere the layout says what really moved, and the next round starts from there.
        """
        order = np.lexsort((start, self.segment))
        segment = self.segment[order]
        place = np.arange(segment.size) - np.searchsorted(segment, segment)
        arrival = self.origin[self.segment] + start
        moved = np.zeros(self.origin.size, dtype=np.int64)
        last = np.full(int(self.meeting.max()) + 1, np.iinfo(np.int64).min)
        out = wait.copy()
        by_place = np.split(order[np.argsort(place, kind="stable")], np.cumsum(np.bincount(place))[:-1])
        for at in by_place:
            came = arrival[at] + moved[self.segment[at]]
            np.maximum.at(last, self.meeting[at], came)
            out[at] = np.maximum(0, last[self.meeting[at]] + self.late[at] - came)
            moved[self.segment[at]] += out[at] - wait[at]
        return out


def waits_of(draft: Draft, gaps: bool) -> Waits:
    """The collectives that the draft's ranks share, none where it holds one rank. `gaps`: segments begin as recorded, else
    all of a step begin together, and no clock was off."""
    base = draft.base
    first = np.flatnonzero(np.diff(base.segment, prepend=-1))
    origin = base.start[first] if gaps else np.zeros(first.size, dtype=np.int64)
    found = _meetings(draft)
    which = found >= 0
    wait, late = np.zeros(base.row.size, np.int64), np.zeros(base.row.size, np.int64)
    if which.any():
        size = int(found.max()) + 1
        shortest = np.full(size, np.iinfo(np.int64).max)
        latest = np.full(size, np.iinfo(np.int64).min)
        np.minimum.at(shortest, found[which], base.dur[which])
        np.maximum.at(latest, found[which], base.start[which])
        wait[which] = base.dur[which] - shortest[found[which]]
        late[which] = base.start[which] + wait[which] - latest[found[which]] if gaps else 0
    rows = np.flatnonzero((found[draft.rows] >= 0) & ~draft.inserted)
    of = draft.rows[rows]
    # A layer that stands for several is met as often: by its number among the copies.
    order = np.lexsort((rows, of))
    copy = np.empty(rows.size, dtype=np.int64)
    copy[order] = np.arange(rows.size) - np.searchsorted(of[order], of[order])
    meeting = np.unique(found[of] * (int(copy.max(initial=0)) + 1) + copy, return_inverse=True)[1].reshape(-1)
    return Waits(rows, meeting, wait[of], late[of], base.segment[of], origin)


def _meetings(draft: Draft) -> IntArray:
    """Which collective each base row is an arrival at, [base rows]; -1 for none that other ranks are seen at."""
    base, run = draft.base, draft.run
    out = np.full(base.row.size, -1, dtype=np.int64)
    rank = run.numpy("rank").astype(np.int64)[base.row]
    if not rank.size or (rank == rank[0]).all():
        return out
    names, name, size, stride = _named(base.ops, run.meta.gpus)
    at = np.flatnonzero((name >= 0)[base.op])
    if not at.size:
        return out
    stream = run.numpy("stream").astype(np.int64)[base.row[at]]
    at = at[np.lexsort((base.start[at], stream, name[base.op[at]], base.segment[at]))]
    op = base.op[at]
    block = size[op] * stride[op]
    group = rank[at] // block * block + rank[at] % stride[op]
    lane = base.segment[at] * names + name[op]  # a name's executions on one rank in one step
    _, lane = np.unique(lane, return_inverse=True)
    lane = lane.reshape(-1)
    number = np.arange(at.size) - np.searchsorted(lane, lane)
    cell = (base.step[at] * names + name[op]) * (int(group.max()) + 1) + group
    _, cell = np.unique(cell, return_inverse=True)
    cell = cell.reshape(-1)
    # Only where all ranks of a group that are here have as many, and more than one is.
    head = np.flatnonzero(number == 0)
    count = np.bincount(lane)
    most, least, ranks = (np.zeros(int(cell.max()) + 1, dtype=np.int64) for _ in range(3))
    least += np.iinfo(np.int64).max
    np.maximum.at(most, cell[head], count[lane[head]])
    np.minimum.at(least, cell[head], count[lane[head]])
    np.add.at(ranks, cell[head], 1)
    fine = ((most == least) & (ranks > 1))[cell]
    out[at[fine]] = cell[fine] * int(number.max() + 1) + number[fine]
    known = out >= 0
    if known.any():
        out[known] = np.unique(out[known], return_inverse=True)[1].reshape(-1)
    return out


def _named(ops: tuple[Op, ...], world: int) -> tuple[int, IntArray, IntArray, IntArray]:
    """(number of names; of each op the code of its name, -1 for what ranks do not end together; its group's ranks; stride)."""
    codes: dict[str, int] = {}
    name, size, stride = (
        np.full(len(ops), -1, np.int64),
        np.ones(len(ops), np.int64),
        np.ones(len(ops), np.int64),
    )
    for i, op in enumerate(ops):
        if op.kind in TOGETHER:
            name[i] = codes.setdefault(matched_name(op), len(codes))
            size[i], stride[i] = int(op.get("ranks") or world), int(op.get("stride") or 1)
    return len(codes) + 1, name, size, stride
