"""Steps whose ops the host launches one by one, for many scenarios at once: what `schedule.lay_out` gives, without its rows.

The ops of a sequence take `work` ns one after another and `launched` of them begin no sooner than the host has launched
them, at its even pace. With `behind` the most by which the host is behind the device at any of them, the sequence ends
`work + max(0, behind)` after it began. Sequences follow one another, and repeat, by sums and a maximum of these three, so
the many alike layers of a model and the experts of a loop are one repetition each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.replay.draft import Draft
from moetrace.replay.lanes import Lanes, Space
from moetrace.replay.launching import HOST_LAUNCH_FACTOR, launch_s

FloatArray = npt.NDArray[np.float64]
# Of times as expected and at both ends, those that go with the ops at both ends, and with the host at both.
OPS_AT = [0, 1, 2, 0, 0]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequence:
    """Ops (by their places among the distinct ones) and sequences of them one after another, all of it `times` times."""

    parts: tuple[int | Sequence, ...]
    times: Any = 1


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose ops the host launches one by one, in this order, `pace` ns apart."""

    step: int
    order: Sequence
    pace: float


def launches(draft: Draft, of_cell: IntArray, layers: tuple[int, ...] | None) -> tuple[Launched, ...]:
    """The steps of a draft whose ops the host launches one by one.

    `layers` are the drafted layers that stand for the model's, in order; None: the drafted ones are all there are.
    """
    out = []
    pace = np.rint(launch_s(draft, None) * 1e9)
    step, cell = draft.base.step[draft.rows], draft.cell
    for i in np.flatnonzero(pace).tolist():
        blocks: list[tuple[int, list[int]]] = []
        for layer, some in groupby(cell[step == i].tolist(), key=lambda c: draft.at[c].layer):
            blocks.append((layer, list(some)))
        inside = [at for at, (layer, _) in enumerate(blocks) if layer >= 0]
        known = {blocks[at][0]: _sequence(draft, blocks[at][1], of_cell) for at in inside}
        order = layers if layers is not None else tuple(blocks[at][0] for at in inside)
        parts = [_sequence(draft, cells, of_cell) for _, cells in blocks[: inside[0]]]
        for layer, same in groupby(order):
            parts.append(Sequence((known[layer],), len(list(same))))
        parts += [_sequence(draft, cells, of_cell) for _, cells in blocks[inside[-1] + 1 :]]
        out.append(Launched(i, Sequence(tuple(parts)), float(pace[i])))
    return tuple(out)


def _sequence(draft: Draft, cells: list[int], of_cell: IntArray) -> Sequence:
    """The ops of consecutive rows, given by their cells."""
    parts: list[int | Sequence] = []
    ops = of_cell[cells].tolist()
    at = 0
    while at < len(cells):
        loop = draft.loops[cells[at]] if draft.loops else None
        if loop is None:
            parts.append(ops[at])
            at += 1
        else:
            parts.append(Sequence(tuple(ops[at : at + loop.rows]), loop.times))
            at += loop.rows
    return Sequence(tuple(parts))


@dataclass(frozen=True, slots=True)
class _Time:
    """Of a sequence: ns of its work, its launches, and the most ns by which the host is behind; [5, scenarios] or less."""

    work: FloatArray
    launched: Any
    behind: FloatArray

    def then(self, other: _Time, pace: FloatArray) -> _Time:
        """This one and another behind it."""
        behind = np.maximum(self.behind, other.behind + pace * self.launched - self.work)
        return _Time(self.work + other.work, self.launched + other.launched, behind)

    def repeated(self, times: Any, pace: FloatArray) -> _Time:
        """This one so many times over: the host is most behind in the first or in the last."""
        more = np.maximum(0.0, (times - 1) * (pace * self.launched - self.work))
        return _Time(self.work * times, self.launched * times, self.behind + more)


def spans(
    launched: Launched, ns: Callable[[int], FloatArray], ahead: FloatArray, space: Space
) -> tuple[FloatArray, FloatArray]:
    """(ns of a step, ns until two halves of it are launched), [5, scenarios]: as expected, with its ops at both ends, and with
    its host at both.

    `ns` gives those of one op: as expected and at both ends, [3, scenarios or 1]; the host is `ahead` ns ahead, [scenarios].
    """
    host = np.array([1.0, 1.0, 1.0, 1 / HOST_LAUNCH_FACTOR, HOST_LAUNCH_FACTOR])[:, None]
    found = _time(launched.order, lambda op: ns(op)[OPS_AT], np.rint(launched.pace * host), {})
    whole, both = (
        found.work + np.maximum(0.0, found.behind - ahead),
        2 * found.launched * launched.pace * host,
    )
    size = host.size, space.size
    return np.broadcast_to(whole, size), np.broadcast_to(np.rint(both) - ahead, size)


def _time(
    sequence: Sequence, ns: Callable[[int], FloatArray], pace: FloatArray, known: dict[int, _Time]
) -> _Time:
    """Of a sequence; `known` are those of sequences (by id) that occur in it more than once."""
    if id(sequence) in known:
        return known[id(sequence)]
    found: _Time | None = None
    for single, some in groupby(sequence.parts, key=lambda part: isinstance(part, int)):
        if single:
            times = [_one_after_another([ns(op) for op in some if isinstance(op, int)], pace)]
        else:
            times = [_time(part, ns, pace, known) for part in some if isinstance(part, Sequence)]
        for time in times:
            found = time if found is None else found.then(time, pace)
    found = found if found is not None else _Time(np.zeros((5, 1)), 0, np.full((5, 1), -np.inf))
    again = sequence.times.spread() if isinstance(sequence.times, Lanes) else sequence.times
    known[id(sequence)] = found if again is sequence.times and again == 1 else found.repeated(again, pace)
    return known[id(sequence)]


def _one_after_another(ns: list[FloatArray], pace: FloatArray) -> _Time:
    work = np.stack(np.broadcast_arrays(*ns))
    passed = np.cumsum(work, axis=0)
    place = np.arange(1.0, len(ns) + 1)[:, None, None]
    return _Time(passed[-1], len(ns), (pace * place - (passed - work)).max(axis=0))
