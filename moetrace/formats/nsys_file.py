"""The SQLite file behind an nsys trace, and its columns: nothing of it is trusted.

A report (`.nsys-rep`) is exported by the user's own nsys and a compressed export is expanded, both into a temporary file.
The connection is read-only; known columns of real tables are read in pieces, each value with its type checked. Views,
generated columns, indexes and functions of the file are never run. A query that takes long can be interrupted.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moetrace.errors import TraceError
from moetrace.formats.piles import Spill
from moetrace.formats.remote import Remote
from moetrace.scratch import held_directory, remove

REPORTS = (".nsys-rep", ".qdrep")
EXPORT = "nsys export --type sqlite -f true -o OUT.sqlite"
STRINGS = "StringIds"
ABSENT = -(1 << 62)  # stands for NULL, for a value of another type and for a column that is not there

_CHUNK = 2048  # rows fetched at a time: so many of the longest texts are what one fetch holds at the most
_LONGEST = 16384  # characters kept of a text
_LARGEST = 1 << 24  # bytes of one value: beyond, SQLite refuses it (from Python 3.11 on)
_LEAST_ROW = 4  # bytes that a row takes in the file at the least: more rows than that are a damaged tree
_BLOBS = "--include-blobs"  # of NVTX ranges, what NCCL says of its calls among them: an option of newer nsys
_EXPANSION = 100  # exports shrink 4 to 12 times with gzip; what shrinks more than this is none
_PATIENCE = 100_000  # SQLite's own steps between two looks at whether the user wants to stop
_CACHE_KIB = 8192  # of pages, and of what a sort holds before it goes to disk
_BLOCK = 1 << 22  # bytes copied at a time
_ASKED = 500  # ids looked up with one query
_FEW = 1 << 16  # strings that are held where ids cannot be looked up
_INTERRUPTED = "interrupted"  # SQLite's word for a query that the progress handler ended


@dataclass(frozen=True, slots=True)
class Export:
    """An export as an SQLite file that stays while it is read: of `path`, the user's own, or of one of the ranks in it.

    It has those of a Path's methods that a reader needs.
    """

    path: Path | Remote
    file: Path
    gpu: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.gpu is None else f"{self.path} (rank {self.gpu})"

    @property
    def name(self) -> str:
        return self.path.name

    def is_file(self) -> bool:
        return self.file.is_file()

    def stat(self) -> os.stat_result:
        """That of the SQLite file."""
        return self.file.stat()

    def resolve(self) -> Export:
        """The same by absolute paths."""
        path = self.path.resolve() if isinstance(self.path, Path) else self.path
        return Export(path, self.file.resolve(), self.gpu)


@contextmanager
def opened(path: Path | Remote | Export, tables: Sequence[str]) -> Iterator[Database]:
    """These tables of an export or report. Raises TraceError if it cannot be exported, expanded or read, then or later."""
    shown = path.path if isinstance(path, Export) else path
    with exported(path) as file:
        try:
            with closing(_connect(file)) as connection:
                yield Database(connection, shown, file.stat().st_size, tables)
        except (sqlite3.Error, UnicodeDecodeError) as err:  # the latter: its message quotes damaged bytes
            if str(err) == _INTERRUPTED:
                raise KeyboardInterrupt from None
            said = " ".join(str(err).split())[:200]
            raise TraceError(
                f"{shown} is a damaged SQLite file ({said}): copy it again, or export again with {EXPORT}"
            ) from err


@contextmanager
def exported(path: Path | Remote | Export) -> Iterator[Path]:
    """The SQLite file of a trace: itself, or a temporary one that is gone on any exit; what lies behind a URL is copied."""
    if isinstance(path, Export):
        yield path.file
        return
    if isinstance(path, Path) and not _packed(path):
        yield path
        return
    folder = held_directory(Path(tempfile.gettempdir()), "moetrace-nsys-")
    try:
        here = path if isinstance(path, Path) else _copied(path, folder)
        yield _unpacked(here, folder / "trace.sqlite") if _packed(here) else here
    finally:
        remove(folder)


def _packed(path: Path) -> bool:
    """Whether a file is a report, or an export that is compressed."""
    return path.suffix in REPORTS or _is_zipped(path)


def _is_zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _copied(remote: Remote, folder: Path) -> Path:
    """A copy of what lies behind a URL. Raises OutputError where the disk has no room for it."""
    # Its name is the store's, and told to the user's nsys: only what says its kind is kept.
    target, spill = folder / f"copy{remote.suffix if remote.suffix in REPORTS else ''}", Spill(folder)
    with remote.open() as source, target.open("wb") as out:
        while block := source.read(_BLOCK):
            spill.check(len(block), f"{remote} needs more to be copied here (point TMPDIR at a larger disk)")
            out.write(block)
    return target


def _unpacked(path: Path, target: Path) -> Path:
    """The SQLite file of a report or of a compressed export."""
    _expand(path, target) if _is_zipped(path) else _export(path, target)
    return target


def _expand(path: Path, target: Path) -> None:
    """Decompresses a file, up to what an export can be and half of what the disk has free."""
    free = shutil.disk_usage(target.parent).free // 2
    likely = _EXPANSION * path.stat().st_size + (1 << 20)
    try:
        with gzip.open(path) as source, target.open("wb") as out:
            while block := source.read(1 << 20):
                if out.tell() + len(block) > min(free, likely):
                    raise TraceError(
                        f"{path} expands to more than {min(free, likely):,} bytes "
                        f"({f'{_EXPANSION} times its size' if likely < free else 'half of the free disk'}): "
                        "decompress it yourself and give the .sqlite file"
                    )
                out.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise TraceError(f"{path} is a damaged or truncated gzip file ({err}): copy it again") from err


def _export(path: Path, target: Path) -> None:
    """Has the user's own nsys write a report's SQLite export."""
    nsys = shutil.which("nsys")
    if nsys is None:
        raise TraceError(
            f"{path} is an nsys report and no nsys is on the PATH to export it: where it was recorded, run "
            f"{EXPORT} {path.name}, and give the .sqlite file"
        )
    told = _run([nsys, "export", "--help"])
    more = [f"{_BLOBS}=true"] if _BLOBS in told.stdout else []
    command = [
        nsys,
        "export",
        "--type",
        "sqlite",
        "-f",
        "true",
        "-o",
        str(target),
        *more,
        str(path.resolve()),
    ]
    done = _run(command)
    if done.returncode or not target.is_file():
        said = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1][:200]
        raise TraceError(f"{path} could not be exported by {nsys} (status {done.returncode}: {said})")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603  the user's own


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    if hasattr(connection, "setlimit"):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
    for pragma in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "query_only = ON",
        f"cache_size = -{_CACHE_KIB}",
        "mmap_size = 0",
        "temp_store = FILE",
    ):
        connection.execute(f"PRAGMA {pragma}")
    # Python looks at signals only while it runs: an interrupt is raised in here, which ends the query.
    connection.set_progress_handler(lambda: 0, _PATIENCE)
    return connection


@dataclass(slots=True)
class Database:
    """The known tables of a file, read row by row."""

    connection: sqlite3.Connection
    path: Path | Remote
    size: int
    tables: Sequence[str]
    columns: dict[str, set[str]] = field(init=False)
    _keyed: bool = field(init=False, default=False)  # whether ids of StringIds are found without a search
    _held: dict[int, str] | None = field(init=False, default=None)  # all of them, if they are few and are not

    def __post_init__(self) -> None:
        marks = ", ".join("?" * len(self.tables))
        query = f"SELECT name, type, rootpage, sql FROM sqlite_master WHERE name IN ({marks})"  # noqa: S608  marks only
        self.columns = {}
        for name, kind, page, sql in self.connection.execute(query, tuple(self.tables)).fetchall():
            if kind == "index":
                continue
            if kind != "table" or not page:
                raise TraceError(f"{self.path} is not an nsys export: its {name} is not a table of its own")
            told = self.connection.execute(f'PRAGMA table_info("{name}")').fetchall()
            self.columns[name] = {row[1] for row in told}
            if name == STRINGS:
                keys = [(row[1], str(row[2]).upper()) for row in told if row[5]]
                self._keyed = keys == [("id", "INTEGER")] and "WITHOUT" not in str(sql).upper()

    def count(self, table: str) -> int:
        """About how many rows a table has, at once: the largest row number."""
        if table not in self.columns:
            return 0
        try:
            found = self.connection.execute(f'SELECT max(rowid) FROM "{table}"').fetchone()[0]  # noqa: S608
        except sqlite3.OperationalError:  # a table that numbers no rows
            return 0
        return min(found, self.size // _LEAST_ROW) if isinstance(found, int) and found > 0 else 0

    def rows(
        self, table: str, select: Sequence[str], where: str = "", values: Sequence[Any] = (), tail: str = ""
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The table's rows, many at a time; nothing if there is no such table."""
        if table not in self.columns:
            return
        # Names and expressions are this package's own constants; no text of the trace gets into a query. An index could say
        # anything.
        query = f'SELECT {", ".join(select)} FROM "{table}" NOT INDEXED {where} {tail}'  # noqa: S608
        cursor = self.connection.execute(query, tuple(values))
        read = 0
        while chunk := cursor.fetchmany(_CHUNK):
            read += len(chunk)
            if read * _LEAST_ROW > self.size:
                raise TraceError(
                    f"{self.path} is damaged: its {table} shows more rows than the file can hold"
                )
            yield chunk

    def selection(self, table: str, integers: Iterable[str], names: Iterable[str] = ()) -> list[str]:
        """What to select: whole numbers, `ABSENT` where there is none, then one name, an id of StringIds or a text."""
        have = self.columns.get(table, set())
        select = [integer(c) if c in have else str(ABSENT) for c in integers]
        named = [text_or_id(c) for c in names if c in have]
        return [*select, f"COALESCE({', '.join(named)}, NULL)" if named else "NULL"]

    def strings(self, ids: Sequence[int]) -> Mapping[int, str]:
        """The texts of these ids of StringIds, and of others perhaps."""
        if not ids or not {"id", "value"} <= self.columns.get(STRINGS, set()):
            return {}
        select = (integer("id"), text_or_id("value"))
        found: dict[int, str] = {}
        if self._keyed:
            for low in range(0, len(ids), _ASKED):
                some = ids[low : low + _ASKED]
                query = f"WHERE id IN ({', '.join('?' * len(some))})"
                for chunk in self.rows(STRINGS, select, query, some):
                    found.update((i, str(v)) for i, v in chunk if v is not None)
            return found
        if self._held is None:
            self._held = self._few_strings(select)
        if self._held:
            return self._held
        asked = set(ids)
        for chunk in self.rows(STRINGS, select):
            found.update((i, str(v)) for i, v in chunk if i in asked and v is not None)
        return found

    def _few_strings(self, select: Sequence[str]) -> dict[int, str]:
        """All strings; none if they are many."""
        found: dict[int, str] = {}
        for chunk in self.rows(STRINGS, select):
            found.update((i, str(v)) for i, v in chunk if v is not None)
            if len(found) > _FEW:
                return {}
        return found


def integer(column: str) -> str:
    """An expression for a column's whole number, `ABSENT` where it holds something else."""
    return f"""CASE typeof("{column}") WHEN 'integer' THEN "{column}" ELSE {ABSENT} END"""


def text_or_id(column: str) -> str:
    """An expression for a column's whole number or the beginning of its text; NULL where it holds something else."""
    return (
        f"""CASE typeof("{column}") WHEN 'integer' THEN "{column}" WHEN 'text' """
        f"""THEN substr("{column}", 1, {_LONGEST}) END"""
    )
