"""Which files are the ranks of one run: by the names that torch, vLLM and SGLang give them, else in the order of names.

One nsys file may hold several ranks by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic  # a pattern may be absolute, which Path.glob refuses
from pathlib import Path

from moetrace.errors import TraceError
from moetrace.files import is_run, url_of
from moetrace.formats import Export, Remote, exported, is_nsys, kineto, located, nsys, nsys_ranks
from moetrace.formats.remote import files_at

Found = dict[int, Path | Remote | Export]
_SUFFIXES = (*kineto.SUFFIXES, *nsys.SUFFIXES, ".nsys-rep")
# In the order in which they are believed: dp0_pp0_tp1_ep1_rank1.<time>.pt.trace.json.gz, <time>-TP-1-DECODE.trace.json.gz.
_RANK = (
    re.compile(r"(?i)(?<![a-z0-9])rank[-_]?(\d{1,6})(?![0-9])"),
    re.compile(r"(?i)(?<![a-z0-9])tp[-_]?(\d{1,6})(?![0-9])"),
)
_STAGE = re.compile(r"(?i)[-_](decode|extend|prefill)(?![a-z])")
_RECORDING = "recording.json"
_NSYS_FILE = "trace.sqlite"  # what a recording under nsys has
_NSYS_NAME = re.compile(r"(?i)\.(sqlite(\.gz)?|nsys-rep|qdrep)([?#].*)?$")
_OTHER = (
    "capture",
    "recording",
    "ranks",
    "run",
)  # JSON files of moetrace's own, and traces of a graph's capture


@contextmanager
def ranks_of(source: Path) -> Iterator[tuple[Path | Export, Found]]:
    """(what to parse, its ranks if it holds several): the files of a folder or a pattern, or the ranks of one nsys file,
    also of one that `moetrace record --nsys` recorded.

    A report, and an export that is compressed, lies beside as an SQLite file until the end, so that it is made only once.
    Raises TraceError as `rank_files` does, and for an nsys file that cannot be read.
    """
    if files := rank_files(source):
        yield source, files
        return
    path: Path | Remote = source
    if url_of(source) is None:
        path = source if source.is_dir() else located(source)
    elif _NSYS_NAME.search(str(source)):
        path = located(source)
    if source.is_dir() and (source / _RECORDING).is_file():
        path = source / _NSYS_FILE
    if (isinstance(path, Path) and url_of(path) is not None) or not is_nsys(path):
        yield source, {}
        return
    if isinstance(path, Path) and path.parent == source:  # a recording, whose facts are of all its ranks
        count = nsys_ranks(path)
        yield source, {i: Export(source, path, i) for i in range(count)} if count > 1 else {}
        return
    with exported(path) as file:
        whole = Export(path, file)
        count = nsys_ranks(whole)
        ranks: Found = {i: Export(path, file, i) for i in range(count)} if count > 1 else {}
        yield (path if file == path else whole), ranks


def rank_files(source: Path) -> Found:
    """The traces of a folder, a pattern or the URL of either by rank; nothing for a single file, a recording or one trace.

    In a folder of folders, recordings (of `moetrace record`) are the ranks. Where the names tell decode from prefill, decode is
    taken. Raises TraceError if names give one rank twice, or a URL cannot be reached.
    """
    files = _candidates(source)
    decodes = [p for p in files if (m := _STAGE.search(p.name)) and m[1].lower() == "decode"]
    files = list(decodes or files)
    return _by_rank(files) if len(files) > 1 else {}


def _candidates(source: Path) -> Sequence[Path | Remote]:
    text = str(source)
    if (url := url_of(source)) is not None:
        return [f for f in files_at(url) if _is_trace(f)]
    if source.is_dir():
        if (source / _RECORDING).exists() or is_run(source):
            return []
        inside = sorted(source.iterdir())
        traces = [p for p in inside if p.is_file() and _is_trace(p)]
        return list(traces or [p for p in inside if (p / _RECORDING).is_file()])
    if has_magic(text) and not source.exists():
        return sorted(
            Path(p)
            for p in glob(text)  # noqa: PTH207
            if Path(p).is_file() and _is_trace(Path(p))
        )
    return []


def _is_trace(path: Path | Remote) -> bool:
    name = path.name.lower()
    return name.endswith(_SUFFIXES) and name.split(".")[0] not in _OTHER


def _by_rank(files: Sequence[Path | Remote]) -> Found:
    for pattern in _RANK:
        told = [pattern.findall(p.name.replace("_", "-")) for p in files]
        if not all(told):
            continue
        found: Found = {}
        for path, numbers in zip(files, told, strict=True):
            rank = int(numbers[-1])
            if rank in found:
                raise TraceError(
                    f"{found[rank]} and {path} are both of rank {rank} by name: keep one file per rank, or give a pattern"
                )
            found[rank] = path
        return found
    return Found(enumerate(files))
