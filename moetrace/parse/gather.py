"""Events -> rows with their steps, in batches of whole steps: at once, or by way of the disk where they are many.

The long way joins kernels with launches by correlation id, then goes through the host's time window by window for
operators and annotations (an operator that runs on is carried to the next one), then deals the rows out by step.
What it does not find, the short way would: an operator that a kernel names by its external id and that did not run
in the window of the kernel's launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from moetrace.parse.aside import CAPTURE_CALL
from moetrace.parse.nesting import IntArray
from moetrace.parse.nodes import Nodes
from moetrace.parse.parts import Marks
from moetrace.parse.places import Places
from moetrace.parse.reach import Reach
from moetrace.parse.rows import (
    Rows,
    blind,
    cpu_rows,
    device_calls,
    doubts,
    link,
    made_nodes,
    op_rows,
    resolve,
    shared,
    shared_ids,
)
from moetrace.parse.steps import StepName, describe

_HOST = (OPERATOR, RANGE, MODULE)


class Batches:
    """Rows in batches of whole steps, in the order of steps; each batch is sorted by start."""

    def __init__(self, batches: list[Rows] | list[Pile], on_cpu: bool) -> None:
        self._batches, self._on_cpu = batches, on_cpu

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Rows]:
        for batch in self._batches:
            if isinstance(batch, Rows):
                yield batch
            elif len(batch):
                yield Rows.of(batch.all(), self._on_cpu)

    def update(self, change: Callable[[Rows], None]) -> None:
        """Lets `change` work on each batch in place."""
        for batch in self._batches:
            if isinstance(batch, Rows):
                change(batch)
            elif len(batch):
                rows = Rows.of(batch.all(), self._on_cpu)
                change(rows)
                batch.clear()
                batch.append(rows.columns())


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
    stated: bool  # whether the trace says where its steps are


def gather(events: Events | Stored) -> Gathered:
    """The rows of a trace's events, which are used up if they are stored."""
    if isinstance(events, Events):
        marks = Marks(events.texts)
        for cls in (RANGE, MODULE):
            marks.saw(cls, events.name[events.where(cls)])
        rows, places, nodes, reach = op_rows(events), Places(events), Nodes(), Reach(events)
        marks.place(rows, events)
        places.captured(*_captures(events))
        places.weigh(rows)
        reach.saw(rows, events)
        _learn(nodes, marks, made_nodes(events), events)
        step_of, names, said = places.choose()
        rows.step = step_of(rows)
        used, rows.step = _renumbered(rows.step, names)
        outside = int((rows.step < 0).sum()) if names else 0
        if not names:
            rows.step = np.zeros(len(rows), dtype=np.int64)
        known = (marks, nodes, reach)
        return _gathered(Batches([rows], rows.on_cpu), names, used, said, known, outside, doubts(events), 1)
    return _Long(events).gather()


def _learn(nodes: Nodes, marks: Marks, made: Block, events: Events) -> None:
    """Resolves nodes of graphs by what was around where they were made."""
    if len(made["start"]):
        rows = resolve(made, events)
        marks.place(rows, events)
        nodes.learn(rows)


def _renumbered(step: IntArray, names: Sequence[StepName]) -> tuple[IntArray, IntArray]:
    """(the steps that have ops, each row's place among these); -1 stays."""
    used = np.unique(step[step >= 0])
    number = np.full(len(names) + 1, -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    return used, number[step]


def _gathered(
    batches: Batches, names: Sequence[StepName], used: IntArray, said: list[str], known: tuple[Marks, Nodes, Reach],
    outside: int, doubtful: list[str], pieces: int,
) -> Gathered:  # fmt: skip
    steps = [names[i] for i in used.tolist()]
    if not names:
        steps = [StepName(None)] * pieces
        whole = "the whole trace is taken as one step"
        said = [f"no step annotation was found: {whole if pieces == 1 else _PIECES.format(pieces)}"]
    elif not len(used):
        said = []
    if outside:
        said = [*said, f"{outside} op(s) lie outside of every step and are left out of the steps"]
    return Gathered(batches, steps, *known, outside, doubtful, said, bool(names))


_PIECES = "the trace is cut into {} pieces of like numbers of ops, which stand for steps"


class _Long:
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
            places.captured(*_captures(self._events.with_columns(block)))
        pile = self._resolved(self._linked(), places)
        doubtful = blind(self._calls) if self._on_cpu else shared(self._ids, self._twice)
        step_of, names, said = places.choose()
        count = np.zeros(len(names) + 1, dtype=np.int64)
        first = np.full(len(names) + 1, np.iinfo(np.int64).max)
        for block in pile.blocks():
            rows = Rows.of(block, self._on_cpu)
            step = step_of(rows)
            count += np.bincount(step + 1, minlength=len(count))
            np.minimum.at(first, step + 1, rows.start)
        used = np.flatnonzero(count[1:])
        outside = int(count[0]) if names else 0
        batches = (
            self._dealt(pile, step_of, used, count[1:][used], first[1:][used])
            if len(used)
            else self._pieces(pile)
        )
        known = (self._marks, self._nodes, self._reach)
        return _gathered(batches, names, used, said, known, outside, doubtful, len(batches))

    def _steps(self) -> Events:
        """The ranges that may be steps, in memory; takes note of what ranges are called on the way."""
        events = self._events
        is_step = np.array([describe(text) is not None for text in events.head.texts] + [False], dtype=bool)
        found: list[Block] = []
        for cls in (RANGE, DEVICE_RANGE, MODULE):
            for block in events.blocks(cls):
                self._marks.saw(cls, block["name"])
                if cls != MODULE:
                    found.append(_where(block, is_step[block["name"]]))
        return events.with_columns(joined(found))

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
            pile.append(block)
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
            _learn(self._nodes, self._marks, made_nodes(events.with_columns(nodes)), part)
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

    # -- batches -----------------------------------------------------------------------------------------------------
    def _dealt(
        self,
        pile: Pile,
        step_of: Callable[[Rows], IntArray],
        used: IntArray,
        count: IntArray,
        first: IntArray,
    ) -> Batches:
        """The rows by step, several steps to a batch; those of no step lie with the one that began last before them."""
        batch = (np.cumsum(count) - count) // ROWS
        batch = np.unique(batch, return_inverse=True)[1].reshape(-1)
        order = np.argsort(first, kind="stable")
        number = np.full(int(used[-1]) + 2, -1, dtype=np.int64)
        number[used] = np.arange(len(used))
        parts = int(batch[-1]) + 1
        out = [Pile(self._events.spill) for _ in range(parts)]
        for block in pile.blocks():
            rows = Rows.of(block, self._on_cpu)
            rows.step = number[step_of(rows)]
            near = order[np.clip(np.searchsorted(first[order], rows.start, side="right") - 1, 0, None)]
            code = batch[np.where(rows.step >= 0, rows.step, near)]
            columns = rows.columns()
            for i in np.unique(code).tolist():
                out[i].append(_where(columns, code == i))
        pile.clear()
        return Batches(out, self._on_cpu)

    def _pieces(self, pile: Pile) -> Batches:
        """The rows in pieces of time, each a step of its own."""
        if not len(pile):
            return Batches([pile], self._on_cpu)
        sample = np.sort(np.concatenate([b["start"][::16] for b in pile.blocks()]))
        parts = -(-len(pile) // ROWS)
        edges = np.unique(sample[np.arange(1, parts) * len(sample) // parts])
        out = pile.scatter(lambda b: np.searchsorted(edges, b["start"], side="right"), len(edges) + 1)
        out = [piece for piece in out if len(piece)]
        for i, piece in enumerate(out):
            rows = Rows.of(piece.all(), self._on_cpu)
            rows.step = np.full(len(rows), i, dtype=np.int64)
            piece.clear()
            piece.append(rows.columns())
        return Batches(out, self._on_cpu)


def _captures(events: Events) -> tuple[IntArray, IntArray]:
    """(thread, time) of each call that began the capture of a graph."""
    codes = [code for code, text in enumerate(events.texts) if CAPTURE_CALL.match(text)]
    at = events.where(LAUNCH) if codes else np.zeros(0, np.int64)
    at = at[np.isin(events.name[at], codes)]
    return events.lane[at], events.start[at]


def _where(block: Block, at: BoolArray | IntArray) -> Block:
    return {name: values[at] for name, values in block.items()}
