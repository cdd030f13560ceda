"""Captured graphs: what a capture-time trace shows of each graph that was recorded in it, launch by launch.

An engine captures one graph for each of many batch sizes. Which size a graph is for is told by the annotation around
its capture, else by the rows that most of its launches work on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.formats.events import LAUNCH, OPERATOR, RANGE, Events
from moetrace.formats.texts import codes_of, matching
from moetrace.parse.launches import first_match
from moetrace.parse.nesting import IntArray, Ranges, lookup

_LAUNCH = re.compile(r"(cuda|hip|cu)\w*Launch(\w*Kernel|Cooperative)\w*")
_COPY = re.compile(r"(cuda|hip|cu)Mem(cpy|set)\w*")
_BEGIN, _END = re.compile(r"(cuda|hip|cu)StreamBeginCapture"), re.compile(r"(cuda|hip|cu)StreamEndCapture")
_LABEL = re.compile(r"capture_(\d{1,9})_\w+")  # vLLM: tokens and mode; SGLang: sequences and mode

UNNAMED, COPIED, FOREIGN = -1, -2, -3  # kernel codes of launches: not named, a copy, a name the trace has not


@dataclass(frozen=True, slots=True)
class Graph:
    """One captured graph: its launches in order. `tokens` is the rows it was captured for, None if nothing tells."""

    tokens: int | None
    kernel: IntArray  # the name's code in the trace's texts, or one of the three above
    operator: IntArray  # code in the capture's texts; -1: none
    tensors: IntArray  # code in the capture's tensor sets; -1: none

    @property
    def named(self) -> bool:
        """Whether its launches say which kernel they launch, as HIP's do and CUDA's do not."""
        return bool(((self.kernel >= 0) | (self.kernel == FOREIGN)).any())


def captured_graphs(capture: Events, texts: Sequence[str] = ()) -> list[Graph]:
    """The graphs captured in a trace, each once; the whole trace as one if it shows no capture calls.

    `texts` are those of the trace that replays them: kernel codes are theirs.
    """
    launches = capture.where(LAUNCH)
    name = capture.name[launches]
    begins, ends = _called(capture, name, _BEGIN), _called(capture, name, _END)
    copies = _called(capture, name, _COPY)
    used = np.flatnonzero(copies | _called(capture, name, _LAUNCH))
    marks = np.flatnonzero(begins | ends)
    opened = np.flatnonzero(begins[marks[:-1]] & ends[marks[1:]]) if len(marks) else marks
    spans = [(int(marks[i]), int(marks[i + 1])) for i in opened]
    labels = _labels(capture, launches[[low for low, _ in spans]])
    kernel = np.where(copies, COPIED, _kernel_codes(capture, launches, texts))
    operators = _operators(capture, launches)
    operator, tensors = lookup(capture.name, operators), lookup(capture.tensors, operators)
    rows = _leading(capture)
    found: dict[tuple[int | None, bytes, bytes, bytes], Graph] = {}
    for (low, high), label in zip(spans or [(-1, len(launches))], labels or [None], strict=True):
        at = used[np.searchsorted(used, low) : np.searchsorted(used, high)]
        if len(at):
            size = label if label is not None else _most_common(lookup(rows, tensors[at]))
            graph = Graph(size, kernel[at], operator[at], tensors[at])
            key = (size, graph.kernel.tobytes(), graph.operator.tobytes(), graph.tensors.tobytes())
            found.setdefault(key, graph)
    return list(found.values())


def _called(events: Events, name: IntArray, pattern: re.Pattern[str]) -> npt.NDArray[np.bool_]:
    return matching(events.texts, name, pattern.match)


def _kernel_codes(capture: Events, launches: IntArray, texts: Sequence[str]) -> IntArray:
    launched = capture.launched[launches]
    table = np.full(len(capture.texts) + 1, UNNAMED, dtype=np.int64)
    used = np.unique(launched[launched >= 0]).tolist()
    own = codes_of(texts, [capture.texts[code] for code in used])
    for code in used:
        text = capture.texts[code]
        table[code] = own.get(text, FOREIGN) if text else UNNAMED
    return table[launched]


def _operators(capture: Events, launches: IntArray) -> IntArray:
    """The operator event of each launch: by its external id, else the innermost that ran on the thread; -1 for none."""
    operators = capture.where(OPERATOR)
    start, lane = capture.start[operators], capture.lane[operators]
    running = Ranges(lane, start, start + capture.dur[operators])
    found = running.covering(capture.lane[launches], capture.start[launches])
    external = capture.external[launches]
    by_id = first_match(capture.external[operators], external)
    return lookup(operators, np.where((external >= 0) & (by_id >= 0), by_id, found))


def _labels(capture: Events, begins: IntArray) -> list[int | None]:
    """What the annotation around each begin of a capture says it is for."""
    sizes = {c: int(m[1]) for c, text in enumerate(capture.texts) if (m := _LABEL.fullmatch(text))}
    ranges = capture.where(RANGE)
    ranges = ranges[np.isin(capture.name[ranges], list(sizes))]
    start = capture.start[ranges]
    around = Ranges(capture.lane[ranges], start, start + capture.dur[ranges])
    found = lookup(ranges, around.covering(capture.lane[begins], capture.start[begins]))
    return [sizes[int(capture.name[i])] if i >= 0 else None for i in found.tolist()]


def _leading(capture: Events) -> IntArray:
    """The rows of the first matrix of each tensor set; -1 for none."""
    firsts = (next((s[0] for s in t.shapes if len(s) >= 2), -1) for t in capture.tensor_sets)
    return np.fromiter(firsts, dtype=np.int64)


def _most_common(rows: IntArray) -> int | None:
    """The number of rows that most launches have; None if no number does."""
    values, counts = np.unique(rows[rows >= 0], return_counts=True)
    if not len(values) or 2 * counts.max() <= counts.sum():
        return None
    return int(values[counts.argmax()])
