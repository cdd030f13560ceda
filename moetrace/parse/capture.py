"""Capture-time traces: the launches made while a graph was recorded give its replayed kernels operators and shapes.

A replayed graph's kernels share one correlation id and carry no operator. The capture of the same graph holds every
launch with its operator, in the order in which a single-stream replay runs them. An engine captures one graph for each
of many batch sizes, with mostly equal kernels: which of them was replayed is told by the tokens of the step.
Where neither names nor tokens tell, nothing is taken, and a sentence says why.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import TraceError
from moetrace.formats.events import Events
from moetrace.formats.texts import Texts, Told, alike, codes_of
from moetrace.parse.captured import Captured
from moetrace.parse.fitting import NO_FIT, Answer, Replay, solve
from moetrace.parse.graphs import COPIED
from moetrace.parse.nesting import IntArray, lookup
from moetrace.parse.rows import CAPTURE, Rows

_SOLVED = 256  # sequences of kernels that are remembered at a time


class Captures:
    """The graphs of a capture-time trace, and what they give to replayed rows. Each distinct sequence is matched once."""

    def __init__(self, events: Events, capture: Captured, tokens: Sequence[int | None]) -> None:
        """`events` has the texts and tensor sets of the trace, which get what they lack; `tokens` are those of each step."""
        self._events, self._capture, self._tokens = events, capture, tokens
        self._graphs = capture.graphs
        self._texts = _Codes(events.texts, capture.texts)
        self._sets = _Codes(events.tensor_sets, capture.tensor_sets)
        self._names = self._known_names() if events.texts.spilled else None
        self._solved: dict[bytes, Answer] = {}
        self._said: Counter[str] = Counter()
        self._matched = self._replayed = 0
        self.padded: dict[int, int] = {}  # step -> tokens of the graph, where these are more than the step's

    def serve(self, rows: Rows) -> None:
        """Gives every graph-replayed row the operator and tensors of its capture, in place."""
        replayed = np.flatnonzero(rows.graph >= 0)
        self._replayed += len(replayed)
        if not len(replayed) or not self._graphs:
            return
        kernel = np.where(rows.copied, COPIED, self._named_alike(rows.kernel))
        order = replayed[np.argsort(rows.graph[replayed], kind="stable")]
        for at in np.split(order, np.flatnonzero(np.diff(rows.graph[order])) + 1):
            replay = _replay(rows, at, kernel[at], rows.step[at], self._tokens)
            said = replay.kernel.tobytes() + f"{replay.parallel} {replay.tokens}".encode()
            key = hashlib.blake2b(said, digest_size=16).digest()
            if key not in self._solved:
                if len(self._solved) >= _SOLVED:
                    self._solved.clear()
                self._solved[key] = solve(replay, self._graphs, self._events, self._capture)
            self._give(rows, at, self._solved[key])
            size, step = self._solved[key].size, int(rows.step[at].max())
            if size is not None and replay.tokens is not None and size > replay.tokens and step >= 0:
                self.padded[step] = max(size, self.padded.get(step, 0))

    def _known_names(self) -> Told:
        """The code that the graphs have for each name of the trace; -1 where they have none."""
        texts = self._events.texts
        used = np.unique(np.concatenate([np.zeros(0, np.int64), *(graph.kernel for graph in self._graphs)]))
        known = {texts[code]: code for code in used[used >= 0].tolist()}
        return Told(texts, lambda text: known.get(text, -1))

    def _named_alike(self, kernel: IntArray) -> IntArray:
        """The codes of names with one for each, the graphs' own where they have it: of very many, a name may have several."""
        if self._names is None:
            return kernel
        known = self._names.of(kernel)
        return np.where(known >= 0, known, alike(self._events.texts, kernel))

    def _give(self, rows: Rows, at: IntArray, answer: Answer) -> None:
        self._said.update(filter(None, (answer.reason, answer.remark)))
        if answer.reason:
            return
        self._matched += int(answer.found.sum())
        rows.operator[at] = self._texts.of(answer.operator, rows.operator[at])
        rows.tensors[at] = self._sets.of(answer.tensors, rows.tensors[at])
        rows.source[at] = np.where(answer.tensors >= 0, CAPTURE, rows.source[at])

    def remarks(self) -> list[str]:
        """Sentences on how it went. Raises TraceError if the capture served no row of those that are replays."""
        if not self._replayed:
            return ["a capture trace was given, but the trace replays no graph"]
        if not self._graphs:
            raise TraceError(
                "the capture trace holds no launch of a kernel: record it with activities CPU and CUDA"
            )
        if not self._matched:
            why = self._said.most_common(1)[0][0] if self._said else NO_FIT
            raise TraceError(
                f"the capture trace serves none of the {self._replayed} graph-replayed ops ({why}): give the capture of this "
                "graph, or none"
            )
        note = (
            f"capture trace: {self._matched} of {self._replayed} graph-replayed ops matched to their capture"
        )
        first = note if self._matched == self._replayed else f"{note}; the others have names only"
        return [first, *(f"capture trace, {n} replay(s): {text}" for text, n in self._said.items())]


class _Codes:
    """Codes of the capture's texts or tensor sets as codes of the trace's, which gets those that it lacks when asked."""

    def __init__(self, own: Texts | list[Any], foreign: Sequence[Any]) -> None:
        self._own, self._foreign = own, foreign
        self._code = codes_of(own, foreign)
        self._table = np.full(len(foreign), -1, dtype=np.int64)

    def of(self, codes: IntArray, otherwise: IntArray) -> IntArray:
        """The trace's codes; `otherwise` where the capture has none."""
        used = np.unique(codes[codes >= 0])
        for code in used[self._table[used] < 0].tolist():
            value = self._foreign[code]
            if value not in self._code:
                self._code[value] = len(self._own)
                self._own.append(value)
            self._table[code] = self._code[value]
        return np.where(codes >= 0, lookup(self._table, codes), otherwise)


def _replay(
    rows: Rows, at: IntArray, kernel: IntArray, step: IntArray, tokens: Sequence[int | None]
) -> Replay:
    streams = rows.stream[at][kernel != COPIED]
    inside = step[step >= 0]
    return Replay(
        kernel,
        parallel=bool(len(streams)) and bool((streams != streams[0]).any()),
        tokens=tokens[int(inside[0])] if len(inside) else None,
    )


class Missing:
    """What replays lack where no capture was given."""

    def __init__(self) -> None:
        self._count = self._total = self._known = 0

    def saw(self, rows: Rows, known: npt.NDArray[np.bool_]) -> None:
        """Takes rows into account; `known`: which have bytes all the same."""
        _, code, count = np.unique(rows.graph, return_inverse=True, return_counts=True)
        # A graph of one row is a replay recorded as a whole: no capture tells what is inside.
        bare = (rows.graph >= 0) & (rows.tensors < 0) & (count[code.reshape(-1)] > 1)
        self._count += int(bare.sum())
        self._total += int(rows.dur[bare].sum())
        self._known += int(rows.dur[bare & known].sum())

    def remarks(self) -> list[str]:
        """A sentence if there are any."""
        if not self._count:
            return []
        share = self._known / self._total if self._total else 0.0
        return [
            f"{self._count} kernels are replays of a graph, which carry no shapes: {share:.0%} of their time has bytes, "
            "by the model and the step alone; give the trace of the graph's capture (--capture-trace) for their shapes"
        ]
