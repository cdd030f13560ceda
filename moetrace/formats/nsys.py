"""Nsight Systems traces: the SQLite that `nsys export` writes (2022 to 2026), plain or gzip; `.nsys-rep` through nsys itself.

Any table and any column may be absent, and whatever is there may be damaged: only known columns of real tables are read,
each value checked for its type, from a read-only connection. Read whole: memory grows with the rows of the tables below.
Not read: the environment (TARGET_INFO_SYSTEM_ENV), NVTX marks and payloads, graph node creation, samples, OS calls.
Times are ns since the session's start plus its UTC epoch, where the file has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from moetrace.errors import TraceError
from moetrace.formats.events import (
    KERNEL,
    LAUNCH,
    MEMCPY,
    MEMSET,
    OPERATOR,
    RANGE,
    BoolArray,
    Events,
    IntArray,
    Tensors,
)
from moetrace.formats.nsys_file import ABSENT, STRINGS, Database, opened

SUFFIXES = (".sqlite", ".sqlite.gz")

_MAGIC = b"SQLite format 3\x00"
_NVTX, _API = "NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_RUNTIME"
_DEVICE_TABLES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": KERNEL, "CUPTI_ACTIVITY_KIND_MEMCPY": MEMCPY, "CUPTI_ACTIVITY_KIND_MEMSET": MEMSET,
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": KERNEL,
}  # fmt: skip
_GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
_GPU, _CUDA_DEVICE, _SESSION = "TARGET_INFO_GPU", "TARGET_INFO_CUDA_DEVICE", "TARGET_INFO_SESSION_START_TIME"
_TABLES = (_NVTX, _API, STRINGS, *_DEVICE_TABLES, _GPU, _CUDA_DEVICE, _SESSION)

_KERNEL_NAMES = ("demangledName", "shortName", "mangledName")
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD"}
_WHOLE_GRAPH = "whole CUDA graph"
_PUSH_POP, _START_END = 59, 60

_FAR = 1 << 53  # ns: 104 days of capture; times beyond are damage (and bytes)
_LAST_GPU = (1 << 31) - 1

_VERSION = re.compile(r"_v\d{4,5}(?:_ptsz)?$")  # cudaLaunchKernel_v7000
# What torch's emit_nvtx appends to an operator's name; older torch without op_id.
_MARK = re.compile(r"(?<=.), (?:seq|op_id|sizes) = ", re.DOTALL)
_EMITTED = re.compile(
    r"(, seq = -?\d+)?(?:, op_id = \d+)?(?:, sizes = (\[[\d\[\], ]*\]))?(?:, input_op_ids = .*)?", re.DOTALL
)


def sniff(head: bytes) -> bool:
    """Whether the first bytes of a file (decompressed) are those of an SQLite file."""
    return head.startswith(_MAGIC)


def read(path: Path, progress: Callable[[float], object] | None = None) -> Events:
    """All events of an export or report. Raises TraceError with one line if it is none, is damaged, or has nothing to show."""
    with opened(path, _TABLES) as db:
        return _Reader(db, progress).events()


@dataclass(slots=True)
class _Reader:
    """Puts the columns of the events together, table by table."""

    db: Database
    progress: Callable[[float], object] | None
    parts: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"events": 0, "damaged": 0, "unclosed": 0})

    def events(self) -> Events:
        db = self.db
        if not {_NVTX, _API, *_DEVICE_TABLES} & set(db.columns):
            raise TraceError(
                f"{db.path} is an SQLite file but no nsys export: it has neither {_NVTX} nor CUPTI_ACTIVITY tables"
            )
        for i, (table, cls) in enumerate(_DEVICE_TABLES.items()):
            self._told(i)
            self._device(table, cls)
        self._told(len(_DEVICE_TABLES))
        self._api()
        self._told(len(_DEVICE_TABLES) + 1)
        self._nvtx()
        columns = {key: np.concatenate([part[key] for part in self.parts]) for key in self.parts[0]}
        names, texts = db.names(), _Texts()
        self._name(columns, names, texts)
        self._check(columns, texts.code(_WHOLE_GRAPH))
        return self._built(columns, texts)

    def _told(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done / (len(_DEVICE_TABLES) + 2))

    def _add(
        self, cls: int, table: dict[str, IntArray], good: BoolArray | None = None, **more: IntArray
    ) -> None:
        """One part: the rows of a table whose times are sound (and that are `good`)."""
        start, end = table["start"], table["end"]
        sound = (start > -_FAR) & (start <= end) & (end < _FAR)
        self.counts["events"] += len(start)
        self.counts["damaged"] += int((~sound & (True if good is None else good)).sum())
        sound = sound if good is None else sound & good
        none = np.full(len(start), -1, dtype=np.int64)
        columns = {
            "cls": none * 0 + cls, "name": table["name"], "start": start, "dur": end - start, "lane": none, "device": none,
            "process": none, "correlation": none, "nbytes": none * 0, **more,
        }  # fmt: skip
        self.parts.append({key: values[sound] for key, values in columns.items()})

    def _device(self, table: str, cls: int) -> None:
        columns = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid", "bytes", "copyKind")
        rows = self.db.read(table, columns, _KERNEL_NAMES if table != _GRAPHS and cls == KERNEL else ())
        if cls == MEMCPY:
            kinds, inverse = np.unique(rows["copyKind"], return_inverse=True)
            rows["name"] = self._codes([f"Memcpy {_COPIES.get(k, '')}".strip() for k in kinds.tolist()])[
                inverse
            ]
        elif cls == MEMSET or table == _GRAPHS:
            fixed = self._codes(["Memset" if cls == MEMSET else _WHOLE_GRAPH])
            rows["name"] = np.repeat(fixed, len(rows["start"]))
        if table == _GRAPHS:
            self.counts["whole_graphs"] = len(rows["start"])
        written = (rows["start"] != 0) | (rows["end"] != 0)  # 0, 0: a graph node that nsys has no time of
        self.counts["damaged"] += int((~written).sum())
        self._add(
            cls, rows, written, lane=np.maximum(rows["streamId"], 0), device=self._gpus(rows), process=rows["globalPid"],
            correlation=rows["correlationId"], nbytes=np.clip(rows["bytes"], 0, _FAR),
        )  # fmt: skip

    def _codes(self, texts: Sequence[str]) -> IntArray:
        seen = self.db.seen
        return np.array([seen.setdefault(text, len(seen)) for text in texts], dtype=np.int64)

    def _gpus(self, rows: dict[str, IntArray]) -> IntArray:
        """The GPU of each row: a process may see its GPUs under other numbers, which newer exports resolve."""
        known = self.db.read(_CUDA_DEVICE, ("pid", "cudaId", "gpuId"))
        table = zip(*(known[key].tolist() for key in ("pid", "cudaId", "gpuId")), strict=True)
        gpu = {(pid, cuda): gpu for pid, cuda, gpu in table}
        device = np.clip(rows["deviceId"], 0, _LAST_GPU)
        if not gpu or not len(device):
            return device
        pairs, inverse = np.unique(np.stack([rows["globalPid"], device]), axis=1, return_inverse=True)
        found = [gpu.get((pid >> 24 & 0xFFFFFF, cuda), cuda) for pid, cuda in pairs.T.tolist()]
        return np.clip(np.array(found, dtype=np.int64), 0, _LAST_GPU)[inverse.reshape(-1)]

    def _api(self) -> None:
        rows = self.db.read(_API, ("start", "end", "globalTid", "correlationId"), ("nameId", "name"))
        thread = rows["globalTid"]
        self._add(LAUNCH, rows, lane=thread, process=thread & -(1 << 24), correlation=rows["correlationId"])

    def _nvtx(self) -> None:
        typed = "eventType" in self.db.columns.get(_NVTX, ())
        where = f'WHERE "eventType" IN ({_PUSH_POP}, {_START_END})' if typed else ""
        columns = ("start", "end", "globalTid", "endGlobalTid")
        rows = self.db.read(_NVTX, columns, ("text", "textId"), where)
        closed = rows["end"] != ABSENT
        own = (rows["endGlobalTid"] == ABSENT) | (rows["endGlobalTid"] == rows["globalTid"])
        self.counts["unclosed"] = int((~closed).sum())
        self._add(RANGE, rows, closed & own, lane=rows["globalTid"])

    def _name(self, columns: dict[str, Any], names: list[str], texts: _Texts) -> None:
        """Final names, classes and tensors: one decision per distinct name."""
        cls, raw = columns["cls"], columns["name"]
        columns["tensors"] = np.full(len(cls), -1, dtype=np.int64)
        for kind in (KERNEL, MEMCPY, MEMSET, LAUNCH, RANGE):
            at = np.flatnonzero(cls == kind)
            used, inverse = np.unique(raw[at], return_inverse=True)
            told = [
                _emitted(names[c]) if kind == RANGE else _Told(kind, names[c], None) for c in used.tolist()
            ]
            if kind == LAUNCH:
                told = [_Told(kind, _VERSION.sub("", t.name), None) for t in told]
            facts = np.array([(t.cls, texts.code(t.name), texts.tensor(t.tensors)) for t in told], np.int64)
            cls[at], raw[at], columns["tensors"][at] = facts.reshape(-1, 3)[inverse.reshape(-1)].T

    def _check(self, columns: dict[str, Any], whole_graph: int) -> None:
        """Codes for threads and correlations, and what was covered."""
        cls, process, correlation = columns["cls"], columns["process"], columns["correlation"]
        on_device = np.isin(cls, (KERNEL, MEMCPY, MEMSET))
        ranges, launch = np.isin(cls, (RANGE, OPERATOR)), cls == LAUNCH
        if not (on_device | launch | (cls == OPERATOR)).any():
            raise TraceError(
                f"{self.db.path} holds {int(ranges.sum())} NVTX range(s) and no GPU work: there is nothing to attribute "
                "(record with nsys profile -t cuda,nvtx --cuda-graph-trace=node)"
            )
        linked = on_device | launch
        owners = np.unique(process[linked & (process != ABSENT)])
        if len(owners) == 1:  # a schema that names no process in some table: it is the one there is
            process[linked & (process == ABSENT)] = owners[0]
        columns["correlation"] = _joint(process, np.where(correlation > 0, correlation, ABSENT))
        host = ~on_device
        columns["lane"][host] = np.unique(columns["lane"][host], return_inverse=True)[1].reshape(-1)
        kernel = (cls == KERNEL) & (columns["name"] != whole_graph)
        start, end = columns["start"], columns["start"] + columns["dur"]
        inside = _covered(columns["lane"], start, end, np.flatnonzero(launch), np.flatnonzero(ranges))
        key = columns["correlation"]
        self.counts |= {
            "kernels": int(kernel.sum()),
            "kernels_launched": int((kernel & (key >= 0) & np.isin(key, key[launch])).sum()),
            "kernels_in_ranges": int((kernel & (key >= 0) & np.isin(key, key[inside])).sum()),
            "processes": len(np.unique(process[on_device])),
            "gpus": len(np.unique(columns["device"][on_device])),
        }

    def _built(self, columns: dict[str, Any], texts: _Texts) -> Events:
        session = self.db.read(_SESSION, ("utcEpochNs",))["utcEpochNs"]
        epoch = int(session[0]) if len(session) and 0 < session[0] < 1 << 61 else 0
        none = np.full(len(columns["cls"]), -1, dtype=np.int64)
        del columns["process"]
        columns["start"] = columns["start"] + epoch
        columns["cls"] = columns["cls"].astype(np.int8)
        return Events(
            **columns, external=none, launched=none.copy(), texts=list(texts.codes), tensor_sets=list(texts.tensors),
            devices=self._devices(), world_size=max(1, self.counts["gpus"]), counts=self.counts,
        )  # fmt: skip

    def _devices(self) -> tuple[Mapping[str, Any], ...]:
        """The GPUs of the machine, under the keys that Kineto gives them."""
        rows = self.db.read(_GPU, ("id", "totalMemory", "smCount"), ("name",))
        names = self.db.names()
        return tuple(
            {"id": i, "name": names[name], "totalGlobalMem": memory or None, "numSms": sms or None}
            for i, memory, sms, name in zip(
                rows["id"].tolist(), np.maximum(rows["totalMemory"], 0).tolist(), np.maximum(rows["smCount"], 0).tolist(),
                rows["name"].tolist(), strict=True,
            )
        )  # fmt: skip


class _Told(NamedTuple):
    """What a name says of its event."""

    cls: int
    name: str
    tensors: Tensors | None


@dataclass(slots=True)
class _Texts:
    """Codes of distinct texts and of distinct input tensors."""

    codes: dict[str, int] = field(default_factory=dict)
    tensors: dict[Tensors, int] = field(default_factory=dict)

    def code(self, text: str) -> int:
        return self.codes.setdefault(text, len(self.codes))

    def tensor(self, tensors: Tensors | None) -> int:
        return -1 if tensors is None else self.tensors.setdefault(tensors, len(self.tensors))


def _emitted(text: str) -> _Told:
    """A range by its text: torch's emit_nvtx writes ``aten::mm, op_id = 3, sizes = [[2, 4], [4, 8]]`` for an operator.

    It writes the user's own record_function ranges likewise: those lack a namespace, a sequence number and inputs.
    """
    mark = _MARK.search(text)
    at = mark.start() if mark else len(text)
    found, name = _EMITTED.fullmatch(text, at), text[:at]
    if found is None:
        return _Told(RANGE, text, None)
    operator = "::" in name if at < len(text) else name.startswith("aten::")
    if not operator and not found[1] and not found[2]:
        return _Told(RANGE, name, None)
    return _Told(OPERATOR, name, _tensors(found[2]) if found[2] else None)


def _tensors(sizes: str) -> Tensors | None:
    """Shapes as emit_nvtx prints them, a list of tensors as its members; it prints no element types."""
    try:
        shapes = orjson.loads(sizes)
    except orjson.JSONDecodeError:
        return None
    flat: list[tuple[int, ...]] = []
    for shape in shapes:
        members = shape if isinstance(shape, list) and shape and isinstance(shape[0], list) else [shape]
        for member in members:
            if not isinstance(member, list) or not all(
                isinstance(n, int) and 0 <= n < 1 << 48 for n in member
            ):
                return None
            flat.append(tuple(member))
    return Tensors(tuple(flat), ("",) * len(flat))


def _joint(process: IntArray, correlation: IntArray) -> IntArray:
    """One code per (process, correlation id), as ids are unique within a process only; -1 without an id."""
    owner = np.unique(process, return_inverse=True)[1].reshape(-1)
    ids, code = np.unique(correlation, return_inverse=True)
    return np.where(correlation == ABSENT, -1, owner * len(ids) + code.reshape(-1))


def _covered(lane: IntArray, start: IntArray, end: IntArray, asked: IntArray, ranges: IntArray) -> IntArray:
    """Which of the events `asked` lie wholly in at least one of the `ranges` of their thread: a sweep per thread."""
    asked, ranges = (at[np.lexsort((start[at], lane[at]))] for at in (asked, ranges))
    lanes = np.unique(lane[asked])
    groups = [np.split(at, np.searchsorted(lane[at], lanes))[1:] for at in (asked, ranges)]
    found = [np.zeros(0, np.int64)]
    for which, mine, over in zip(lanes.tolist(), *groups, strict=True):
        over = over[
            : np.searchsorted(lane[over], which, side="right")
        ]  # the last group runs on past its thread
        if len(over):
            reach = np.maximum.accumulate(end[over])
            before = np.searchsorted(start[over], start[mine], side="right") - 1
            found.append(mine[(before >= 0) & (reach[np.maximum(before, 0)] >= end[mine])])
    return np.concatenate(found)
