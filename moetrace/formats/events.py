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


_COLUMNS = (
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


class EventsBuilder:
    """Collects events one by one and turns them into columns."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int, int, int, int, int, int]] = []
        self._texts: dict[str, int] = {}
        self._tensors: dict[Tensors, int] = {}

    def text(self, text: str) -> int:
        """The code of a text."""
        return self._texts.setdefault(text, len(self._texts))

    def add(
        self, cls: int, name: str, start: int, dur: int, lane: int, device: int = -1, correlation: int = -1,
        external: int = -1, tensors: Tensors | None = None, nbytes: int = 0, launched: str | None = None,
    ) -> None:  # fmt: skip
        """One event; times in ns."""
        args = -1 if tensors is None else self._tensors.setdefault(tensors, len(self._tensors))
        kernel = -1 if launched is None else self.text(launched)
        self._rows.append(
            (cls, self.text(name), start, dur, lane, device, correlation, external, args, nbytes, kernel)
        )

    def build(self, **facts: Any) -> Events:
        """The columns; `facts` are Events' other fields."""
        matrix = np.array(self._rows, dtype=np.int64).reshape(-1, 1 + len(_COLUMNS))
        columns: dict[str, Any] = {
            name: np.ascontiguousarray(matrix[:, i + 1]) for i, name in enumerate(_COLUMNS)
        }
        return Events(
            cls=matrix[:, 0].astype(np.int8),
            # A lone half of a surrogate pair, which JSON can spell, is no text that could be written out again.
            texts=[text.encode("utf-8", "replace").decode() for text in self._texts],
            tensor_sets=list(self._tensors),
            **columns,
            **facts,
        )
