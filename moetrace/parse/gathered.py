"""What gathering the rows of a trace gives, and what its two ways share: captures of graphs, nodes, what is said of steps."""

from __future__ import annotations

from dataclasses import dataclass

from moetrace.formats.events import LAUNCH, Events
from moetrace.formats.piles import Block
from moetrace.formats.texts import matching
from moetrace.parse.aside import CAPTURE_CALL
from moetrace.parse.batches import Batches, Dealt
from moetrace.parse.nesting import IntArray
from moetrace.parse.nodes import Nodes
from moetrace.parse.parts import Marks
from moetrace.parse.reach import Reach
from moetrace.parse.rows import resolve
from moetrace.parse.steps import StepName


@dataclass(frozen=True, slots=True)
class Gathered:
    """All rows, what the steps are, where layers and parts come from, and sentences on doubts."""

    batches: Batches
    steps: list[StepName]
    marks: Marks
    nodes: Nodes
    reach: Reach
    outside: int  # rows of no step
    doubts: list[str]
    notes: list[str]


def gathered(dealt: Dealt, known: tuple[Marks, Nodes, Reach], doubtful: list[str]) -> Gathered:
    """All of it; `known` is what ranges, nodes and launches say."""
    steps, said = [dealt.names[i] for i in dealt.used.tolist()], dealt.said
    if dealt.outside:
        said = [*said, f"{dealt.outside} op(s) lie outside of every step and are left out of the steps"]
    return Gathered(dealt.batches, steps, *known, dealt.outside, doubtful, said)


def learn(nodes: Nodes, marks: Marks, made: Block, events: Events) -> None:
    """Resolves nodes of graphs by what was around where they were made."""
    if len(made["start"]):
        rows = resolve(made, events)
        marks.place(rows, events)
        nodes.learn(rows)


def captures(events: Events) -> tuple[IntArray, IntArray]:
    """(thread, time) of each call that began the capture of a graph."""
    at = events.where(LAUNCH)
    at = at[matching(events.texts, events.name[at], CAPTURE_CALL.match)]
    return events.lane[at], events.start[at]
