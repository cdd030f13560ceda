"""Which step each op belongs to: the ways to tell, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moetrace.formats.events import DEVICE_RANGE, RANGE, Events
from moetrace.parse.nesting import IntArray, Ranges, lookup, outermost
from moetrace.parse.rows import Rows
from moetrace.parse.steps import CAPTURE, StepName, step_ranges

_ENOUGH = 0.9  # of the device time that the best way to find the steps places: then the surest way is taken


class Places:
    """The ways to tell which step an op belongs to; the best is chosen by the device time that each places.

    The surest way is the thread and time of an op's launch. Where that loses steps (launches on another thread, or not
    in the file) it is the time of the launch, then the device's own annotations, then the time of the op itself.
    """

    def __init__(self, events: Events) -> None:
        """From the step ranges among the events; no way at all where nothing is annotated."""
        host, names = step_ranges(events, events.where(RANGE))
        device, device_names = step_ranges(events, events.where(DEVICE_RANGE))
        self._ways: list[tuple[Callable[[Rows], IntArray], list[StepName], str]] = []
        late = None
        if len(host):
            self._ways.append((lambda r: _covering(events, host, r.host_time, r.host_lane), names, ""))
        if len(host) and _apart(events, host):
            said = "by the time of launches: other threads than the annotated one made many"
            self._ways.append(
                (lambda r: np.where(r.host_lane >= 0, _covering(events, host, r.host_time), -1), names, said)
            )
            said = "by the time at which ops ran, for no launch could be joined: one that ran late counts to the next step"
            late = (lambda r: _covering(events, host, r.start), names, said)
        if len(device):
            main, device_names = _main_stream(events, device, device_names)
            said = (
                "by the device's annotations: too few launches could be joined to the host's"
                if self._ways
                else ""
            )
            self._ways.append((lambda r: _covering(events, main, r.start), device_names, said))
        self._late, self._events, self._host, self._names = late, events, host, names
        self._placed = [0] * len(self._ways)

    def captured(self, lane: IntArray, moment: IntArray) -> None:
        """Takes note of when, on which threads, the capture of a graph began: the steps around captured it."""
        if len(self._host):
            steps = _covering(self._events, self._host, moment, lane)
            for i in np.unique(steps[steps >= 0]).tolist():
                self._names[i] = replace(self._names[i], phase=CAPTURE)

    def weigh(self, rows: Rows) -> None:
        """Takes rows into account for the choice."""
        for i, (step_of, _, _) in enumerate(self._ways):
            self._placed[i] += int((rows.dur + 1)[step_of(rows) >= 0].sum())

    def choose(self) -> tuple[Callable[[Rows], IntArray], list[StepName], list[str]]:
        """(step of each of some rows or -1, what the steps are, remarks)."""
        if not self._ways:
            return lambda rows: np.full(len(rows), -1, dtype=np.int64), [], []
        step_of, names, said = self._ways[
            next(i for i, n in enumerate(self._placed) if n >= _ENOUGH * max(self._placed))
        ]
        if not max(self._placed) and self._late is not None:
            step_of, names, said = self._late
        return step_of, names, [f"steps are told {said}"] if said else []


def _covering(events: Events, steps: IntArray, moment: IntArray, lane: IntArray | None = None) -> IntArray:
    """Which of the steps covers each moment, on its lane or on whichever; -1 for none."""
    on = events.lane[steps] if lane is not None else np.zeros(len(steps), np.int64)
    ranges = Ranges(on, events.start[steps], events.start[steps] + events.dur[steps])
    found = ranges.covering(lane if lane is not None else np.zeros(len(moment), np.int64), moment)
    return lookup(_first_alike(events, steps), found)


def _first_alike(events: Events, steps: IntArray) -> IntArray:
    """The place of the first of the steps that is the same one: a range of several threads stands on each of them."""
    same = np.stack([events.name[steps], events.start[steps], events.dur[steps]])
    _, first, inverse = np.unique(same, axis=1, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _apart(events: Events, steps: IntArray) -> bool:
    """Whether the time alone tells steps apart: those of several threads do not overlap."""
    steps = steps[np.unique(_first_alike(events, steps))]
    start, none = events.start[steps], np.zeros(len(steps), np.int64)
    one = len(np.unique(events.lane[steps])) == 1
    return one or bool(outermost(none, start, start + events.dur[steps]).all())


def _main_stream(events: Events, steps: IntArray, names: list[StepName]) -> tuple[IntArray, list[StepName]]:
    """The steps of the stream that is in steps the longest: a step is annotated once on every stream."""
    lanes, code = np.unique(events.lane[steps], return_inverse=True)
    at = np.flatnonzero(code == np.bincount(code, weights=events.dur[steps], minlength=len(lanes)).argmax())
    return steps[at], [names[i] for i in at.tolist()]
