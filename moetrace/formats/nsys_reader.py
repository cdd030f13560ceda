"""The events of one rank of an nsys export, put together table by table and piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import TraceError
from moetrace.formats import nsys_graphs, nsys_nccl
from moetrace.formats.events import FAR as LATEST
from moetrace.formats.events import (
    KERNEL,
    LAUNCH,
    MEMCPY,
    MEMSET,
    NODE,
    OPERATOR,
    RANGE,
    BoolArray,
    Codes,
    Events,
    EventsBuilder,
    IntArray,
    Stored,
)
from moetrace.formats.nsys_file import ABSENT, STRINGS, Database, integer
from moetrace.formats.nsys_names import Names, api, emitted
from moetrace.formats.nsys_ranks import API, DEVICE_TABLES, FAR, GRAPHS, NVTX, Rank, Survey
from moetrace.formats.piles import Spill

WHOLE_GRAPH = "whole CUDA graph"  # no kernel: a replay that was traced as one
GPU, SESSION = "TARGET_INFO_GPU", "TARGET_INFO_SESSION_START_TIME"

_KERNEL_NAMES = ("demangledName", "shortName", "mangledName")
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD"}
_PUSH_POP, _START_END = 59, 60
_MOST_IDS = 1 << 62
_MOST_THREADS = 1 << 16
_MOST_GPUS = 1 << 10


@dataclass(slots=True)
class Reader:
    """Puts the events of one rank together, table by table and piece by piece."""

    db: Database
    survey: Survey
    gpu: int
    progress: Callable[[float], object] | None
    spill: Spill | None
    builder: EventsBuilder = field(init=False)
    nodes: nsys_graphs.GraphNodes = field(init=False)
    rank: Rank | None = field(init=False)
    lanes: Codes = field(default_factory=Codes)
    launching: set[int] = field(default_factory=set)  # threads
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("events", "damaged", "unclosed"), 0)
    )
    found: dict[int, int] = field(default_factory=dict)  # events of each class
    _read: int = field(init=False, default=0)
    _total: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self.builder = EventsBuilder(self.spill)
        self.rank = self.survey.ranks[self.gpu] if self.survey.ranks else None

    def events(self) -> Events | Stored:
        db = self.db
        self._total = max(1, sum(db.count(table) for table in (*DEVICE_TABLES, API, NVTX)))
        self.nodes = nsys_graphs.graph_nodes(db, *self.survey.of_process(self.rank))
        for table, cls in DEVICE_TABLES.items():
            self._device(table, cls)
        self._api()
        self._node_events()
        self._nvtx()
        self._messages()
        self._check()
        return self._built()

    # -- pieces ------------------------------------------------------------------------------------------------------
    def _pieces(
        self, table: str, columns: Sequence[str], names: Sequence[str], where: str, values: Sequence[int]
    ) -> Iterator[tuple[dict[str, IntArray], tuple[str | int | None, ...]]]:
        """(whole numbers by column, names) of some rows at a time, telling progress."""
        before, most = self._read, self.db.count(table)
        read = 0
        for chunk in self.db.rows(table, self.db.selection(table, columns, names), where, values):
            *numbers, raw = zip(*chunk, strict=True)
            matrix = np.array(numbers, dtype=np.int64)
            read += len(chunk)
            self._tell(before + min(read, most))
            yield dict(zip(columns, matrix, strict=True)), raw
        self._tell(before + most)
        self._read = before + most

    def _tell(self, rows: int) -> None:
        if self.progress is not None:
            self.progress(min(1.0, rows / self._total))

    def _add(
        self, cls: int, rows: Mapping[str, IntArray], said: IntArray, good: BoolArray, **more: IntArray
    ) -> None:
        """The rows whose times are sound and that are `good`; `said` is what `Names` made of their names."""
        start, end = rows["start"], rows["end"]
        sound = (start > -FAR) & (start <= end) & (end < FAR)
        self.counts["events"] += len(start)
        self.counts["damaged"] += int((~sound & good).sum())
        sound &= good
        if not sound.any():
            return
        classes = np.where(said[:, 0] >= 0, said[:, 0], cls).astype(np.int8)
        columns: dict[str, npt.NDArray[Any]] = {
            "cls": classes, "name": said[:, 1], "tensors": said[:, 2], "start": start, "dur": end - start, **more,
        }  # fmt: skip
        kept = {name: values[sound] for name, values in columns.items()}
        for code, number in zip(*np.unique(kept["cls"], return_counts=True), strict=True):
            self.found[int(code)] = self.found.get(int(code), 0) + int(number)
        self.builder.extend(kept)

    def _lane(self, threads: IntArray) -> IntArray:
        """Dense numbers for threads."""
        used, inverse = np.unique(threads, return_inverse=True)
        codes = [self.lanes[t] for t in used.tolist()]
        if len(self.lanes) > _MOST_THREADS:
            raise TraceError(f"{self.db.path} is damaged: it names more than {_MOST_THREADS:,} threads")
        return np.array(codes, dtype=np.int64)[inverse.reshape(-1)]

    # -- tables ------------------------------------------------------------------------------------------------------
    def _device(self, table: str, cls: int) -> None:
        columns = (
            "start",
            "end",
            "deviceId",
            "streamId",
            "correlationId",
            "globalPid",
            "bytes",
            "copyKind",
            "graphNodeId",
        )
        named = cls == KERNEL and table != GRAPHS
        where, values = self.survey.on_device(self.db, table, self.rank)
        names = Names(self.db, self.builder)
        fixed = WHOLE_GRAPH if table == GRAPHS else "Memset"
        for rows, raw in self._pieces(table, columns, _KERNEL_NAMES if named else (), where, values):
            written = (rows["start"] != 0) | (rows["end"] != 0)  # 0, 0: a graph node that nsys has no time of
            self.counts["damaged"] += int((~written).sum())
            if table == GRAPHS:
                self.counts["whole_graphs"] = self.counts.get("whole_graphs", 0) + len(raw)
            if cls == MEMCPY:
                raw = tuple(f"Memcpy {_COPIES.get(k, '')}".strip() for k in rows["copyKind"].tolist())
            said = names.of(raw if named or cls == MEMCPY else (fixed,) * len(raw))
            gpu = self.rank.gpu if self.rank is not None else 0
            self._add(
                cls, rows, said, written, lane=np.maximum(rows["streamId"], 0), device=np.full(len(raw), gpu),
                correlation=_ids(rows["correlationId"]), nbytes=np.clip(rows["bytes"], 0, FAR),
                node=self.nodes.of(rows["graphNodeId"]),
            )  # fmt: skip

    def _api(self) -> None:
        names = Names(self.db, self.builder, api)
        columns = ("start", "end", "globalTid", "correlationId")
        for rows, raw in self._pieces(API, columns, ("nameId", "name"), *self.survey.of_process(self.rank)):
            self.launching |= set(np.unique(rows["globalTid"]).tolist())
            everyone = np.ones(len(raw), dtype=bool)
            lane = self._lane(rows["globalTid"])
            self._add(
                LAUNCH, rows, names.of(raw), everyone, lane=lane, correlation=_ids(rows["correlationId"])
            )

    def _node_events(self) -> None:
        """Where and when the nodes were made that kernels replay."""
        made = np.flatnonzero(self.nodes.made)
        if not len(made):
            return
        start = self.nodes.start[made]
        said = np.tile(Names(self.db, self.builder).of(("graph node",)), (len(made), 1))
        lane = self._lane(self.nodes.thread[made])
        self._add(
            NODE, {"start": start, "end": start}, said, np.ones(len(made), dtype=bool), lane=lane, node=made
        )

    def _nvtx(self) -> None:
        """Ranges: push/pop, and start/end on one thread, lie on their thread; others on all that launch."""
        typed = "eventType" in self.db.columns.get(NVTX, ())
        where, values = self.survey.of_process(self.rank)
        if typed:
            where = f'{where or "WHERE 1"} AND "eventType" IN ({_PUSH_POP}, {_START_END})'
        names = Names(self.db, self.builder, emitted)
        columns = ("start", "end", "globalTid", "endGlobalTid")
        for rows, raw in self._pieces(NVTX, columns, ("text", "textId"), where, values):
            closed, said = rows["end"] != ABSENT, names.of(raw)
            self.counts["unclosed"] += int((~closed).sum())
            across = (rows["endGlobalTid"] != ABSENT) & (rows["endGlobalTid"] != rows["globalTid"]) & closed
            self._add(RANGE, rows, said, closed & ~across, lane=self._lane(rows["globalTid"]))
            for i in np.flatnonzero(across).tolist():
                self._across({name: values[i : i + 1] for name, values in rows.items()}, said[i : i + 1])

    def _across(self, row: Mapping[str, IntArray], said: IntArray) -> None:
        """A range that ends on another thread than it began: it is of the process, so of each thread that launches."""
        threads = sorted(self.launching | set(row["globalTid"].tolist()))
        rows = {name: np.repeat(values, len(threads)) for name, values in row.items()}
        counts = dict(self.counts)
        lane = self._lane(np.array(threads, dtype=np.int64))
        said = np.repeat(said, len(threads), axis=0)
        self._add(RANGE, rows, said, np.ones(len(threads), dtype=bool), lane=lane)
        lost = self.counts["damaged"] > counts["damaged"]
        self.counts |= {**counts, "damaged": counts["damaged"] + lost}  # it is one event, counted already

    def _messages(self) -> None:
        """The calls of NCCL once more, as operators that say what is sent."""
        if not self.found.get(KERNEL):
            return
        ids = nsys_nccl.nccl_names(self.db, STRINGS)
        builder = self.builder
        sent = 0
        for m in nsys_nccl.messages(self.db, NVTX, ids, *self.survey.of_process(self.rank)):
            sent += 1
            builder.add(OPERATOR, m.name, m.start, m.end - m.start, self.lanes[m.thread], tensors=m.tensors)
        if sent:
            self.counts["nccl_messages"] = sent

    def _check(self) -> None:
        """Raises TraceError where there is nothing to parse."""
        if not set(self.found) & {KERNEL, MEMCPY, MEMSET, LAUNCH, OPERATOR}:
            raise TraceError(
                f"{self.db.path} holds {self.found.get(RANGE, 0)} NVTX range(s) and no GPU work: there is nothing to attribute "
                "(record with nsys profile -t cuda,nvtx --cuda-graph-trace=node)"
            )
        self.counts |= {"nvtx": 1, "graph_nodes": len(self.nodes), "strays": self.survey.strays}

    def _built(self) -> Events | Stored:
        epoch = 0
        if "utcEpochNs" in self.db.columns.get(SESSION, set()):
            for chunk in self.db.rows(SESSION, [integer("utcEpochNs")], tail="LIMIT 1"):
                epoch = chunk[0][0] if 0 < chunk[0][0] < LATEST else 0
        counts = {
            name: count
            for name, count in self.counts.items()
            if count or name in ("events", "damaged", "unclosed")
        }
        return self.builder.build(
            epoch,
            rank=self.gpu,
            world_size=max(1, len(self.survey.ranks)),
            devices=self._devices(),
            counts=counts,
        )

    def _devices(self) -> tuple[Mapping[str, Any], ...]:
        """The GPUs of the machine, under the keys that Kineto gives them."""
        found: list[Mapping[str, Any]] = []
        for chunk in self.db.rows(GPU, self.db.selection(GPU, ("id", "totalMemory", "smCount"), ("name",))):
            texts = EventsBuilder()
            codes = Names(self.db, texts).of([row[3] for row in chunk])[:, 1].tolist()
            names = texts.texts.all
            for (i, memory, sms, _), code in zip(chunk, codes, strict=True):
                sizes = {"totalGlobalMem": max(memory, 0) or None, "numSms": max(sms, 0) or None}
                found.append({"id": i, "name": names[code], **sizes})
            if len(found) > _MOST_GPUS:
                break
        return tuple(found[:_MOST_GPUS])


def _ids(correlation: IntArray) -> IntArray:
    """Correlation ids; -1 where there is none."""
    return np.where((correlation > 0) & (correlation < _MOST_IDS), correlation, -1)
