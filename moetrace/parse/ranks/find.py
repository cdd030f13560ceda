"""Which files are the ranks of one run: by the names that torch, vLLM and SGLang give them, else in the order of names.

One nsys file may hold several ranks by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob, has_magic  # a pattern may be absolute, which Path.glob refuses
from pathlib import Path

from moetrace.errors import TraceError
from moetrace.files import is_run, url_of
from moetrace.formats import Export, Remote, exported, is_nsys, located, nsys_ranks
from moetrace.formats.remote import files_at
from moetrace.formats.where import is_beside, is_trace_name

# In the order in which they are believed: dp0_pp0_tp1_ep1_rank1.<time>.pt.trace.json.gz, <time>-TP-1-DECODE.trace.json.gz.
_RANK = (
    re.compile(r"(?i)(?<![a-z0-9])rank[-_]?(\d{1,6})(?![0-9])"),
    re.compile(r"(?i)(?<![a-z0-9])tp[-_]?(\d{1,6})(?![0-9])"),
)
_STAGE = re.compile(r"(?i)[-_](decode|extend|prefill)(?![a-z])")
_RECORDING = "recording.json"
_NSYS_FILE = "trace.sqlite"  # what a recording under nsys has
_NSYS_NAME = re.compile(r"(?i)\.(sqlite(\.gz)?|nsys-rep|qdrep)([?#].*)?$")
# JSON files of moetrace's own, and traces of a graph's capture.
_OTHER = ("capture", "recording", "ranks", "run")
_SHOWN = 3


class Found(dict[int, Path | Remote | Export]):
    """The files of the ranks of one run, by rank.

    `told`: whether names, or the one file that holds them, say which rank each is. `notes`: what was left out, in sentences.
    """

    def __init__(
        self,
        files: Mapping[int, Path | Remote | Export] | None = None,
        *,
        told: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(files or {})
        self.told, self.notes = told, tuple(notes)


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
        yield source, Found()
        return
    if isinstance(path, Path) and path.parent == source:  # a recording, whose facts are of all its ranks
        count = nsys_ranks(path)
        yield source, Found({i: Export(source, path, i) for i in range(count)} if count > 1 else {})
        return
    with exported(path) as file:
        whole = Export(path, file)
        count = nsys_ranks(whole)
        ranks = {i: Export(path, file, i) for i in range(count)} if count > 1 else {}
        yield (path if file == path else whole), Found(ranks)


def rank_files(source: Path) -> Found:
    """The traces of a folder, a pattern or the URL of either by rank; nothing for a single file, a recording or one trace.

    In a folder of folders, recordings (of `moetrace record`) are the ranks. Files that only lie beside traces are passed over;
    where all names tell decode from prefill, decode is taken. Raises TraceError if names give one rank twice or some files
    none, or a URL cannot be reached.
    """
    files = list(_candidates(source))
    beside = [f for f in files if not _told(f) and not _is_folder(f) and is_beside(f)] if files[1:] else []
    notes = [f"no traces, passed over: {_names(beside)}"] if beside else []
    files = [f for f in files if f not in beside]
    stages = [m[1].lower() for f in files if (m := _STAGE.search(f.name))]
    if len(stages) == len(files) and "decode" in stages:
        decodes, others = (
            [f for f, s in zip(files, stages, strict=True) if (s == "decode") is w] for w in (True, False)
        )
        files = decodes
        notes += [f"traces of prefill, left out beside those of decode: {_names(others)}"] if others else []
    return _by_rank(files, notes) if len(files) > 1 else Found()


def _told(path: Path | Remote) -> bool:
    """Whether the name of a file tells its rank."""
    name = path.name.replace("_", "-")
    return any(pattern.search(name) for pattern in _RANK)


def _is_folder(path: Path | Remote) -> bool:
    return isinstance(path, Path) and path.is_dir()


def _names(files: Sequence[Path | Remote]) -> str:
    return ", ".join(f.name for f in files[:_SHOWN]) + (
        f" and {len(files) - _SHOWN} more" if files[_SHOWN:] else ""
    )


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
    return is_trace_name(path.name) and path.name.lower().split(".")[0] not in _OTHER


def _by_rank(files: Sequence[Path | Remote], notes: Sequence[str]) -> Found:
    for pattern in _RANK:
        told = [pattern.findall(p.name.replace("_", "-")) for p in files]
        if not all(told):
            continue
        found: dict[int, Path | Remote | Export] = {}
        for path, numbers in zip(files, told, strict=True):
            rank = int(numbers[-1])
            if rank in found:
                raise TraceError(
                    f"{found[rank]} and {path} are both of rank {rank} by name: keep one file per rank, or give a pattern"
                )
            found[rank] = path
        return Found(found, notes=notes)
    if named := [p for p in files if _told(p)]:
        other = next((p for p in files if not _told(p)), files[0])
        raise TraceError(
            f"the name of {named[0]} tells its rank and that of {other} does not: they are not taken for ranks of one run; "
            "give a pattern in quotes, or name them alike"
        )
    return Found(dict(enumerate(files)), told=False, notes=notes)
