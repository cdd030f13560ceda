"""What NCCL's own NVTX ranges carry: the bytes of each call, its communicator and how many ranks that has.

NCCL (from 2.16 on) gives a payload to the range of each of its calls; nsys writes it beside the range, as bytes laid out by
the file's own payload schemas, or as JSON where it was asked to. A kernel belongs to the call around its launch; calls between
ncclGroupStart and ncclGroupEnd are launched at the end of the outermost group.
Layout of `binaryData`: domain, schema, size of the payload and one further number, 8 bytes each, then the payload (as seen in
exports of 2026). Names of fields: NCCL, src/include/nvtx_payload_schemas.h; types: NVTX, nvToolsExtPayload.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from moetrace.formats.events import Tensors
from moetrace.formats.nsys_file import Database, integer, text_or_id

ENTRIES = "NVTX_PAYLOAD_SCHEMA_ENTRIES"
_COMM, _BYTES, _RANKS, _PEER = "NCCL communicator ID", "Message size [bytes]", "No. of ranks", "Peer rank"
_WANTED = frozenset({_COMM, _BYTES, _RANKS, _PEER})
_HEAD = struct.Struct("<QQQQ")
# Whole numbers by NVTX's type: int, unsigned, long (long), sizes in bits, size_t.
_TYPES = {
    5: "<i",
    6: "<I",
    7: "<q",
    8: "<Q",
    9: "<q",
    10: "<Q",
    15: "<i",
    16: "<I",
    17: "<q",
    18: "<Q",
    22: "<Q",
}
_MOST_SCHEMAS, _LARGEST = 1 << 12, 1 << 12  # schemas; bytes of a payload: those of NCCL have some fifty
_MOST_OPEN = 1 << 16  # calls of one group; communicators
_CALL = re.compile(
    r"nccl(AllReduce|AllGather|ReduceScatter|Broadcast|Bcast|Reduce|Send|Recv|AlltoAll|AllToAll|Gather|Scatter)"
)
_START, _END = "ncclGroupStart", "ncclGroupEnd"
_ABSURD = 1 << 50  # bytes
_ASKED = 500  # names: NCCL has some fifty calls


class Call(NamedTuple):
    """One NCCL call: its range, its name, and what its payload says (-1: nothing)."""

    start: int
    end: int
    thread: int
    name: str
    comm: int = -1
    nbytes: int = -1
    ranks: int = -1
    peer: int = -1


class Message(NamedTuple):
    """What was sent by the kernels launched in a range of a thread."""

    start: int
    end: int
    thread: int
    name: str
    tensors: Tensors


def messages(
    db: Database, table: str, names: Sequence[int], where: str, values: Sequence[int]
) -> Iterator[Message]:
    """The messages of a process, thread by thread in order of time. `names`: ids of strings that are calls of NCCL."""
    schemas = _schemas(db)
    have = db.columns.get(table, set())
    if not {"start", "end", "globalTid"} <= have or not ({"binaryData", "jsonText", "jsonTextId"} & have):
        return
    payload = [c for c in ("binaryData", "jsonText", "jsonTextId") if c in have]
    said = [f'CASE WHEN length("{c}") <= {_LARGEST} THEN "{c}" END' for c in payload]
    select = [
        *(integer(c) for c in ("start", "end", "globalTid")),
        *db.selection(table, (), ("text", "textId")),
        *said,
    ]
    marks = ", ".join("?" * len(names))
    named = [f'"textId" IN ({marks})'] if names and "textId" in have else []
    named += ["\"text\" LIKE 'nccl%'"] if "text" in have else []
    if not named:
        return
    condition = f"{where or 'WHERE 1'} AND ({' OR '.join(named)})"
    given = [*values, *(names if len(named) > 1 or "textId" in named[0] else ())]
    ranks: dict[int, int] = {}
    texts: dict[int, str] = dict(db.strings(list(names)))

    def calls(tail: str) -> Iterator[Call]:
        for chunk in db.rows(table, select, condition, given, tail):
            for start, end, thread, name, *rest in chunk:
                called = name if isinstance(name, str) else texts.get(name, "")
                if 0 <= start <= end:
                    yield _call(start, end, thread, called, rest, payload, schemas, db)

    for call in calls(""):
        if call.ranks > 0 and call.comm >= 0 and len(ranks) < _MOST_OPEN:
            ranks[call.comm] = call.ranks
    state: _Thread | None = None
    for call in calls('ORDER BY "globalTid", "start", "end" DESC'):
        if state is None or state.thread != call.thread:
            state = _Thread(call.thread, ranks)
        yield from state.take(call)


def nccl_names(db: Database, strings: str) -> list[int]:
    """Ids of the strings that are names of NCCL's calls, where ranges may carry payloads."""
    if not {"id", "value"} <= db.columns.get(strings, set()):
        return []
    found: list[int] = []
    for chunk in db.rows(strings, (integer("id"),), "WHERE \"value\" LIKE 'nccl%'"):
        found += [row[0] for row in chunk]
        if len(found) > _ASKED:
            break
    return found[:_ASKED]


@dataclass(slots=True)
class _Thread:
    """The groups that are open on a thread, and the calls in them."""

    thread: int
    ranks: Mapping[int, int]
    depth: int = 0
    calls: list[Call] = field(default_factory=list)

    def take(self, call: Call) -> Iterator[Message]:
        """What a call tells of kernels: itself outside of groups; the end of a group, all calls in it."""
        if call.name == _START:
            self.depth += 1
        elif call.name == _END:
            self.depth = max(0, self.depth - 1)
            if not self.depth and self.calls:
                tensors = _together(self.calls, self.ranks)
                self.calls = []
                if tensors is not None:
                    yield Message(call.start, call.end, call.thread, _END, tensors)
        elif call.nbytes >= 0 and _CALL.fullmatch(call.name):
            if not self.depth:
                yield Message(call.start, call.end, call.thread, call.name, _alone(call, self.ranks))
            elif len(self.calls) < _MOST_OPEN:
                self.calls.append(call)


def _alone(call: Call, ranks: Mapping[int, int]) -> Tensors:
    """The message of one call; its bytes are those that one rank gives."""
    name, group = call.name.removeprefix("nccl"), ranks.get(call.comm, 0)
    whole = group if name == "ReduceScatter" else 1  # NCCL counts what a rank gets of it
    return Tensors(
        nbytes=call.nbytes * max(1, whole), group=group, collective=name.lower().replace("bcast", "broadcast")
    )


def _together(calls: Sequence[Call], ranks: Mapping[int, int]) -> Tensors | None:
    """The message of a group that one kernel is launched for; None where its calls are of several kinds.

    Sends to every rank of the communicator, itself included, are an all-to-all, as torch makes it.
    """
    sent = [c for c in calls if c.name == "ncclSend"]
    comms = {c.comm for c in calls}
    group = ranks.get(next(iter(comms)), 0) if len(comms) == 1 else 0
    if sent or all(c.name == "ncclRecv" for c in calls):
        if any(c.name not in ("ncclSend", "ncclRecv") for c in calls):
            return None
        every = group > 1 and len(sent) == group and {c.peer for c in sent} == set(range(group))
        return Tensors(
            nbytes=sum(c.nbytes for c in sent), group=group, collective="all_to_all" if every else "send"
        )
    if len({c.name for c in calls}) > 1:
        return None
    one = _alone(calls[0], ranks)
    return Tensors(nbytes=sum(_alone(c, ranks).nbytes for c in calls), group=group, collective=one.collective)


# -- payloads ------------------------------------------------------------------------------------------------------
_Fields = Sequence[tuple[str, str, int]]  # (name, format, offset)


def _schemas(db: Database) -> dict[tuple[int, int], list[tuple[str, str, int]]]:
    """The wanted fields of each (domain, schema)."""
    have = db.columns.get(ENTRIES, set())
    if not {"schemaId", "type", "name"} <= have:
        return {}
    numbers = ("domainId", "schemaId", "type", "offset")
    select = [*(integer(c) if c in have else "0" for c in numbers), text_or_id("name")]
    found: dict[tuple[int, int], list[tuple[str, str, int]]] = {}
    for chunk in db.rows(ENTRIES, select):
        for domain, schema, kind, offset, name in chunk:
            fields = found.setdefault((domain, schema), [])
            entry = (str(name), _TYPES.get(kind, ""), max(0, offset))  # no offset: the first field
            if name in _WANTED and entry[1] and entry not in fields:
                fields.append(entry)
        if len(found) > _MOST_SCHEMAS:
            break
    return found


def _call(
    start: int, end: int, thread: int, name: str, rest: Sequence[Any], columns: Sequence[str],
    schemas: Mapping[tuple[int, int], _Fields], db: Database,
) -> Call:  # fmt: skip
    said: dict[str, int] = {}
    for column, value in zip(columns, rest, strict=True):
        if value is None or said:
            continue
        if column == "binaryData":
            said = _unpacked(value, schemas)
        elif column == "jsonText" or isinstance(value, int):
            text = value if column == "jsonText" else db.strings([value]).get(value, "")
            said = _spelled(text) if isinstance(text, str) else {}
    nbytes, ranks = said.get(_BYTES, -1), said.get(_RANKS, -1)
    return Call(
        start, end, thread, name, said.get(_COMM, -1), nbytes if 0 <= nbytes < _ABSURD else -1,
        ranks if 0 < ranks < 1 << 20 else -1, said.get(_PEER, -1),
    )  # fmt: skip


def _unpacked(data: object, schemas: Mapping[tuple[int, int], _Fields]) -> dict[str, int]:
    """The wanted fields of a payload; nothing of one that is not laid out as its schema says."""
    if isinstance(data, str):
        try:
            data = bytes.fromhex(data[: 2 * _LARGEST].removeprefix("0x"))
        except ValueError:
            return {}
    if not isinstance(data, bytes) or not _HEAD.size <= len(data) <= _LARGEST:
        return {}
    domain, schema, size, _ = _HEAD.unpack_from(data)
    if size > len(data) - _HEAD.size:
        return {}
    found = {}
    for name, kind, offset in schemas.get((domain, schema), schemas.get((0, schema), ())):
        if offset + struct.calcsize(kind) <= size:
            found[name] = int(struct.unpack_from(kind, data, _HEAD.size + offset)[0])
    return found


def _spelled(text: str) -> dict[str, int]:
    """The wanted fields of a payload as JSON, wherever in the object they stand."""
    try:
        told = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    found: dict[str, int] = {}
    waiting = [told]
    for _ in range(64):
        if not waiting:
            break
        here = waiting.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, value in items:
            if key in _WANTED and (number := _number(value)) is not None:
                found.setdefault(str(key), number)
            elif isinstance(value, (dict, list)):
                waiting.append(value)
    return found


def _number(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}|0x[0-9a-fA-F]{1,16}", value):
        return int(value, 0) if value.startswith("0x") else int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
