"""Nodes of CUDA graphs in an nsys trace: which creation, at the graph's capture, stands behind a replayed kernel.

A kernel of a replayed graph names the node of the graph that was launched. That one is mostly a clone of the node that was made
at capture, on a thread and at a time whose ranges tell what it is; clones may be cloned again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetrace.errors import TraceError
from moetrace.formats.events import BoolArray, IntArray
from moetrace.formats.nsys_file import ABSENT, Database, integer

TABLES = ("CUDA_GRAPH_NODE_EVENTS", "CUDA_GRAPH_EVENTS")  # the latter: until 2023
_COLUMNS = ("start", "globalTid", "graphNodeId", "originalGraphNodeId")
_MOST = 1 << 22  # nodes: those of a thousand graphs of four thousand kernels
_DEEPEST = 64  # clones of clones


class GraphNodes:
    """The nodes of one process: `start` and `thread` of each that was made at a capture, by its number."""

    def __init__(self, start: IntArray, thread: IntArray, ids: IntArray, origin: IntArray) -> None:
        """`ids` in any order; `origin`: the node that each is a clone of, `ABSENT` for none."""
        # Of two rows of a node the earlier: the later sets its parameters anew.
        order = np.lexsort((start, ids))
        first = np.concatenate(([True], np.diff(ids[order]) != 0))[: len(order)]
        at = order[first]
        self._ids, self.start, self.thread = ids[at], start[at], thread[at]
        self._made = _roots(self._ids, origin[at])

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def made(self) -> BoolArray:
        """Which were made at a capture: those that are no clones."""
        return np.asarray(self._made == np.arange(len(self._made)))

    def of(self, ids: IntArray) -> IntArray:
        """The number of the node made at capture behind each id; -1 where none is known."""
        if not len(self._ids):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.clip(np.searchsorted(self._ids, ids), 0, len(self._ids) - 1)
        return np.where((self._ids[at] == ids) & (ids != ABSENT), self._made[at], -1)


def _roots(ids: IntArray, origin: IntArray) -> IntArray:
    """The place of the node that each goes back to; -1 where that is not in the table, or a circle."""
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    cloned = origin != ABSENT
    at = np.clip(np.searchsorted(ids, origin), 0, len(ids) - 1)
    parent = np.where(~cloned, np.arange(len(ids)), np.where(ids[at] == origin, at, -1))
    found = parent.copy()
    for _ in range(_DEEPEST):
        further = np.where(found >= 0, parent[found], -1)
        if (further == found).all():
            break
        found = further
    whole = (found >= 0) & ~cloned[np.maximum(found, 0)]
    return np.where(whole, found, -1)


def graph_nodes(db: Database, where: str, values: Sequence[int]) -> GraphNodes:
    """The nodes in the file, of the process that the condition on a row's thread says."""
    columns: list[IntArray] = []
    count = 0
    for table in TABLES:
        have = db.columns.get(table, set())
        if "graphNodeId" not in have:
            continue
        select = [integer(c) if c in have else str(ABSENT) for c in _COLUMNS]
        condition = where if "globalTid" in have else ""
        for chunk in db.rows(table, select, condition, values if condition else ()):
            count += len(chunk)
            if count > _MOST:
                raise TraceError(
                    f"{db.path} tells of more than {_MOST:,} graph nodes: expected some thousand per graph"
                )
            columns.append(np.array(chunk, dtype=np.int64).T)
    rows = np.concatenate([np.zeros((len(_COLUMNS), 0), np.int64), *columns], axis=1)
    start, thread, ids, origin = rows[:, (rows[0] != ABSENT) & (rows[2] != ABSENT)]
    origin = np.where((origin == 0) | (origin == ids), ABSENT, origin)
    return GraphNodes(start, thread, ids, origin)
