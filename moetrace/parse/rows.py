"""Which events are op executions, and what hangs on each: its launch, operator, shapes, step, layer and part.

On a GPU every kernel, copy and memset is a row, linked to its launch by correlation id and to its operator by external
id, else by the operator that was running on the launching thread. On a CPU the rows are the outermost framework
operators whose work is known, and other operators that call nothing further; views and allocations are no rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moetrace import ops
from moetrace.formats.events import DEVICE_CLASSES, LAUNCH, MEMCPY, MEMSET, OPERATOR, Events
from moetrace.parse.nesting import IntArray, Ranges, last_before, lookup, outermost, parents, sort_ranges


@dataclass(slots=True)
class Rows:
    """Columns of the op executions being resolved, sorted by start. -1 stands for unknown codes and indices."""

    event: IntArray  # index into the events
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
    on_cpu: bool
    source: npt.NDArray[np.int8] = field(
        init=False
    )  # index into SOURCES: where operator and shapes came from

    def __post_init__(self) -> None:
        self.source = np.where(self.tensors >= 0, SHAPES, NONE).astype(np.int8)

    def __len__(self) -> int:
        return len(self.event)

    @property
    def end(self) -> IntArray:
        return self.start + self.dur


SOURCES = ("none", "name", "model", "shapes", "capture", "annotation")
NONE, NAME, MODEL, SHAPES, CAPTURE, ANNOTATION = range(6)


def op_rows(events: Events) -> Rows:
    """The op executions of a file, sorted by start."""
    device = events.where(*DEVICE_CLASSES)
    if len(device):
        return _device_rows(events, device)
    return _cpu_rows(events)


def _device_rows(events: Events, device: IntArray) -> Rows:
    launches = _launches(events)
    linked = _launch_of(
        events.correlation[launches], events.start[launches], events.correlation[device], events.start[device]
    )
    launch = lookup(launches, linked)
    have = launch >= 0
    graph_codes = [i for i, t in enumerate(events.texts) if "GraphLaunch" in t]
    is_graph = have & np.isin(events.name[launch], graph_codes)
    operator = _operators(events, device, launch)
    operator[is_graph & _enclosing(events, operator, launch)] = -1
    host_time = lookup(events.start, launch)
    return Rows(
        event=device,
        start=events.start[device],
        dur=events.dur[device],
        kernel=events.name[device],
        operator=lookup(events.name, operator),
        tensors=lookup(events.tensors, operator),
        message=events.tensors[device],
        nbytes=np.where(np.isin(events.cls[device], (MEMCPY, MEMSET)), events.nbytes[device], 0),
        launch=host_time,
        host_lane=lookup(events.lane, launch),
        host_time=host_time,
        graph=np.where(is_graph, events.correlation[device], -1),
        on_cpu=False,
    )


def _launches(events: Events) -> IntArray:
    """Launches with an id, without calls that lie in another of the same id on their thread (runtime and driver)."""
    found = events.where(LAUNCH)
    found = found[events.correlation[found] >= 0]
    ids, code = np.unique(events.correlation[found], return_inverse=True)
    if len(ids) == len(found):
        return found
    lanes, lane = np.unique(events.lane[found], return_inverse=True)
    key, start = code * len(lanes) + lane, events.start[found]
    end = start + events.dur[found]
    order = sort_ranges(key, start, end)
    return found[order][outermost(key[order], start[order], end[order])]


def _launch_of(ids: IntArray, start: IntArray, asked: IntArray, moment: IntArray) -> IntArray:
    """Index of the launch of each id: the last that began before the kernel, else (clocks apart) the first; -1 for none."""
    order = np.lexsort((start, ids))
    linked = lookup(order, last_before(ids[order], start[order], asked, moment))
    return np.where(linked >= 0, linked, first_match(ids, asked))


_DEVICE_CALL = re.compile(r"(cuda|hip|cu(?=[A-Z]))\w*(Launch|Memcpy|Memset)")


def doubts(events: Events) -> list[str]:
    """Sentences on launches that cannot be trusted: those of no kernel at all, and those that share a correlation id."""
    launches, device = _launches(events), events.where(*DEVICE_CLASSES)
    if not len(device):
        codes = [i for i, t in enumerate(events.texts) if _DEVICE_CALL.match(t)]
        calls = int(np.isin(events.name[events.where(LAUNCH)], codes).sum())
        return [_BLIND.format(calls)] if calls else []
    ids, count = np.unique(events.correlation[launches], return_counts=True)
    twice = ids[count > 1]
    kernels = int(np.isin(events.correlation[device], twice).sum())
    return [_TWICE.format(len(twice), kernels)] if kernels else []


_BLIND = (
    "{:,} CUDA or HIP launches and copies but no kernels: a GPU's run of which only the host was recorded; what follows is "
    "the time of the host's operators, not of the GPU (record with activities CPU and CUDA)"
)
_TWICE = (
    "{:,} correlation id(s) belong to several launches: their {:,} op(s) are taken as launched by the last before them, so "
    "steps and launch waits may be wrong (files of several ranks put together?)"
)


def _enclosing(events: Events, operator: IntArray, launch: IntArray) -> npt.NDArray[np.bool_]:
    """Whether an operator only ran around the launch: that of a graph says nothing about the kernels within."""
    begin = lookup(events.start, operator)
    end = begin + lookup(events.dur, operator, 0)
    moment = lookup(events.start, launch)
    same_id = lookup(events.external, operator) == lookup(events.external, launch)
    return np.asarray(same_id | ((begin <= moment) & (moment <= end)))


def first_match(keys: IntArray, asked: IntArray) -> IntArray:
    """Index of the first key equal to each value asked for; -1 for none."""
    if not len(keys):
        return np.full(len(asked), -1, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    at = np.clip(np.searchsorted(keys[order], asked), 0, len(keys) - 1)
    return np.where(keys[order][at] == asked, order[at], -1)


def _operators(events: Events, device: IntArray, launch: IntArray) -> IntArray:
    """The operator event of each device op: by the kernel's external id, the launch's, else by time on the thread."""
    operators = events.where(OPERATOR)
    ids = operators[events.external[operators] >= 0]
    have = launch >= 0
    external = np.where(
        events.external[device] >= 0, events.external[device], lookup(events.external, launch)
    )
    by_id = np.where(external >= 0, first_match(events.external[ids], external), -1)
    found = lookup(ids, by_id)
    rest = np.flatnonzero((found < 0) & have)
    if len(rest) and len(operators):
        running = Ranges(
            events.lane[operators], events.start[operators], events.start[operators] + events.dur[operators]
        )
        covering = running.covering(events.lane[launch[rest]], events.start[launch[rest]])
        found[rest] = lookup(operators, covering)
    return found


def _cpu_rows(events: Events) -> Rows:
    operators = events.where(OPERATOR)
    lane, start = events.lane[operators], events.start[operators]
    order = sort_ranges(lane, start, start + events.dur[operators])
    operators = operators[order]
    lane, start, end = lane[order], start[order], start[order] + events.dur[operators]
    codes, inverse = np.unique(events.name[operators], return_inverse=True)
    known = np.array([ops.operator_kind(events.texts[c]) is not None for c in codes], dtype=bool)[inverse]
    view = np.array([ops.is_view(events.texts[c]) for c in codes], dtype=bool)[inverse]
    parent = parents(lane, start, end)
    within = _has_ancestor(parent, known)
    has_child = np.zeros(len(operators), dtype=bool)
    has_child[parent[parent >= 0]] = True
    chosen = np.flatnonzero((known & ~within) | (~known & ~within & ~view & ~has_child))
    chosen = chosen[np.argsort(start[chosen], kind="stable")]
    rows = operators[chosen]
    return Rows(
        event=rows,
        start=events.start[rows],
        dur=events.dur[rows],
        kernel=events.name[rows],
        operator=events.name[rows],
        tensors=events.tensors[rows],
        message=np.full(len(rows), -1, dtype=np.int64),
        nbytes=np.zeros(len(rows), dtype=np.int64),
        launch=np.full(len(rows), -1, dtype=np.int64),
        host_lane=events.lane[rows],
        host_time=events.start[rows],
        graph=np.full(len(rows), -1, dtype=np.int64),
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
