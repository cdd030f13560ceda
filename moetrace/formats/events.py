"""Events: what every trace format is read into. Columns of numpy, texts by code; foreign JSON goes no further than here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Classes of events
KERNEL, MEMCPY, MEMSET, LAUNCH, OPERATOR, RANGE, DEVICE_RANGE, MODULE = range(8)
DEVICE_CLASSES = (KERNEL, MEMCPY, MEMSET)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Input shapes and element types of one operator, and the message of a collective."""

    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    nbytes: int = 0
    group: int = 0
    collective: str = ""


@dataclass(frozen=True, slots=True)
class Events:
    """All events of one file. Arrays have one entry per event; -1 stands for absent ids.

    `lane` is the host thread for host events and the stream for device events; `thread` codes are dense and per file.
    `name` indexes `texts`, `launched` too (the kernel a launch names, where the format says it), `tensors` indexes
    `tensor_sets`. Times are ns: `start` and `dur`.
    """

    cls: npt.NDArray[np.int8]
    name: IntArray
    start: IntArray
    dur: IntArray
    lane: IntArray
    device: IntArray
    correlation: IntArray
    external: IntArray
    tensors: IntArray
    nbytes: IntArray
    launched: IntArray
    texts: list[str]
    tensor_sets: list[Tensors]
    rank: int = 0
    devices: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    world_size: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)

    def where(self, *classes: int) -> IntArray:
        """Indices of the events of these classes, by start time, the longer first at equal starts."""
        at = np.flatnonzero(np.isin(self.cls, classes))
        return at[np.lexsort((-self.dur[at], self.start[at]))]


COLUMNS = (
    "cls",
    "name",
    "start",
    "dur",
    "lane",
    "device",
    "correlation",
    "external",
    "tensors",
    "nbytes",
    "launched",
)
_FLUSH = 1 << 14  # rows added one by one are held as tuples until there are so many
_MERGE = 1 << 17


class Codes(dict[Any, int]):
    """Dense codes for keys, in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        self[key] = code = len(self)
        return code


class EventsBuilder:
    """Collects events, one by one or in blocks of columns, and turns them into columns."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._blocks: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in COLUMNS}
        self._merged = self._small = 0  # blocks that are merged already; rows in those behind them
        self.texts = Codes()
        self.tensor_sets = Codes()

    def text(self, text: str) -> int:
        """The code of a text."""
        return self.texts[text]

    def add(
        self, cls: int, name: str, start: int, dur: int, lane: int, device: int = -1, correlation: int = -1,
        external: int = -1, tensors: Tensors | None = None, nbytes: int = 0, launched: str | None = None,
    ) -> None:  # fmt: skip
        """One event; times in ns."""
        args = -1 if tensors is None else self.tensor_sets[tensors]
        kernel = -1 if launched is None else self.texts[launched]
        self._rows.append(
            (cls, self.texts[name], start, dur, lane, device, correlation, external, args, nbytes, kernel)
        )
        if len(self._rows) >= _FLUSH:
            self._flush()

    def extend(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A block of events: every column of COLUMNS, texts and tensors by their codes in `texts` and `tensor_sets`."""
        self._flush()
        for name in COLUMNS:
            self._blocks[name].append(columns[name])
        self._small += len(columns["cls"])
        if self._small >= _MERGE:
            self._merge()

    def _merge(self) -> None:
        """Makes one block of the small ones: thousands of small arrays leave the heap full of holes."""
        for blocks in self._blocks.values():
            blocks[self._merged :] = [np.concatenate(blocks[self._merged :])]
        self._merged, self._small = self._merged + 1, 0

    def _flush(self) -> None:
        if not self._rows:
            return
        matrix = np.array(self._rows, dtype=np.int64)
        self._rows = []
        self.extend({name: matrix[:, i].astype(_width(name)) for i, name in enumerate(COLUMNS)})

    def build(self, **facts: Any) -> Events:
        """The columns; `facts` are Events' other fields. The builder is empty afterwards."""
        self._flush()
        columns: dict[str, Any] = {}
        for name in COLUMNS:  # one after the other, so that only one is held twice
            columns[name] = np.concatenate([np.zeros(0, _width(name)), *self._blocks.pop(name)])
        # A lone half of a surrogate pair, which JSON can spell, is no text that could be written out again.
        texts = [text.encode("utf-8", "replace").decode() for text in self.texts]
        return Events(texts=texts, tensor_sets=list(self.tensor_sets), **columns, **facts)


def _width(column: str) -> type[np.int8] | type[np.int64]:
    return np.int8 if column == "cls" else np.int64
