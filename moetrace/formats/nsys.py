"""Nsight Systems traces: the SQLite that `nsys export` writes (2022 to 2026), plain or gzip; `.nsys-rep` through nsys itself.

Any table and any column may be absent, and whatever is there may be damaged: only known columns of real tables are read,
each value checked for its type, from a read-only connection, some thousand rows at a time. What one process did on one GPU
is read as one rank. Not read: the environment (TARGET_INFO_SYSTEM_ENV), NVTX marks, samples, OS calls.
Times are ns since the session's start plus its UTC epoch, where the file has one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moetrace.errors import TraceError
from moetrace.formats import nsys_graphs, nsys_nccl
from moetrace.formats.events import Events, Stored
from moetrace.formats.nsys_file import STRINGS, Export, opened
from moetrace.formats.nsys_ranks import API, CUDA_DEVICE, DEVICE_TABLES, NVTX, Rank, survey_of
from moetrace.formats.nsys_reader import GPU, SESSION, Reader
from moetrace.formats.piles import Spill
from moetrace.formats.remote import Remote

SUFFIXES = (".sqlite", ".sqlite.gz")

_MAGIC = b"SQLite format 3\x00"
_TABLES = (
    NVTX, API, STRINGS, *DEVICE_TABLES, GPU, CUDA_DEVICE, SESSION, *nsys_graphs.TABLES, nsys_nccl.ENTRIES,
)  # fmt: skip


def sniff(head: bytes) -> bool:
    """Whether the first bytes of a file (decompressed) are those of an SQLite file."""
    return head.startswith(_MAGIC)


def ranks(path: Path | Remote | Export) -> list[Rank]:
    """The ranks in an export or report, by GPU and process. Raises TraceError if it is none or is damaged."""
    with opened(path, _TABLES) as db:
        return survey_of(db).ranks


def read(
    path: Path | Remote | Export,
    progress: Callable[[float], object] | None = None,
    spill: Spill | None = None,
    gpu: int | None = None,
) -> Events | Stored:
    """The events of an export or report with one rank, or of rank `gpu` of several; stored in `spill` if they are many.

    Raises TraceError with one line if it is none, is damaged, has nothing to show, or holds several ranks and none is said.
    """
    with opened(path, _TABLES) as db:
        survey = survey_of(db)
        gpu = path.gpu if isinstance(path, Export) and gpu is None else gpu
        count = len(survey.ranks)
        if gpu is None and count > 1:
            raise TraceError(
                f"{db.path} holds {count} ranks ({survey.processes} process(es), {survey.gpus} GPU(s)): "
                "'moetrace parse FILE -o DIR' makes a RUN of each, give one of these (in Python: parse(FILE, gpu=0))"
            )
        if gpu is not None and not 0 <= gpu < max(1, count):
            raise TraceError(f"{db.path} holds {count} rank(s): there is no number {gpu}, they count from 0")
        return Reader(db, survey, gpu or 0, progress, spill).events()
