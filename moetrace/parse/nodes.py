"""Graph nodes: what the ranges around a node's creation, at the capture of its graph, say of every kernel that replays it.

A node is resolved once, as if it were an op that ran where and when it was made, and its replays take that over: the operator
with its tensors, the message of a collective, layer and part. The step is that of the replay.
"""

from __future__ import annotations

import numpy as np

from moetrace.formats.events import IntArray
from moetrace.parse.nesting import lookup
from moetrace.parse.rows import ANNOTATION, Rows

_TAKEN = ("operator", "tensors", "message", "layer", "part")


class Nodes:
    """What is known of each node, by its number."""

    def __init__(self) -> None:
        self._known = {name: np.zeros(0, dtype=np.int64) for name in _TAKEN}
        self._told = self._replayed = 0

    def learn(self, made: Rows) -> None:
        """Takes what the resolved rows say, each of the making of a node."""
        size = int(made.node.max(initial=-1)) + 1
        for name, known in self._known.items():
            if size > len(known):
                known = np.concatenate([known, np.full(size - len(known), -1, dtype=np.int64)])
            known[made.node] = getattr(made, name)
            self._known[name] = known

    def serve(self, rows: Rows) -> None:
        """Gives replayed rows what their nodes have, in place."""
        node = rows.node
        replayed = node >= 0
        self._replayed += int(replayed.sum())
        if not replayed.any():
            return
        told = np.zeros(len(rows), dtype=bool)
        for name, known in self._known.items():
            values: IntArray = lookup(known, np.where(node < len(known), node, -1))
            setattr(rows, name, np.where(values >= 0, values, getattr(rows, name)))
            told |= values >= 0
            if name in ("tensors", "message"):
                rows.source = np.where(values >= 0, ANNOTATION, rows.source).astype(np.int8)
        self._told += int(told.sum())

    def remarks(self) -> list[str]:
        """A sentence, if there are replayed nodes."""
        if not self._replayed:
            return []
        return [
            f"graph nodes: {self._told:,} of {self._replayed:,} replayed ops lie in ranges or operators of their capture, "
            "by where their node was made"
        ]
