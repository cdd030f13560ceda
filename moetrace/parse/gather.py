"""Events -> rows with their steps, in batches of whole steps: at once, or by way of the disk where they are many (`long`)."""

from __future__ import annotations

import numpy as np

from moetrace.formats.events import MODULE, RANGE, Events, Stored
from moetrace.parse.batches import PIECE, Batches, Dealt, StepOf, no_steps
from moetrace.parse.gathered import Gathered, captures, gathered, learn
from moetrace.parse.launches import doubts
from moetrace.parse.long import Long
from moetrace.parse.nodes import Nodes
from moetrace.parse.parts import Marks
from moetrace.parse.places import Places
from moetrace.parse.reach import Reach
from moetrace.parse.rows import Rows, made_nodes, op_rows
from moetrace.parse.steps import StepName


def gather(events: Events | Stored) -> Gathered:
    """The rows of a trace's events, which are used up if they are stored."""
    if isinstance(events, Events):
        marks = Marks(events.texts)
        for cls in (RANGE, MODULE):
            marks.saw(cls, events.name[events.where(cls)])
        rows, places, nodes, reach = op_rows(events), Places(events), Nodes(), Reach(events)
        marks.place(rows, events)
        places.captured(*captures(events))
        places.weigh(rows)
        reach.saw(rows, events)
        learn(nodes, marks, made_nodes(events), events)
        dealt = _as_one(rows, *places.choose())
        return gathered(dealt, (marks, nodes, reach), doubts(events))
    return Long(events).gather()


def _as_one(rows: Rows, step_of: StepOf, names: list[StepName], said: list[str]) -> Dealt:
    """All rows as one batch, with their steps."""
    if not names:
        rows.step = np.zeros(len(rows), dtype=np.int64)
        none = np.zeros(1, dtype=np.int64)
        return Dealt(Batches([rows], rows.on_cpu), [PIECE], none, 0, [no_steps(1)])
    step = step_of(rows)
    used = np.unique(step[step >= 0])
    number = np.full(len(names) + 1, -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    rows.step = number[step]
    outside = int((rows.step < 0).sum())
    return Dealt(Batches([rows], rows.on_cpu), names, used, outside, said if len(used) else [])
