"""The kinds of a trace's rows: by their names, and later by what a model says of those whose names say nothing."""

from __future__ import annotations

import numpy as np

from moetrace import ops
from moetrace.formats.events import Events
from moetrace.grouping import distinct_rows
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import Rows

_MANY = 1 << 13  # pairs of names that are worked on, and remembered, at a time


class Kinds:
    """Kinds by name alone: one recognition per distinct kernel and operator."""

    def __init__(self, events: Events, own: ops.Names | None = None) -> None:
        self._events, self._own = events, own
        self._codes: dict[str, int] = {}
        self._known: dict[tuple[int, int], int] = {}  # of the names that were last asked for
        self.names: list[str] = []  # by code

    def of(self, rows: Rows) -> IntArray:
        """The code of each row's kind, which the rows then have."""
        if not (rows.kind < 0).any():
            return rows.kind
        first, inverse = distinct_rows(rows.kernel, rows.operator)
        codes = np.zeros(len(first), dtype=np.int64)
        for low in range(0, len(first), _MANY):
            some = first[low : low + _MANY]
            if len(self._known) > _MANY:
                self._known.clear()
            pairs = zip(rows.kernel[some].tolist(), rows.operator[some].tolist(), strict=True)
            for i, pair in enumerate(pairs, low):
                if pair not in self._known:
                    self._known[pair] = self._learn(*pair, rows.on_cpu)
                codes[i] = self._known[pair]
        rows.kind = codes[inverse]
        return rows.kind

    def _learn(self, kernel: int, operator: int, on_cpu: bool) -> int:
        texts = self._events.texts
        own, above = "" if on_cpu else texts[kernel], texts[operator] if operator >= 0 else ""
        return self.code(ops.recognise(own, above, self._own))

    def code(self, kind: str) -> int:
        """The code of a kind, which is given one if it has none yet."""
        found = self._codes.setdefault(kind, len(self._codes))
        self.names[:] = self._codes
        return found
