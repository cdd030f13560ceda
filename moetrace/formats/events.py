"""Events: what every trace format is read into. Columns of numpy, texts by code; foreign JSON goes no further than here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from moetrace.formats.piles import ROWS, Block, Pile, Spill
from moetrace.formats.texts import Interned, Texts

IntArray = npt.NDArray[np.int64]

BoolArray = npt.NDArray[np.bool_]

# Times beyond are damage: the year 2043 in ns, so that sums and differences of times stay within 64 bits.
FAR = 1 << 61
# Classes of events
KERNEL, MEMCPY, MEMSET, LAUNCH, OPERATOR, RANGE, DEVICE_RANGE, MODULE, NODE = range(9)
DEVICE_CLASSES = (KERNEL, MEMCPY, MEMSET)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Input shapes and element types of one operator, and the message of a collective."""

    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    nbytes: int = 0
    group: int = 0
    collective: str = ""
    stride: int = 0  # between the ranks of the group; 0: not told


@dataclass(frozen=True, slots=True)
class Events:
    """All events of one file. Arrays have one entry per event; -1 stands for absent ids.

    `lane` is the host thread for host events and the stream for device events; `thread` codes are dense and per file.
    `name` indexes `texts`, `launched` too (the kernel a launch names, where the format says it; of a kernel, what the node of
    its graph was annotated with), `tensors` indexes `tensor_sets`. `node` is the graph node that a kernel is a replay of,
    by number: a NODE event of that number tells where and when the node was made. Times are ns: `start` and `dur`.
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
    node: IntArray
    texts: Texts
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
    "node",
)
_FLUSH = 1 << 14  # rows added one by one are held as tuples until there are so many
IN_MEMORY = 1 << 18  # events above which a trace goes by way of piles
GROUP = (0, 0, 0, *range(LAUNCH, NODE + 1))  # the pile of each class: ops on the device have one together


class Codes(dict[Any, int]):
    """Dense codes for keys, in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        self[key] = code = len(self)
        return code


class EventsBuilder:
    """Collects events, one by one or in blocks of columns, and turns them into columns; many of them by way of piles."""

    def __init__(self, spill: Spill | None = None) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._blocks: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in COLUMNS}
        self._small = self._total = 0  # rows in blocks that are not merged yet; all rows
        self._reach = (0, 0)  # of all starts
        self._spill = spill
        self._piles: dict[int, Pile] = {}
        self.texts = Interned(spill)
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
            (cls, self.texts[name], start, dur, lane, device, correlation, external, args, nbytes, kernel, -1)
        )
        if len(self._rows) >= _FLUSH:
            self._flush()

    def extend(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """A block of events: the columns of COLUMNS, texts and tensors by their codes in `texts` and `tensor_sets`.

        A column of codes may be left out: it says that there are none.
        """
        self._flush()
        start, size = columns["start"], len(columns["cls"])
        for name in COLUMNS:
            values = columns.get(name)
            self._blocks[name].append(
                np.full(size, 0 if name == "nbytes" else -1, dtype=np.int64) if values is None else values
            )
        if size:
            low, high = self._reach
            self._reach = (min(low, int(start.min())), max(high, int(start.max())))
        self._small += size
        self._total += size
        if self._small >= ROWS:
            self._merge()

    def _merge(self) -> None:
        """Makes one block of the small ones: thousands of small arrays leave the heap full of holes."""
        if self._total > IN_MEMORY and self._spill is not None:
            self._pile()
        else:
            for blocks in self._blocks.values():
                blocks[:] = [np.concatenate(blocks)] if len(blocks) > 1 else blocks
        self._small = 0

    def _pile(self) -> None:
        """Puts what is held into the pile of its class."""
        held = {name: np.concatenate([np.zeros(0, _width(name)), *self._blocks[name]]) for name in COLUMNS}
        group = np.array(GROUP, dtype=np.int64)[held["cls"]]
        for code in np.unique(group).tolist():
            at = np.flatnonzero(group == code)
            pile = self._piles.setdefault(code, Pile(self._spill or Spill()))
            for low in range(0, len(at), ROWS):
                pile.append({name: values[at[low : low + ROWS]] for name, values in held.items()})
        for blocks in self._blocks.values():
            blocks.clear()

    def _flush(self) -> None:
        if not self._rows:
            return
        matrix = np.array(self._rows, dtype=np.int64)
        self._rows = []
        self.extend({name: matrix[:, i].astype(_width(name)) for i, name in enumerate(COLUMNS)})

    def build(self, base: int = 0, **facts: Any) -> Events | Stored:
        """The columns, starts moved by `base` ns; `facts` are Events' other fields. The builder is empty afterwards.

        Events that then start beyond any clock are left out, and are added to the count of damaged ones.
        """
        self._flush()
        facts |= {"texts": self.texts.all, "tensor_sets": list(self.tensor_sets)}
        clock = Clock(base)
        if self._piles:
            self._pile()
            stored = Stored(self._piles, clock, self._spill or Spill(), Events(**{**_none(), **facts}))
            lost = 0 if clock.holds(*self._reach) else self._total - stored.sound()
            events: Events | Stored = stored
        else:
            columns: dict[str, Any] = {}
            for name in COLUMNS:  # one after the other, so that only one is held twice
                columns[name] = np.concatenate([np.zeros(0, _width(name)), *self._blocks.pop(name)])
            kept = clock.set(columns)
            lost = len(columns["start"]) - len(kept["start"])
            events = Events(**{**kept, **facts})
        if lost:
            counts = cast("dict[str, int]", events.counts)
            counts["damaged"] = counts.get("damaged", 0) + lost
        return events


@dataclass(frozen=True, slots=True)
class Clock:
    """What is added to starts, in ns, so that they count from the epoch."""

    base: int = 0

    def holds(self, low: int, high: int) -> bool:
        """Whether no start between these is beyond any clock."""
        return low + self.base > -FAR and high + self.base < FAR

    def set(self, columns: Block) -> Block:
        """The columns with absolute starts, without events beyond any clock."""
        start = columns["start"]
        if len(start) and not self.holds(int(start.min()), int(start.max())):
            low, high = max(-FAR - self.base, -(1 << 63)), min(FAR - self.base, (1 << 63) - 1)
            sound = (start > low) & (start < high)
            columns = {name: values[sound] for name, values in columns.items()}
        return {**columns, "start": columns["start"] + self.base}


class Stored:
    """The events of a long trace: their columns in piles by class, what belongs to all of them in `head` (which has none)."""

    def __init__(self, piles: dict[int, Pile], clock: Clock, spill: Spill, head: Events) -> None:
        self._piles, self._clock, self.spill, self.head = piles, clock, spill, head
        self.clean: Callable[[Block], Block] = lambda block: block

    def __len__(self) -> int:
        return sum(len(pile) for pile in self._piles.values())

    def count(self, cls: int) -> int:
        """Number of events of a class, or of all classes that are ops on the device."""
        pile = self._piles.get(GROUP[cls])
        return len(pile) if pile is not None else 0

    def blocks(self, cls: int) -> Iterator[Block]:
        """The events of a class (KERNEL: of all that are ops on the device) in blocks of columns, in no order."""
        pile = self._piles.get(GROUP[cls])
        for block in pile.blocks() if pile is not None else ():
            yield self.clean(self._clock.set(block))

    def sound(self) -> int:
        """Number of events whose times a clock can have."""
        return sum(len(block["cls"]) for group in self._piles for block in self.blocks(GROUP.index(group)))

    @property
    def counts(self) -> Mapping[str, int]:
        return self.head.counts

    def take(self, *classes: int) -> Events:
        """All events of these classes in memory."""
        blocks = [block for cls in dict.fromkeys(GROUP[c] for c in classes) for block in self.blocks(cls)]
        return self.with_columns(joined(blocks))

    def with_columns(self, columns: Mapping[str, Any]) -> Events:
        """Events of these columns, with the texts and facts of all."""
        filled: dict[str, Any] = {**_none(), **{name: columns[name] for name in COLUMNS if name in columns}}
        return replace(self.head, **filled)

    def free(self, cls: int) -> None:
        """Gives back what the events of a class take."""
        pile = self._piles.pop(GROUP[cls], None)
        if pile is not None:
            pile.clear()


def joined(blocks: Sequence[Block]) -> Block:
    """One block of several of the same columns; none of none."""
    if not blocks:
        return {}
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _none() -> dict[str, Any]:
    return {name: np.zeros(0, _width(name)) for name in COLUMNS}


def _width(column: str) -> type[np.int8] | type[np.int64]:
    return np.int8 if column == "cls" else np.int64
