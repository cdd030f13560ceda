"""Rows in batches of whole steps: as they come from a short trace, or dealt out by step from what a long one left on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moetrace.formats.piles import Pile, Spill
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import Rows
from moetrace.parse.steps import StepName

# Ops that a step may have: a forward pass has some thousand, and some hundred thousand where experts run one by one (384
# experts in 60 layers with a dozen ops each: 276,480).
LONGEST = 1 << 19
_NEVER = np.iinfo(np.int64).max
PIECE = StepName(None, stated=False)
StepOf = Callable[[Rows], IntArray]  # the step of each row; -1: none


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
class Dealt:
    """Rows dealt out by step: the steps, those of them that have rows, how many rows have none, and what is said of it."""

    batches: Batches
    names: list[StepName]
    used: IntArray
    outside: int
    said: list[str]


def deal(
    pile: Pile, on_cpu: bool, spill: Spill, step_of: StepOf, names: Sequence[StepName], batch: int
) -> Dealt:
    """The rows of a pile, which is empty afterwards, by step: several steps to a batch of about so many rows.

    Without names of steps, pieces of time stand for them; and where one has more rows than a step can have, for that one.
    """
    most, stated = (LONGEST, True) if names else (batch, False)
    if not names:
        step_of, names = (lambda rows: np.zeros(len(rows), dtype=np.int64)), [PIECE]
    count, first = _counted(pile, on_cpu, step_of, len(names))
    said, long = [], np.flatnonzero(count[1:] > most)
    if len(long):
        size = dict(zip(long.tolist(), count[1:][long].tolist(), strict=True))
        before = len(names) - len(long)
        step_of, names = _cut(pile, on_cpu, step_of, names, {i: -(-n // batch) for i, n in size.items()})
        count, first = _counted(pile, on_cpu, step_of, len(names))
        said = [_CUT.format(len(size), max(size.values()), most, len(names) - before)]
    if not stated:
        said = [no_steps(len(names))]
    used, outside = np.flatnonzero(count[1:]), int(count[0])
    if len(used):
        code = _filled(count[1:][used].tolist(), batch)
        dealt = _dealt(pile, on_cpu, spill, step_of, used, code, first[1:][used])
    else:
        edges = _edges([b["start"][::16] for b in pile.blocks()], -(-len(pile) // batch))
        dealt = pile.scatter(lambda b: np.searchsorted(edges, b["start"], side="right"), len(edges) + 1)
    return Dealt(Batches(dealt, on_cpu), list(names), used, outside, said)


def _filled(sizes: Sequence[int], most: int) -> IntArray:
    """The batch of each step: in order, as many as have no more rows than that together, or one that has more."""
    out, batch, have = [], 0, 0
    for size in sizes:
        if have and have + size > most:
            batch, have = batch + 1, 0
        have += size
        out.append(batch)
    return np.array(out, dtype=np.int64)


def _counted(pile: Pile, on_cpu: bool, step_of: StepOf, steps: int) -> tuple[IntArray, IntArray]:
    """(number of rows of no step and of each step, when the first of each began)."""
    count, first = np.zeros(steps + 1, dtype=np.int64), np.full(steps + 1, np.iinfo(np.int64).max)
    for block in pile.blocks():
        rows = Rows.of(block, on_cpu)
        step = step_of(rows)
        count += np.bincount(step + 1, minlength=steps + 1)
        np.minimum.at(first, step + 1, rows.start)
    return count, first


def _cut(
    pile: Pile, on_cpu: bool, step_of: StepOf, names: Sequence[StepName], parts: Mapping[int, int]
) -> tuple[StepOf, list[StepName]]:
    """The steps, with so many pieces of time in the place of each that is too long; nothing is known of a piece.

    Where graphs are replayed a piece begins with one, so that it holds whole forward passes where a graph is one.
    """
    starts: dict[int, list[IntArray]] = {i: [] for i in parts}
    replays: dict[int, list[IntArray]] = {i: [] for i in parts}
    for block in pile.blocks():
        rows = Rows.of(block, on_cpu)
        step = step_of(rows)
        for i, found in starts.items():
            own = step == i
            found.append(rows.start[own][::16])
            replays[i].append(_replays(rows.graph[own], rows.start[own]))
    edges = {i: _moved(_edges(found, parts[i]), replays[i]) for i, found in starts.items()}
    size = np.array([len(edges[i]) + 1 if i in edges else 1 for i in range(len(names))], dtype=np.int64)
    place = np.append(np.cumsum(size) - size, -1)

    def piece_of(rows: Rows) -> IntArray:
        step = step_of(rows)
        out: IntArray = place[step]
        for i, at in edges.items():
            own = step == i
            out[own] += np.searchsorted(at, rows.start[own], side="right")
        return out

    cut = [[PIECE] * n if i in edges else [names[i]] for i, n in enumerate(size.tolist())]
    return piece_of, [name for some in cut for name in some]


def _edges(starts: Sequence[IntArray], parts: int) -> IntArray:
    """Times between which about equally many of the starts lie."""
    sample = np.sort(np.concatenate([np.zeros(0, np.int64), *starts]))
    return np.unique(sample[np.arange(1, parts) * len(sample) // parts]) if len(sample) else sample


def _replays(graph: IntArray, start: IntArray) -> IntArray:
    """(id, start) of each replay of a graph among rows that are sorted by start; shape [2, replays]."""
    graphs, first = np.unique(graph, return_index=True)
    return np.stack([graphs, start[first]])[:, graphs >= 0]


def _moved(edges: IntArray, found: Sequence[IntArray]) -> IntArray:
    """The edges, each moved to where the next replay begins, if one does before the next edge."""
    graph, start = np.concatenate(found, axis=1)
    order = np.lexsort((start, graph))
    begin = np.sort(start[order][np.diff(graph[order], prepend=-1) != 0])
    if not len(begin):
        return edges
    after = begin[np.minimum(np.searchsorted(begin, edges), len(begin) - 1)]
    near = (after >= edges) & (after < np.append(edges[1:], _NEVER))
    return np.unique(np.where(near, after, edges))


def _dealt(
    pile: Pile, on_cpu: bool, spill: Spill, step_of: StepOf, used: IntArray, batch: IntArray, first: IntArray
) -> list[Pile]:
    """The rows by step, whose batch is given; those of no step lie with the step that began last before them."""
    batch = np.unique(batch, return_inverse=True)[1].reshape(-1)
    order = np.argsort(first, kind="stable")
    number = np.full(int(used[-1]) + 2, -1, dtype=np.int64)
    number[used] = np.arange(len(used))
    out = [Pile(spill) for _ in range(int(batch[-1]) + 1)]
    for block in pile.blocks():
        rows = Rows.of(block, on_cpu)
        rows.step = number[step_of(rows)]
        near = order[np.clip(np.searchsorted(first[order], rows.start, side="right") - 1, 0, None)]
        code = batch[np.where(rows.step >= 0, rows.step, near)]
        columns = rows.columns()
        for i in np.unique(code).tolist():
            out[i].append({name: values[code == i] for name, values in columns.items()})
    pile.clear()
    return out


def no_steps(pieces: int) -> str:
    """What is said of a trace without annotated steps."""
    return f"{UNMARKED}: {_ONE if pieces == 1 else _PIECES.format(pieces)}"


UNMARKED = "no step annotation was found"
_ONE = "the whole trace is taken as one step"
_PIECES = "the trace is cut into {} pieces of like numbers of ops, which stand for steps"
_CUT = (
    "{} annotated step(s) have more ops (up to {:,}) than are taken for one forward pass ({:,}): {} pieces of like numbers of "
    "ops stand for steps instead, and what the annotation says of phase, batch and tokens is not taken"
)
