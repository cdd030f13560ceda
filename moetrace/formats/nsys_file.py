"""The SQLite file behind an nsys trace, and its columns: nothing of it is trusted.

A report (`.nsys-rep`) is exported by the user's own nsys and a compressed export is expanded, both into a temporary file.
The connection is read-only; known columns of real tables are read, each value with its type checked. Views, generated
columns and functions of the file are never run.
"""

from __future__ import annotations

import gzip
import shutil
import sqlite3
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.errors import TraceError
from moetrace.formats.events import IntArray

REPORTS = (".nsys-rep", ".qdrep")
EXPORT = "nsys export --type sqlite -f true -o OUT.sqlite"
STRINGS = "StringIds"
ABSENT = -(1 << 62)  # stands for NULL, for a value of another type and for a column that is not there

_CHUNK = 65536  # rows fetched at a time
_LONGEST = 65536  # characters kept of a text
_LARGEST = 1 << 24  # bytes of one value: beyond, SQLite refuses it (from Python 3.11 on)
_LEAST_ROW = 4  # bytes that a row takes in the file at the least: more rows than that are a damaged tree
_EXPANSION = 100  # exports shrink 4 to 12 times with gzip; what shrinks more than this is none


@contextmanager
def opened(path: Path, tables: Sequence[str]) -> Iterator[Database]:
    """These tables of an export or report. Raises TraceError if it cannot be exported, expanded or read, then or later."""
    with _exported(path) as file:
        try:
            with closing(_connect(file)) as connection:
                yield Database(connection, path, file.stat().st_size, tables)
        except (sqlite3.Error, UnicodeDecodeError) as err:  # the latter: its message quotes damaged bytes
            said = " ".join(str(err).split())[:200]
            raise TraceError(
                f"{path} is a damaged SQLite file ({said}): copy it again, or export again with {EXPORT}"
            ) from err


@contextmanager
def _exported(path: Path) -> Iterator[Path]:
    """The SQLite file of a trace: itself, or a temporary one that is gone on any exit."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if not zipped and path.suffix not in REPORTS:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="moetrace-") as folder:
        target = Path(folder) / "trace.sqlite"
        _expand(path, target) if zipped else _export(path, target)
        yield target


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
    command = [nsys, "export", "--type", "sqlite", "-f", "true", "-o", str(target), str(path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603  the user's own tool
    if done.returncode or not target.is_file():
        said = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1][:200]
        raise TraceError(f"{path} could not be exported by {nsys} (status {done.returncode}: {said})")


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    if hasattr(connection, "setlimit"):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@dataclass(slots=True)
class Database:
    """The known tables of a file, read by column; `seen` numbers the names met so far: texts, or ids of StringIds."""

    connection: sqlite3.Connection
    path: Path
    size: int
    tables: Sequence[str]
    columns: dict[str, set[str]] = field(init=False)
    seen: dict[str | int | None, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        marks = ", ".join("?" * len(self.tables))
        query = f"SELECT name, type, rootpage FROM sqlite_master WHERE name IN ({marks})"  # noqa: S608  marks only
        self.columns = {}
        for name, kind, page in self.connection.execute(query, tuple(self.tables)).fetchall():
            if kind == "index":
                continue
            if kind != "table" or not page:
                raise TraceError(f"{self.path} is no nsys export: its {name} is not a table of its own")
            self.columns[name] = {row[1] for row in self.connection.execute(f'PRAGMA table_info("{name}")')}

    def rows(self, table: str, select: Sequence[str], where: str = "") -> Iterator[list[tuple[Any, ...]]]:
        """The table's rows, many at a time; nothing if there is no such table."""
        if table not in self.columns:
            return
        # Names and expressions are this file's own constants; no text of the trace gets into a query.
        cursor = self.connection.execute(f'SELECT {", ".join(select)} FROM "{table}" {where}')  # noqa: S608
        read = 0
        while chunk := cursor.fetchmany(_CHUNK):
            read += len(chunk)
            if read * _LEAST_ROW > self.size:
                raise TraceError(
                    f"{self.path} is damaged: its {table} shows more rows than the file can hold"
                )
            yield chunk

    def read(
        self, table: str, integers: Sequence[str], names: Sequence[str] = (), where: str = ""
    ) -> dict[str, IntArray]:
        """Integer columns by name, `ABSENT` where there is no integer; under "name" the code of the first name there is."""
        have = self.columns.get(table, set())
        select = [_integer(c) if c in have else str(ABSENT) for c in integers]
        named = [_name(c) for c in names if c in have]
        select.append(f"COALESCE({', '.join(named)}, NULL)" if named else "NULL")
        numbers, codes = [], []
        for chunk in self.rows(table, select, where):
            *values, texts = zip(*chunk, strict=True)
            numbers.append(np.array(values, dtype=np.int64).reshape(len(integers), len(chunk)))
            codes.append(np.array([self.seen.setdefault(t, len(self.seen)) for t in texts], dtype=np.int64))
        matrix = np.concatenate(numbers, axis=1) if numbers else np.zeros((len(integers), 0), np.int64)
        name = np.concatenate(codes) if codes else np.zeros(0, np.int64)
        return {**dict(zip(integers, matrix, strict=True)), "name": name}

    def names(self) -> list[str]:
        """The texts of all names seen, by code."""
        ids = {value for value in self.seen if isinstance(value, int)}
        strings: dict[int, str] = {}
        if {"id", "value"} <= self.columns.get(STRINGS, set()):
            for chunk in self.rows(STRINGS, (_integer("id"), _name("value"))):
                strings.update((i, str(v)) for i, v in chunk if i in ids and v is not None)
        return [
            value if isinstance(value, str) else "" if value is None else strings.get(value, f"name {value}")
            for value in self.seen
        ]


def _integer(column: str) -> str:
    return f"""CASE typeof("{column}") WHEN 'integer' THEN "{column}" ELSE {ABSENT} END"""


def _name(column: str) -> str:
    return (
        f"""CASE typeof("{column}") WHEN 'integer' THEN "{column}" WHEN 'text' """
        f"""THEN substr("{column}", 1, {_LONGEST}) END"""
    )
