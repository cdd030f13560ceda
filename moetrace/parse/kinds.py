"""The kinds of a trace's rows: by their names, and later by what a model says of those whose names say nothing."""

from __future__ import annotations

import numpy as np

from moetrace import ops
from moetrace.formats.events import Events
from moetrace.grouping import distinct_rows
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import Rows

_MANY = 1 << 16  # pairs of names


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
        texts = self._events.texts
        first, inverse = distinct_rows(rows.kernel, rows.operator)
        codes = []
        if len(self._known) > _MANY:
            self._known.clear()
        for pair in zip(rows.kernel[first].tolist(), rows.operator[first].tolist(), strict=True):
            if pair not in self._known:
                kernel, operator = pair
                kind = ops.recognise(
                    "" if rows.on_cpu else texts[kernel],
                    texts[operator] if operator >= 0 else "",
                    self._own,
                )
                self._known[pair] = self._codes.setdefault(kind, len(self._codes))
                self.names[:] = self._codes
            codes.append(self._known[pair])
        rows.kind = np.array(codes, dtype=np.int64)[inverse]
        return rows.kind

    def code(self, kind: str) -> int:
        """The code of a kind, which is given one if it has none yet."""
        found = self._codes.setdefault(kind, len(self._codes))
        self.names[:] = self._codes
        return found
