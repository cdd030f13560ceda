"""The graphs of capture-time traces: one file, or one per batch size or rank as engines write them, with codes in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from moetrace import formats
from moetrace.formats.events import LAUNCH, OPERATOR, RANGE, Codes, Events, Tensors
from moetrace.formats.remote import Remote
from moetrace.parse.graphs import Graph, captured_graphs
from moetrace.parse.nesting import IntArray, lookup


@dataclass(frozen=True, slots=True)
class Captured:
    """Graphs, each once, and the texts and tensor sets that their codes of operators and tensors stand for."""

    graphs: list[Graph] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tensor_sets: list[Tensors] = field(default_factory=list)


def captured_in(files: Sequence[Path | Remote], events: Events) -> Captured:
    """The graphs captured in some traces, for a trace with these events.

    Of several ranks' captures those of the trace's own rank are taken, where there are any. Holds one file at a time.
    """
    texts, sets = Codes(), Codes()
    found: list[tuple[int, Graph]] = []
    for file in files:
        capture = formats.read_whole(file, LAUNCH, OPERATOR, RANGE)
        graphs = captured_graphs(capture, events.texts)
        operator = _table(texts, capture.texts, [g.operator for g in graphs])
        tensors = _table(sets, capture.tensor_sets, [g.tensors for g in graphs])
        for g in graphs:
            moved = replace(g, operator=lookup(operator, g.operator), tensors=lookup(tensors, g.tensors))
            found.append((capture.rank, moved))
    own = [graph for rank, graph in found if rank == events.rank]
    every = {_key(graph): graph for graph in own or [graph for _, graph in found]}
    return Captured(list(every.values()), list(texts), list(sets))


def _table(codes: Codes, values: Sequence[object], used: Sequence[IntArray]) -> IntArray:
    """The code in `codes` of each of the values, by its own code; -1 for those that are not used."""
    table = np.full(len(values), -1, dtype=np.int64)
    if used:
        for code in np.unique(np.concatenate(used)).tolist():
            if code >= 0:
                table[code] = codes[values[code]]
    return table


def _key(graph: Graph) -> tuple[int | None, bytes, bytes, bytes]:
    return graph.tokens, graph.kernel.tobytes(), graph.operator.tobytes(), graph.tensors.tobytes()
