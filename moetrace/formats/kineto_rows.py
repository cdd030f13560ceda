"""Kineto events -> columns. Decoded by type with msgspec, a chunk at a time; a chunk with anything odd is read event by event.

Both ways must say the same (tests/unit/test_kineto_rows.py): the first knows only events as profilers write them and
refuses a whole chunk for one that is not; the second takes whatever JSON can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from moetrace.formats.events import (
    DEVICE_RANGE,
    FAR,
    KERNEL,
    LAUNCH,
    MEMCPY,
    MEMSET,
    MODULE,
    NODE,
    OPERATOR,
    RANGE,
    Codes,
    EventsBuilder,
    IntArray,
    Tensors,
)  # fmt: skip
from moetrace.formats.kineto_json import (
    ABSENT,
    DECIMALS,
    EVENTS,
    LONG,
    NO_ARGS,
    NO_TEXT,
    STAMPS,
    Args,
    Event,
    OddError,
    digits_ns,
    loads,
    times_ns,
    without_calls,
)
from moetrace.formats.kineto_values import INT64, message_of, ns, tensors_of, whole
from moetrace.formats.piles import Spill

_CLASS = {
    "kernel": KERNEL, "gpu_memcpy": MEMCPY, "memcpy": MEMCPY, "gpu_memset": MEMSET, "memset": MEMSET,
    "cuda_runtime": LAUNCH, "cuda_driver": LAUNCH, "runtime": LAUNCH, "driver": LAUNCH,
    "cpu_op": OPERATOR, "operator": OPERATOR,
    "user_annotation": RANGE, "gpu_user_annotation": DEVICE_RANGE, "python_function": MODULE,
}  # fmt: skip
_OLD, _STEP = "operator", "ProfilerStep#"  # in 2021 the profiler wrote its steps as operators
# Categories that tell of the profiler itself: calls of Python (stacks were recorded), and what it says that it cost.
_CALL = "python_function"
_TOLD = (_CALL, "overhead")
_OTHER = NODE + 1  # classes that are not read
_MAX_KNOWN = 1 << 16  # distinct texts of shapes remembered at a time


class _Classes(dict[str | None, int]):
    """Class per category, in whatever case it is written; `old`: the categories seen that are operators of 2021."""

    def __init__(self) -> None:
        super().__init__()
        self.old: set[str | None] = set()

    def __missing__(self, cat: str | None) -> int:
        self[cat] = found = _CLASS.get(str(cat).lower(), _OTHER)
        if str(cat).lower() == _OLD:
            self.old.add(cat)
        return found


class _Lanes(dict[tuple[Any, Any], int]):
    """Dense codes for (pid, tid), which may be numbers or texts: 7 and "7" are one thread."""

    def __init__(self) -> None:
        super().__init__()
        self._codes = Codes()

    def __missing__(self, key: tuple[Any, Any]) -> int:
        self[key] = code = self._codes[str(key[0]), str(key[1])]
        return code


class Rows:
    """Takes the events of a file chunk by chunk into columns; `count` and `damaged` events so far, `found` that are objects."""

    def __init__(self, spill: Spill | None = None) -> None:
        self.builder = EventsBuilder(spill)
        self.count = self.found = self.damaged = 0
        self.skipped = dict.fromkeys(_TOLD, 0)  # events of these categories, which are not read
        self._classes, self._lanes = _Classes(), _Lanes()
        self._known: dict[tuple[bytes, ...], int] = {}

    def add(self, chunk: bytes, between: bytes = b"") -> None:
        """The events of the inside of a list. Raises ValueError or RecursionError, and takes none, if it is not JSON.

        With what stands `between` events, calls of Python are not decoded.
        """
        kept, calls = without_calls(chunk, between) if between else (chunk, 0)
        try:
            text = b"[" + kept + b"]"
            events = EVENTS.decode(text)
            columns = self._columns(events, text)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            self.add_each(loads(b"[" + chunk + b"]"))
        else:
            self.count += len(events) + calls
            self.found += len(events) + calls
            self.skipped[_CALL] += calls
            self.builder.extend(columns)
            cats = [event.cat for event in events]
            for cat in self.skipped:
                self.skipped[cat] += cats.count(cat)

    def add_each(self, events: list[Any]) -> None:
        """Events as decoded JSON, whatever they hold."""
        for event in events:
            self.count += 1
            self.found += isinstance(event, dict)
            if isinstance(event, dict) and (cat := str(event.get("cat"))) in self.skipped:
                self.skipped[cat] += 1
            if not isinstance(event, dict) or not self._add(event):
                self.damaged += 1

    def told(self) -> dict[str, int]:
        """How many events tell of the profiler itself; nothing where none does."""
        names = {"python_function": "python_calls", "overhead": "profiler_overheads"}
        return {names[cat]: count for cat, count in self.skipped.items() if count}

    # -- by type -----------------------------------------------------------------------------------------------------
    def _columns(self, events: list[Event], text: bytes) -> dict[str, npt.NDArray[Any]]:
        """The columns of the events that are read. Raises OddError (or OverflowError) for what is not as usual."""
        classes = self._classes
        at = [
            i
            for i, e in enumerate(events)
            if (
                (c := classes[e.cat]) < MODULE
                or (c == MODULE and (e.name or "nn.Module").startswith("nn.Module"))
            )
            and e.ph == "X"
        ]
        kept = [events[i] for i in at]
        args = [e.args or NO_ARGS for e in kept]
        names = [e.name for e in kept if e.name is not None]
        if len(names) < len(kept):
            raise OddError
        start, dur = times_ns([e.ts for e in kept]), times_ns([e.dur for e in kept])
        if len(start) and np.abs(start).max() >= LONG * 1000 and DECIMALS.search(text):
            stamps = STAMPS.decode(text)
            start = np.array([digits_ns(bytes(stamps[i].ts)) for i in at], dtype=np.int64)
        cls = np.array([classes[e.cat] for e in kept], dtype=np.int8)
        if old := classes.old:
            cls[[i for i, e in enumerate(kept) if e.cat in old and names[i].startswith(_STEP)]] = RANGE
        device = cls <= MEMSET
        nbytes = [n if (n := a.bytes).__class__ is int else whole(n) for a in args]
        external = np.array([a.external for a in args], dtype=np.int64)
        older = np.array([a.external_2021 for a in args], dtype=np.int64)
        tensors = self._tensor_codes(cls.tolist(), args)
        name, launched = self._text_codes(cls.tolist(), names, args)
        return {
            "cls": cls,
            "name": name,
            "start": start,
            "dur": np.maximum(dur, 0),
            "lane": self._lane_codes(device.tolist(), kept, args),
            "device": np.where(device, np.array([a.device for a in args], dtype=np.int64), -1),
            "correlation": np.where(
                cls <= LAUNCH, np.array([a.correlation for a in args], dtype=np.int64), -1
            ),
            "external": np.where(external == ABSENT, older, external),
            "tensors": tensors,
            "nbytes": np.where(device, np.array(nbytes, dtype=np.int64), 0),
            "launched": launched,
        }

    def _text_codes(self, cls: list[int], names: list[str], args: list[Args]) -> tuple[IntArray, IntArray]:
        texts = self.builder.texts
        name, launched = [], []
        for c, said, a in zip(cls, names, args, strict=True):
            if c == LAUNCH:
                more = a.kernel
            else:  # what torch's annotation tool wrote to the kernels of a graph
                more = (
                    (a.marked if a.marked is not None else a.annotation) if c <= MEMSET and a.node else None
                )
            launched.append(texts[more] if more is not None else -1)
            name.append(texts[said])
        return np.array(name, dtype=np.int64), np.array(launched, dtype=np.int64)

    def _lane_codes(self, device: list[bool], kept: list[Event], args: list[Args]) -> IntArray:
        lanes = self._lanes
        return np.array(
            [
                lanes[e.pid, e.tid] if not d else a.stream if a.stream != ABSENT else whole(e.tid)
                for e, a, d in zip(kept, args, device, strict=True)
            ],
            dtype=np.int64,
        )

    def _tensor_codes(self, cls: list[int], args: list[Args]) -> IntArray:
        """Codes of shapes, by their text: a text that was seen before is not decoded again."""
        known = self._known
        if len(known) > _MAX_KNOWN:
            known.clear()
        codes = []
        for c, a in zip(cls, args, strict=True):
            code = -1
            if c == OPERATOR:
                dims = bytes(a.dims) or bytes(a.dims_2021)
                if dims:
                    key: tuple[bytes, ...] = (dims, bytes(a.types))
                    found = known.get(key)
                    code = self._learn(key, _shapes(*key)) if found is None else found
            elif c <= MEMSET and a.collective is not NO_TEXT:
                key = (
                    bytes(a.collective),
                    bytes(a.dtype),
                    bytes(a.elements_in),
                    bytes(a.elements_out),
                    bytes(a.group),
                    bytes(a.ranks),
                )
                found = known.get(key)
                code = self._learn(key, _spelled_message(key)) if found is None else found
            codes.append(code)
        return np.array(codes, dtype=np.int64)

    def _learn(self, key: tuple[bytes, ...], tensors: Tensors | None) -> int:
        self._known[key] = code = -1 if tensors is None else self.builder.tensor_sets[tensors]
        return code

    # -- event by event ----------------------------------------------------------------------------------------------
    def _add(self, event: Mapping[str, Any]) -> bool:
        """Adds one event if it is of a class that matters; False if it is damaged."""
        if event.get("ph") != "X":
            return True
        cls, name = _CLASS.get(str(event.get("cat", "")).lower()), event.get("name")
        if cls is None or not isinstance(name, str) or (cls == MODULE and not name.startswith("nn.Module")):
            return cls is None or isinstance(name, str)
        if name.startswith(_STEP) and str(event.get("cat")).lower() == _OLD:
            cls = RANGE
        start, dur = ns(event.get("ts")), ns(event.get("dur", 0))
        if start is None or dur is None or abs(start) >= INT64 or dur >= FAR:
            return False
        args = event.get("args")
        args = args if isinstance(args, dict) else {}
        external = whole(args.get("External id", args.get("external id")), -1)
        correlation = whole(args.get("correlation"), -1)
        add, dur = self.builder.add, max(0, dur)
        if cls in (KERNEL, MEMCPY, MEMSET):
            lane, device = whole(args.get("stream", event.get("tid"))), whole(args.get("device"))
            marked = args.get("str", args.get("annotation")) if whole(args.get("graph node id")) else None
            add(
                cls,
                name,
                start,
                dur,
                lane,
                device,
                correlation,
                external,
                message_of(args),
                whole(args.get("bytes")),
                marked if isinstance(marked, str) else None,
            )
            return True
        lane = self._lanes[str(event.get("pid")), str(event.get("tid"))]
        if cls == LAUNCH:
            launched = args.get("kernel")
            launched = launched if isinstance(launched, str) else None
            add(cls, name, start, dur, lane, -1, correlation, external, launched=launched)
        elif cls == OPERATOR:
            add(cls, name, start, dur, lane, external=external, tensors=tensors_of(args))
        else:
            add(cls, name, start, dur, lane, external=external)
        return True


def _shapes(dims: bytes, types: bytes) -> Tensors | None:
    return tensors_of(
        {"Input Dims": orjson.loads(dims), "Input type": orjson.loads(types) if types else None}
    )


def _spelled_message(key: tuple[bytes, ...]) -> Tensors | None:
    keys = (
        "Collective name",
        "dtype",
        "In msg nelems",
        "Out msg nelems",
        "Group size",
        "Process Group Ranks",
    )
    return message_of({k: orjson.loads(text) for k, text in zip(keys, key, strict=True) if text})
