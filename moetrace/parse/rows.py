"""Which events are op executions, and what hangs on each: its launch, operator, shapes, step, layer and part.

On a GPU every kernel, copy and memset is a row, linked to its launch by correlation id and to its operator by external
id, else by the operator that was running on the launching thread. On a CPU the rows are the outermost framework
operators whose work is known, and other operators that call nothing further; views and allocations are no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from moetrace import ops
from moetrace.formats.events import DEVICE_CLASSES, MEMCPY, MEMSET, NODE, OPERATOR, BoolArray, Events
from moetrace.formats.piles import Block
from moetrace.formats.texts import matching
from moetrace.grouping import rows_of_groups
from moetrace.parse.launches import first_match, launch_of, launches_of, replays
from moetrace.parse.nesting import IntArray, Ranges, lookup, parents, sort_ranges

_LATER = ("step", "layer", "part", "node", "note", "kind")  # columns that are found once the others are known


@dataclass(slots=True)
class Rows:
    """Columns of the op executions being resolved, sorted by start. -1 stands for unknown codes and indices."""

    start: IntArray
    dur: IntArray
    kernel: IntArray  # code of the kernel's or operator's name
    operator: IntArray  # code of the operator's name; -1: none
    tensors: IntArray  # code of the operator's input tensors
    message: IntArray  # code of the collective's own message, as the kernel states it
    nbytes: IntArray
    launch: IntArray  # ns; -1: no launch recorded
    host_lane: IntArray  # thread of the launch
    host_time: IntArray  # the moment that decides which host ranges cover the op
    graph: IntArray  # correlation of the graph launch; -1: launched by itself
    device: IntArray
    stream: IntArray
    copied: BoolArray  # a copy or memset, no kernel
    on_cpu: bool
    # Index into SOURCES: where operator and shapes came from.
    source: npt.NDArray[np.int8] = field(init=False)
    step: IntArray = field(init=False)
    layer: IntArray = field(init=False)  # by annotation
    part: IntArray = field(init=False)  # code of the annotated part
    node: IntArray = field(init=False)  # number of the graph node that it replays
    note: IntArray = field(init=False)  # code of what that node was annotated with
    kind: IntArray = field(init=False)  # code of what the names say that it is, once that was asked

    def __post_init__(self) -> None:
        self.source = np.where(self.tensors >= 0, SHAPES, NONE).astype(np.int8)
        for name in _LATER:
            setattr(self, name, np.full(len(self.start), -1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.start)

    @property
    def end(self) -> IntArray:
        return self.start + self.dur

    def columns(self) -> Block:
        """All columns by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "on_cpu"}

    @classmethod
    def of(cls, columns: Block, on_cpu: bool) -> Rows:
        """The rows that `columns` said, sorted by start, the longer first. Takes the columns out of there, one by one: of a
        long step all of them twice would be most of what is held."""
        order = np.lexsort((-columns["dur"], columns["start"]))
        in_order = bool((np.diff(order) > 0).all())

        def taken(name: str) -> IntArray:
            values = columns.pop(name)
            return values if in_order else values[order]

        none = np.zeros(0, dtype=np.int64)
        rows = cls(
            none, none, none, none, none, none, none, none, none, none, none, none, none, none > 0, on_cpu
        )  # fmt: skip
        for name in rows.columns():
            setattr(rows, name, taken(name))
        rows.source = rows.source.astype(np.int8)
        return rows


SOURCES = ("none", "name", "model", "shapes", "capture", "annotation", "period")
NONE, NAME, MODEL, SHAPES, CAPTURE, ANNOTATION, PERIOD = range(7)


def op_rows(events: Events) -> Rows:
    """The op executions of a file, sorted by start."""
    linked = link(events)
    if len(linked["start"]):
        return resolve(linked, events)
    return cpu_rows(events)[0]


def link(events: Events) -> Block:
    """The ops on devices, sorted by start, as columns: what each says itself, and its launch."""
    device = events.where(*DEVICE_CLASSES)
    launches = launches_of(events)
    linked = launch_of(
        events.correlation[launches], events.start[launches], events.correlation[device], events.start[device]
    )
    launch = lookup(launches, linked)
    copied = np.isin(events.cls[device], (MEMCPY, MEMSET))
    return {
        "start": events.start[device],
        "dur": events.dur[device],
        "kernel": events.name[device],
        "message": events.tensors[device],
        "nbytes": np.where(copied, events.nbytes[device], 0),
        "copied": copied,
        "device": events.device[device],
        "stream": events.lane[device],
        "correlation": events.correlation[device],
        "external": events.external[device],
        "node": events.node[device],
        "note": events.launched[device],
        "launch": lookup(events.start, launch),
        "host_lane": lookup(events.lane, launch),
        "launch_external": lookup(events.external, launch),
        "by_graph": matching(events.texts, lookup(events.name, launch), replays),
    }


def resolve(linked: Block, events: Events) -> Rows:
    """The rows of linked ops, with the operators among `events` that they belong to."""
    operator = _operators(events, linked)
    operator[linked["by_graph"] & _enclosing(events, operator, linked)] = -1
    tensors = lookup(events.tensors, operator)
    # A call that says its message.
    sent = np.array([t.nbytes > 0 for t in events.tensor_sets] + [False], dtype=bool)
    rows = Rows(
        **{
            name: linked[name]
            for name in (
                "start",
                "dur",
                "kernel",
                "nbytes",
                "launch",
                "host_lane",
                "device",
                "stream",
                "copied",
            )
        },
        message=np.where((linked["message"] < 0) & sent[tensors], tensors, linked["message"]),
        operator=lookup(events.name, operator),
        tensors=np.where(sent[tensors], -1, tensors),
        host_time=linked["launch"],
        graph=np.where(linked["by_graph"], linked["correlation"], -1),
        on_cpu=False,
    )
    rows.node, rows.note = linked["node"], linked["note"]
    return rows


def made_nodes(events: Events) -> Block:
    """The nodes of graphs as ops that ran where and when they were made, as columns like those of `link`."""
    at = events.where(NODE)
    none, start = np.full(len(at), -1, dtype=np.int64), events.start[at]
    return {
        **dict.fromkeys(("message", "device", "stream", "correlation", "external", "launch_external", "note"), none),
        **dict.fromkeys(("copied", "by_graph"), np.zeros(len(at), dtype=bool)),
        "start": start, "launch": start, "dur": none + 1, "nbytes": none + 1, "kernel": events.name[at],
        "host_lane": events.lane[at], "node": events.node[at],
    }  # fmt: skip


def _enclosing(events: Events, operator: IntArray, linked: Block) -> BoolArray:
    """Whether an operator only ran around the launch: that of a graph says nothing about the kernels within."""
    begin = lookup(events.start, operator)
    end = begin + lookup(events.dur, operator, 0)
    same_id = lookup(events.external, operator) == linked["launch_external"]
    return np.asarray(same_id | ((begin <= linked["launch"]) & (linked["launch"] <= end)))


def _operators(events: Events, linked: Block) -> IntArray:
    """The operator event of each device op: by the kernel's external id, the launch's, else by time on the thread."""
    operators = events.where(OPERATOR)
    ids = operators[events.external[operators] >= 0]
    external = np.where(linked["external"] >= 0, linked["external"], linked["launch_external"])
    by_id = np.where(external >= 0, first_match(events.external[ids], external), -1)
    found = lookup(ids, by_id)
    rest = np.flatnonzero((found < 0) & (linked["host_lane"] >= 0))
    if len(rest) and len(operators):
        running = Ranges(
            events.lane[operators], events.start[operators], events.start[operators] + events.dur[operators]
        )
        covering = running.covering(linked["host_lane"][rest], linked["launch"][rest])
        found[rest] = lookup(operators, covering)
    return found


def cpu_rows(
    events: Events, until: int | None = None, parental: IntArray | None = None
) -> tuple[Rows, IntArray]:
    """(the rows of a CPU's run, indices of operators that run on and called others). With `until`, only operators that end
    by then are rows; `parental` are those that are known to have called others, in an earlier part of the trace."""
    operators = events.where(OPERATOR)
    lane, start = events.lane[operators], events.start[operators]
    order = sort_ranges(lane, start, start + events.dur[operators])
    operators = operators[order]
    lane, start, end = lane[order], start[order], start[order] + events.dur[operators]
    name = events.name[operators]
    known = matching(events.texts, name, lambda text: ops.operator_kind(text) is not None)
    view = matching(events.texts, name, ops.is_view)
    parent = parents(lane, start, end)
    within = _has_ancestor(parent, known)
    has_child = np.zeros(len(operators), dtype=bool)
    has_child[parent[parent >= 0]] = True
    if parental is not None:
        has_child |= np.isin(operators, parental)
    chosen = (known & ~within) | (~known & ~within & ~view & ~has_child)
    running = end > until if until is not None else np.zeros(len(operators), dtype=bool)
    took = np.flatnonzero(chosen & ~running)
    took = took[np.argsort(start[took], kind="stable")]
    return _host_rows(events, operators[took]), operators[running & has_child]


def _host_rows(events: Events, rows: IntArray) -> Rows:
    none = np.full(len(rows), -1, dtype=np.int64)
    return Rows(
        start=events.start[rows],
        dur=events.dur[rows],
        kernel=events.name[rows],
        operator=events.name[rows],
        tensors=events.tensors[rows],
        message=none,
        nbytes=np.zeros(len(rows), dtype=np.int64),
        launch=none,
        host_lane=events.lane[rows],
        host_time=events.start[rows],
        graph=none,
        device=events.device[rows],
        stream=events.lane[rows],
        copied=np.zeros(len(rows), dtype=bool),
        on_cpu=True,
    )


def _has_ancestor(parent: IntArray, marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether any ancestor of each node is marked."""
    found = np.zeros(len(parent), dtype=bool)
    at = parent.copy()
    while (at >= 0).any():
        alive = at >= 0
        found |= alive & marked[at]
        at = np.where(alive, parent[at], -1)
    return found


def by_step(rows: Rows) -> Iterator[tuple[int, IntArray]]:
    """Each step that has rows, with these."""
    inside = rows.step[rows.step >= 0]
    if not len(inside):
        return
    low = int(inside.min())
    for i, at in enumerate(rows_of_groups(rows.step - low, int(inside.max()) + 1 - low), low):
        if len(at):
            yield i, at
