"""A RUN behind a URL, of one rank or of many: copied into one temporary file without a name, of which nothing is left.

The disk's room is checked as it is copied. Tables are then read from the copy, not from the store.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

from moetrace.errors import RunError
from moetrace.files import RANKS_SUMMARY, RUN_FILES
from moetrace.formats.piles import Spill
from moetrace.formats.remote import file_system, reached
from moetrace.formats.where import is_trace_name
from moetrace.ranks.together import numbers, summary_of
from moetrace.ranks.value import FOLDER, Ranks
from moetrace.run import Run
from moetrace.run.value import meta_of

Progress = Callable[[float], object]
_META, _OPS, _ROUTING, _TOKENS = RUN_FILES
_BLOCK = 1 << 22
_FAILED = "{} cannot be read"


@dataclass(frozen=True, slots=True)
class RemoteRun:
    """A RUN behind a URL: its files by name, with their sizes in bytes (0 where the store does not say)."""

    url: str
    facts: Mapping[str, Any] | None  # the summary of ranks, where it holds several
    files: Mapping[str, int]
    _fs: Any
    _path: str

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(self.files.values())

    def load(self, progress: Progress | None = None) -> Run:
        """The run, copied here. Raises RunError where it cannot be read, OutputError where the disk has no room."""
        spill = Spill()
        shared, told = spill.file(), _Told(progress, max(1, self.size))
        windows = {name: self._copied(name, spill, shared, told) for name in self.files}
        if self.facts is None:
            return self._run("", windows)
        runs = {rank: self._run(f"{FOLDER.format(rank)}/", windows) for rank in numbers(self.facts)}
        return Ranks.of(runs, self.facts, self.url.rsplit("/", 1)[-1])

    def _run(self, folder: str, windows: Mapping[str, _Window]) -> Run:
        """The run of a folder ("" or one that ends with a slash) in the copy."""
        where = f"{self.url}/{folder}".rstrip("/")
        for name in (_META, _OPS):
            if folder + name not in windows:
                raise RunError(f"{where} is not a moetrace run: it has no {name}; parse the trace again")
        routing = [cast(IO[bytes], windows[folder + n]) for n in (_ROUTING, _TOKENS) if folder + n in windows]
        return Run(
            meta_of(windows[folder + _META].read(), where),
            file=cast(IO[bytes], windows[folder + _OPS]),
            routing_files=tuple(routing),
        )

    def _copied(self, name: str, spill: Spill, shared: IO[bytes], told: _Told) -> _Window:
        """Appends a file to the copy and gives its place in it."""
        begin = shared.seek(0, os.SEEK_END)
        url = f"{self.url}/{name}"
        with reached(url, RunError, _FAILED), self._fs.open(f"{self._path}/{name}", "rb") as file:
            while block := file.read(_BLOCK):
                spill.check(len(block), f"{url} needs more to be copied here (point TMPDIR at a larger disk)")
                shared.write(block)
                told.add(len(block))
        shared.flush()
        return _Window(shared, begin, shared.tell() - begin)


def run_behind(url: str) -> RemoteRun | None:
    """The RUN behind a URL; None where there is none, such as at a trace. Only what it consists of is looked at.

    Raises TraceError where fsspec is missing or the URL cannot be reached.
    """
    web = url.startswith(("http:", "https:"))
    if is_trace_name(re.split("[?#]", url)[0] if web else url) or (web and "?" in url):
        return None
    url = url.rstrip("/")
    fs, path = file_system(url)
    path = path.rstrip("/")
    with reached(url):
        files = _sizes(fs, path, ("",), RUN_FILES)
        if _META in files:
            return RemoteRun(url, None, files, fs, path)
        if not _sizes(fs, path, ("",), (RANKS_SUMMARY,)):
            return None
        facts = summary_of(fs.cat_file(f"{path}/{RANKS_SUMMARY}"), f"{url}/{RANKS_SUMMARY}")
        folders = [f"{FOLDER.format(rank)}/" for rank in numbers(facts)]
        return RemoteRun(url, facts, _sizes(fs, path, folders, RUN_FILES), fs, path)


def _sizes(
    fs: Any, path: str, folders: tuple[str, ...] | list[str], names: tuple[str, ...]
) -> dict[str, int]:
    """Those of the files that are there, with their sizes."""
    found = {}
    for name in (folder + name for folder in folders for name in names):
        try:
            info = fs.info(f"{path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        if info.get("type") == "file":
            found[name] = int(info.get("size") or 0)
    return found


class _Told:
    """Tells which share of the bytes is copied."""

    def __init__(self, progress: Progress | None, size: int) -> None:
        self._progress, self._size, self._done = progress, size, 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(min(1.0, self._done / self._size))


class _Window(io.RawIOBase):
    """A part of a file for reading, with a position of its own; the file is closed with the last window."""

    def __init__(self, file: IO[bytes], begin: int, size: int) -> None:
        self._shared, self._begin, self._size, self._at = file, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = os.pread(self._shared.fileno(), wanted, self._begin + self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at
