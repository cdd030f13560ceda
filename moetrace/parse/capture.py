"""Capture-time traces: the launches made while a graph was recorded give its replayed kernels operators and shapes.

A replayed graph's kernels share one correlation id and carry no operator. The capture of the same graph holds every
launch with its operator, in the order in which a single-stream replay runs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from moetrace.formats.events import LAUNCH, OPERATOR, Events, Tensors
from moetrace.parse.nesting import Ranges
from moetrace.parse.rows import CAPTURE, Rows

_LAUNCHES = re.compile(
    r"(cuda|hip|cu)\w*(Launch\w*Kernel\w*|LaunchKernel\w*|LaunchCooperative\w*)|(cuda|hip|cu)Mem(cpy|set)\w*"
)
_BEGIN, _END = re.compile(r"(cuda|hip|cu)StreamBeginCapture"), re.compile(r"(cuda|hip|cu)StreamEndCapture")


@dataclass(frozen=True, slots=True)
class Captured:
    """One launch of a capture: the kernel it names (empty if the format does not say), its operator and input tensors."""

    kernel: str
    operator: str
    tensors: Tensors | None


def captured_graphs(events: Events) -> list[list[Captured]]:
    """The launches of each graph captured in a trace, in order; the whole trace's if it shows no capture calls."""
    launches = events.where(LAUNCH)
    names = [events.texts[c] for c in events.name[launches]]
    operators = events.where(OPERATOR)
    by_id = {int(events.external[i]): int(i) for i in operators[::-1] if events.external[i] >= 0}
    running = Ranges(
        events.lane[operators], events.start[operators], events.start[operators] + events.dur[operators]
    )
    covering = running.covering(events.lane[launches], events.start[launches])
    graphs: list[list[Captured]] = []
    loose: list[Captured] = []
    current: list[Captured] | None = None
    for at, name, cover in zip(launches.tolist(), names, covering.tolist(), strict=True):
        if _BEGIN.match(name):
            current = []
        elif _END.match(name):
            if current:
                graphs.append(current)
            current = None
        elif _LAUNCHES.match(name):
            operator = by_id.get(int(events.external[at]), int(operators[cover]) if cover >= 0 else -1)
            captured = _captured(events, at, operator)
            (loose if current is None else current).append(captured)
    return graphs or ([loose] if loose else [])


def _captured(events: Events, launch: int, operator: int) -> Captured:
    kernel = events.texts[events.launched[launch]] if events.launched[launch] >= 0 else ""
    if operator < 0:
        return Captured(kernel, "", None)
    tensors = int(events.tensors[operator])
    return Captured(
        kernel, events.texts[events.name[operator]], events.tensor_sets[tensors] if tensors >= 0 else None
    )


def apply(rows: Rows, events: Events, capture: Events) -> list[str]:
    """Gives every graph-replayed row the operator and tensors of its capture, in place; returns sentences on how it went.

    Each distinct sequence of kernels is matched once and the result is broadcast over its replays.
    """
    graphs = captured_graphs(capture)
    replays = np.unique(rows.graph[rows.graph >= 0])
    if not len(replays):
        return ["a capture trace was given, but the trace replays no graph"]
    solved: dict[bytes, list[int | None]] = {}
    matched = total = 0
    pool: list[Captured] = []
    for replay in replays.tolist():
        at = np.flatnonzero(rows.graph == replay)
        key = rows.kernel[at].tobytes()
        if key not in solved:
            solved[key] = _match([events.texts[c] for c in rows.kernel[at]], graphs, pool)
        found = solved[key]
        total += len(at)
        matched += sum(i is not None for i in found)
        for row, index in zip(at.tolist(), found, strict=True):
            if index is not None:
                _give(rows, events, row, pool[index])
    note = f"capture trace: {matched} of {total} graph-replayed ops matched to their capture"
    return [note] if matched == total else [f"{note}; the others have names only"]


def _give(rows: Rows, events: Events, row: int, captured: Captured) -> None:
    if captured.operator:
        rows.operator[row] = _code(events.texts, captured.operator)
    if captured.tensors is not None:
        rows.tensors[row] = _tensor_code(events.tensor_sets, captured.tensors)
        rows.source[row] = CAPTURE


def _code(texts: list[str], text: str) -> int:
    if text not in texts:
        texts.append(text)
    return texts.index(text)


def _tensor_code(sets: list[Tensors], tensors: Tensors) -> int:
    if tensors not in sets:
        sets.append(tensors)
    return sets.index(tensors)


def _match(kernels: list[str], graphs: list[list[Captured]], pool: list[Captured]) -> list[int | None]:
    """For each replayed kernel the index into `pool` of its captured launch, by name and order."""
    best: list[int | None] = [None] * len(kernels)
    for graph in graphs:
        base = len(pool)
        pool.extend(graph)
        names = [c.kernel for c in graph]
        if not any(names):  # CUDA launches do not name their kernels: only an equal count is trustworthy
            found: list[int | None] = (
                [base + i for i in range(len(graph))] if len(graph) == len(kernels) else []
            )
        else:
            found = [None] * len(kernels)
            for block in SequenceMatcher(a=kernels, b=names, autojunk=False).get_matching_blocks():
                for k in range(block.size):
                    found[block.a + k] = base + block.b + k
        if sum(i is not None for i in found) > sum(i is not None for i in best):
            best = found
    return best
