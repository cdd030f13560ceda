"""The way of a long trace, by the disk, from events to rows with their steps.

Kernels are joined with launches by correlation id, part by part; then the host's time is gone through window by window for
operators and annotations (an operator that runs on is carried to the next one); then the rows are dealt out by step.
What it does not find, the short way would: an operator that a kernel names by its external id and that did not run
in the window of the kernel's launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moetrace.formats.events import (
    COLUMNS,
    DEVICE_RANGE,
    KERNEL,
    LAUNCH,
    MODULE,
    NODE,
    OPERATOR,
    RANGE,
    BoolArray,
    Events,
    Stored,
    joined,
)
from moetrace.formats.piles import ROWS, Block, Pile
from moetrace.formats.texts import alike, matching
from moetrace.parse.batches import deal
from moetrace.parse.gathered import Gathered, captures, gathered, learn
from moetrace.parse.launches import blind, device_calls, shared, shared_ids
from moetrace.parse.nesting import IntArray
from moetrace.parse.nodes import Nodes
from moetrace.parse.parts import Marks
from moetrace.parse.places import Places
from moetrace.parse.reach import Reach
from moetrace.parse.rows import Rows, cpu_rows, link, made_nodes, resolve
from moetrace.parse.steps import describe

_HOST = (OPERATOR, RANGE, MODULE)


class Long:
    """The way by the disk: see the module."""

    def __init__(self, events: Stored) -> None:
        self._events = events
        self._marks, self._nodes, self._reach = Marks(events.head.texts), Nodes(), Reach(events.head)
        self._ids = self._twice = self._calls = 0
        self._on_cpu = not events.count(KERNEL)

    def gather(self) -> Gathered:
        """Everything, in this order: steps and marks, launches, windows, batches."""
        places = Places(self._steps())
        for block in self._events.blocks(LAUNCH):
            places.captured(*captures(self._events.with_columns(block)))
        pile = self._resolved(self._linked(), places)
        doubtful = blind(self._calls) if self._on_cpu else shared(self._ids, self._twice)
        step_of, names, said = places.choose()
        # Where names are too many for memory, they are most of what a row takes.
        batch = max(1, ROWS // 2) if self._events.head.texts.spilled else ROWS
        dealt = deal(pile, self._on_cpu, self._events.spill, step_of, names, batch)
        dealt = replace(dealt, said=[*(said if len(dealt.used) else []), *dealt.said])
        return gathered(dealt, (self._marks, self._nodes, self._reach), doubtful)

    def _steps(self) -> Events:
        """The ranges that may be steps, in memory; takes note of what ranges are called on the way."""
        events = self._events
        found: list[Block] = []
        for cls in (RANGE, DEVICE_RANGE, MODULE):
            for block in events.blocks(cls):
                self._marks.saw(cls, block["name"])
                if cls != MODULE:
                    is_step = matching(
                        events.head.texts, block["name"], lambda text: describe(text) is not None
                    )
                    found.append(_where(block, is_step))
        ranges = joined(found)
        if ranges:
            ranges["name"] = alike(events.head.texts, ranges["name"])
        return events.with_columns(ranges)

    # -- launches ----------------------------------------------------------------------------------------------------
    def _linked(self) -> Iterator[Block]:
        """The ops on devices with their launches, block by block."""
        events = self._events
        if self._on_cpu:
            for block in events.blocks(LAUNCH):
                self._calls += device_calls(events.with_columns(block))
            return
        parts = -(-events.count(LAUNCH) // ROWS) or 1
        if parts == 1:
            launches = events.take(LAUNCH)
            self._ids = shared_ids(launches)[0]
            columns = {name: getattr(launches, name) for name in COLUMNS}
            for block in events.blocks(KERNEL):
                yield self._link(joined([block, columns]))
        else:
            launched = self._by_id(LAUNCH, parts)
            for ops, calls in zip(self._by_id(KERNEL, parts), launched, strict=True):
                columns = calls.all()
                self._ids += shared_ids(events.with_columns(columns))[0] if columns else 0
                for block in ops.blocks():
                    yield self._link(joined([block, columns]) if columns else block)
                ops.clear()
                calls.clear()
        events.free(LAUNCH)
        events.free(KERNEL)

    def _by_id(self, cls: int, parts: int) -> list[Pile]:
        pile = Pile(self._events.spill)
        for block in self._events.blocks(cls):
            pile.append(block if cls == KERNEL else _where(block, block["correlation"] >= 0))
        self._events.free(cls)
        return pile.scatter(lambda block: block["correlation"] % parts, parts)

    def _link(self, columns: Block) -> Block:
        part = self._events.with_columns(columns)
        self._twice += shared_ids(part)[1]
        return link(part)

    # -- windows -----------------------------------------------------------------------------------------------------
    def _resolved(self, linked: Iterator[Block], places: Places) -> Pile:
        """The rows, with operators, layers and parts, in no order."""
        events, out = self._events, Pile(self._events.spill)
        edges = self._edges()
        made = self._made(edges)
        host = self._windows(edges)
        if self._on_cpu:
            for _ in linked:
                continue
            windows: Iterator[Iterator[Block]] = (iter(()) for _ in range(len(edges) + 1))
        else:
            windows = self._by_time(linked, edges)
        carried: Block = {}
        parental: BoolArray = np.zeros(0, dtype=bool)
        for i, (own, ops, nodes) in enumerate(zip(host, windows, made, strict=True)):
            until = int(edges[i]) if i < len(edges) else None
            columns = joined([block for block in (carried, own) if block])
            part = events.with_columns(columns)
            parental = np.concatenate([parental, np.zeros(len(part.cls) - len(parental), dtype=bool)])
            called: IntArray = np.zeros(0, dtype=np.int64)
            if self._on_cpu:
                rows, called = cpu_rows(part, until, np.flatnonzero(parental))
                self._put(out, rows, part, places)
            for block in ops:
                self._put(out, resolve(block, part), part, places)
            learn(self._nodes, self._marks, made_nodes(events.with_columns(nodes)), part)
            if until is not None:
                open_ = np.flatnonzero(part.start + part.dur > until)
                parental = np.isin(open_, called)
                carried = _where(columns, open_) if columns else {}
        return out

    def _put(self, out: Pile, rows: Rows, part: Events, places: Places) -> None:
        self._marks.place(rows, part)
        places.weigh(rows)
        self._reach.saw(rows, part)
        out.append(rows.columns())

    def _made(self, edges: IntArray) -> list[Block]:
        """The nodes of graphs that were made in each window."""
        nodes = joined(list(self._events.blocks(NODE)))
        self._events.free(NODE)
        if not nodes:
            return [{} for _ in range(len(edges) + 1)]
        window = np.searchsorted(edges, nodes["start"], side="left")
        return [_where(nodes, window == i) for i in range(len(edges) + 1)]

    def _edges(self) -> IntArray:
        """Times, in ns, between which about as many host events begin as are worked on at once."""
        total = sum(self._events.count(cls) for cls in _HOST)
        parts = -(-total // (2 * ROWS))
        if parts <= 1:
            return np.zeros(0, dtype=np.int64)
        stride = max(1, total // (1 << 16))
        sample = np.sort(
            np.concatenate([b["start"][::stride] for cls in _HOST for b in self._events.blocks(cls)])
        )
        return np.unique(sample[np.arange(1, parts) * len(sample) // parts])

    def _windows(self, edges: IntArray) -> Iterator[Block]:
        """The host events that begin in each window."""
        pile = Pile(self._events.spill)
        for cls in _HOST:
            for block in self._events.blocks(cls):
                pile.append(block)
            self._events.free(cls)
        parts = pile.scatter(lambda b: np.searchsorted(edges, b["start"], side="left"), len(edges) + 1)
        for part in parts:
            yield part.all()
            part.clear()

    def _by_time(self, linked: Iterator[Block], edges: IntArray) -> Iterator[Iterator[Block]]:
        """The linked ops by the window of their launch, of their own start where that is not known."""
        if not len(edges):
            yield linked
            return
        pile = Pile(self._events.spill)
        for block in linked:
            pile.append(block)

        def window(block: Block) -> IntArray:
            moment = np.where(block["host_lane"] >= 0, block["launch"], block["start"])
            return np.searchsorted(edges, moment, side="left")

        for part in pile.scatter(window, len(edges) + 1):
            yield part.blocks()
            part.clear()


def _where(block: Block, at: BoolArray | IntArray) -> Block:
    return {name: values[at] for name, values in block.items()}
