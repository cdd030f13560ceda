"""Which ranks an nsys trace holds: what each process did on each GPU, and the rows of a table that are its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moetrace.errors import TraceError
from moetrace.formats.events import KERNEL, MEMCPY, MEMSET
from moetrace.formats.nsys_file import ABSENT, Database, integer

NVTX, API = "NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_RUNTIME"
GRAPHS, CUDA_DEVICE = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "TARGET_INFO_CUDA_DEVICE"
DEVICE_TABLES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": KERNEL, "CUPTI_ACTIVITY_KIND_MEMCPY": MEMCPY, "CUPTI_ACTIVITY_KIND_MEMSET": MEMSET,
    GRAPHS: KERNEL,
}  # fmt: skip

_PROCESS = -(1 << 24)  # mask of a thread's number that leaves its process
_LAST_GPU = (1 << 31) - 1
_MOST = 1 << 12  # ranks, processes
FAR = 1 << 53  # ns: 104 days of capture; times beyond are damage


class Rank(NamedTuple):
    """What one process (its globalPid, or `ABSENT`) did on one device, under the number that the process has for it."""

    process: int
    device: int
    gpu: int  # the device's number in the file's list of GPUs, where that says it


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds: its ranks, and how many ops lie on GPUs where their process ran no kernel."""

    ranks: list[Rank]
    processes: int  # that ran something on a GPU
    callers: int  # processes, those that only called the API included
    strays: int

    @property
    def gpus(self) -> int:
        """Number of GPUs that are some rank's."""
        return len({rank.gpu for rank in self.ranks})

    def of_process(self, rank: Rank | None) -> tuple[str, list[int]]:
        """The condition that a row is of the process, by its thread, and its values; none where the file has only one."""
        if self.callers < 2 or rank is None:
            return "", []
        return f'WHERE ("globalTid" & {_PROCESS}) = ?', [rank.process]

    def on_device(self, db: Database, table: str, rank: Rank | None) -> tuple[str, list[int]]:
        """The condition that a row of a table of ops is of the rank, and its values; none where the file has only one."""
        have = db.columns.get(table, set())
        conditions: list[str] = []
        values: list[int] = []
        if rank is not None and self.processes > 1 and "globalPid" in have:
            conditions.append(f"({integer('globalPid')} & {_PROCESS}) = ?")
            values.append(rank.process)
        if rank is not None and len(self.ranks) + self.strays > 1 and "deviceId" in have:
            conditions.append(f"max(0, min({_LAST_GPU}, {integer('deviceId')})) = ?")
            values.append(rank.device)
        return (f"WHERE {' AND '.join(conditions)}", values) if conditions else ("", [])


def survey_of(db: Database) -> Survey:
    """Which processes ran on which GPUs."""
    if not {NVTX, API, *DEVICE_TABLES} & set(db.columns):
        raise TraceError(
            f"{db.path} is an SQLite file but not an nsys export: it has neither {NVTX} nor CUPTI_ACTIVITY tables"
        )
    ops: dict[tuple[int, int], int] = {}
    computing: set[tuple[int, int]] = set()
    for table, cls in DEVICE_TABLES.items():
        for process, device, count in _groups(db, table, ("globalPid", "deviceId")):
            key = (process & _PROCESS, max(0, min(_LAST_GPU, device)))
            ops[key] = ops.get(key, 0) + count
            computing |= {key} if cls == KERNEL else set()
    known = {process for process, _ in ops if process != ABSENT}
    if len(known) == 1:  # a schema that names no process in some table: it is the one there is
        owner = next(iter(known))
        joined: dict[tuple[int, int], int] = {}
        for (_, device), count in ops.items():
            joined[owner, device] = joined.get((owner, device), 0) + count
        ops, computing = joined, {(owner, device) for _, device in computing}
    chosen = computing or set(ops)
    gpu = _gpu_numbers(db)
    found = [Rank(p, d, gpu.get((p >> 24 & 0xFFFFFF, d), d)) for p, d in chosen]
    found.sort(key=lambda r: (r.gpu, r.process))
    callers = {process for process, _ in _callers(db)} | known
    strays = sum(count for key, count in ops.items() if key not in chosen)
    return Survey(found, len({process for process, _ in ops}), len(callers), strays)


def _groups(db: Database, table: str, columns: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Distinct values of whole numbers, with how many rows have them whose times are sound."""
    have = db.columns.get(table, set())
    select = [integer(c) if c in have else str(ABSENT) for c in columns]
    places = ", ".join(str(i + 1) for i in range(len(columns)))
    seen = 0
    start, end = (integer(c) if c in have else str(ABSENT) for c in ("start", "end"))
    sound = f"WHERE {start} > -{FAR} AND {start} <= {end} AND {end} < {FAR} AND ({start} != 0 OR {end} != 0)"
    for chunk in db.rows(table, [*select, "count(1)"], sound, tail=f"GROUP BY {places} LIMIT {_MOST + 1}"):
        seen += len(chunk)
        if seen > _MOST:
            raise TraceError(
                f"{db.path} is damaged: its {table} names more than {_MOST:,} processes and GPUs"
            )
        yield from chunk


def _callers(db: Database) -> Iterator[tuple[int, int]]:
    """The processes that called the API, with the number of calls."""
    if "globalTid" not in db.columns.get(API, set()):
        return
    process = f'CASE typeof("globalTid") WHEN \'integer\' THEN "globalTid" & {_PROCESS} END'
    for chunk in db.rows(API, [process, "count(1)"], tail=f"GROUP BY 1 LIMIT {_MOST}"):
        yield from ((p, n) for p, n in chunk if p is not None)


def _gpu_numbers(db: Database) -> dict[tuple[int, int], int]:
    """(process, its number for a device) to the GPU: a process may see its GPUs under other numbers."""
    have = db.columns.get(CUDA_DEVICE, set())
    columns = ("pid", "cudaId", "gpuId")
    if not set(columns) <= have:
        return {}
    found: dict[tuple[int, int], int] = {}
    for chunk in db.rows(CUDA_DEVICE, [integer(c) for c in columns]):
        found.update({(pid, cuda): max(0, min(_LAST_GPU, gpu)) for pid, cuda, gpu in chunk})
        if len(found) > _MOST:
            break
    return found
