"""Outputs are whole or absent: written beside and renamed into place, and nothing is replaced that is not meant."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.errors import OutputError
from moetrace.scratch import held_directory, let_go, remove

# A RUN's facts, which only writing a RUN may replace.
RUN_FILES = ("run.json", "ops.parquet", "routing.parquet", "routing_tokens.parquet")
GRID_SUMMARY = "grid.json"  # what the folder of a grid has
RANKS_SUMMARY = "ranks.json"  # what a folder with the RUNs of ranks has, once it is whole
_OURS = frozenset({*RUN_FILES, "attribution.parquet", "timeline.json"})
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # a Path has one slash fewer
# Endings that name something other than a Parquet table.
_OTHERS = frozenset({".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".txt", ".html", ".toml"})
_STALE = re.compile(r"\.(.+)\.\d+\.part")  # what `write_whole` leaves if it is killed


def url_of(path: str | Path) -> str | None:
    """The URL that a path spells (a Path has one slash fewer); None for a path of this machine."""
    url = _URL.fullmatch(str(path))
    if url is None or Path(path).exists():
        return None
    return f"{url[1]}://{'/' if url[1] in ('file', 'local') else ''}{url[2]}"


def table_facts(table: str, version: int, minor: int = 0) -> dict[str, str]:
    """What a Parquet file says of itself: the name of its table and its version.

    Columns may be added within a version, which raises `minor`; readers take any minor version. Another meaning is another
    version, which older readers refuse.
    """
    return {"moetrace.table": table, "moetrace.version": str(version), "moetrace.minor": str(minor)}


def read_parquet(path: str | os.PathLike[str] | IO[bytes], columns: Sequence[str] | None = None) -> pa.Table:
    """A file's table, or some of its columns."""
    # Not pq.read_table: it goes by pyarrow's datasets, which import pandas.
    with pq.ParquetFile(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def values_of(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    """The values of a numeric or yes-or-no column without nulls."""
    # From buffers: to_numpy would import pandas, half of the time of a short verb.
    kind = column.type
    out = []
    for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        data, begin, end = array.buffers()[1] or b"", array.offset, array.offset + len(array)
        if pa.types.is_boolean(kind):
            bits = np.unpackbits(np.frombuffer(data, np.uint8), count=end, bitorder="little")
            out.append(bits[begin:].astype(bool))
        else:
            out.append(np.frombuffer(data, kind.to_pandas_dtype(), count=end)[begin:])
    return np.concatenate(out) if out else np.zeros(0, kind.to_pandas_dtype())


def array_of(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Whole numbers as a column of this type. Raises pa.ArrowInvalid where one is beyond it."""
    room = np.iinfo(kind.to_pandas_dtype())
    if values.size and not room.min <= values.min() <= values.max() <= room.max:
        return pa.array(values, type=kind)  # which raises
    data = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def write_parquet(table: pa.Table, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a table as zstd Parquet, beside and renamed into place."""
    merged = {**(table.schema.metadata or {}), **{k.encode(): v.encode() for k, v in metadata.items()}}
    write_whole(
        path, lambda part: pq.write_table(table.replace_schema_metadata(merged), part, compression="zstd")
    )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a path beside `path` and renames the result into place; on any failure nothing is left."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError as err:
        raise _cannot(path, err) from err
    finally:
        with suppress(OSError):  # the folder itself may be what is wrong
            part.unlink(missing_ok=True)


def _cannot(path: Path, err: OSError) -> OutputError:
    """The system's own words: an error's text may name the file beside `path`, which is none of the user's."""
    return OutputError(f"cannot write {path}: {os.strerror(err.errno) if err.errno else err}")


def replace_directory(root: Path, fill: Callable[[Path], None], force: bool) -> None:
    """Fills a directory beside `root` and renames it into place; the old one stays until the new one is whole."""
    check_directory(root, force)
    made = staging(root)
    try:
        fill(made)
        publish(made, root, force)
    except OSError as err:
        raise _cannot(root, err) from err
    finally:
        remove(made)


def staging(root: Path) -> Path:
    """A new directory beside `root`, to be published: a bad path fails before the work, and the last act is a rename."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        made = held_directory(root.parent, f".{root.name}.", ".part")
        made.chmod(0o755)
    except OSError as err:
        raise _cannot(root, err) from err
    return made


def publish(
    made: Path,
    root: Path,
    force: bool,
    ours: Iterable[str] = _OURS,
    whose: str = "moetrace's",
    folders: str = "",
) -> None:
    """Renames a finished directory into place; the old one is set aside until that has worked, and else put back."""
    check_directory(root, force, ours, whose, folders)
    old = made.with_suffix(".old")
    try:
        if root.exists():
            root.rename(old)
        made.rename(root)
        let_go(made)
    finally:  # after an interrupt too
        if old.exists() and not root.exists():
            old.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def check_directory(
    path: Path, force: bool, ours: Iterable[str] = _OURS, whose: str = "moetrace's", folders: str = ""
) -> None:
    """`check_output` where a directory is to be written: a file in its place is refused."""
    check_output(path, force, ours, whose, folders)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is not a directory: it is not replaced, give another name")


def check_table_output(path: Path, force: bool) -> None:
    """`check_output` where a table is to be written: as Parquet, so that a name of another format is refused."""
    check_output(path, force)
    if path.suffix.lower() in _OTHERS:
        raise OutputError(f"{path}: the table is written as Parquet: give a name such as {path.stem}.parquet")


def check_output(
    path: Path, force: bool, ours: Iterable[str] = _OURS, whose: str = "moetrace's", folders: str = ""
) -> None:
    """Raises OutputError if `path` exists and may not be replaced. Even `force` replaces only what moetrace wrote.

    `folders`: a pattern of names of directories in it that may be replaced, where they hold nothing but `ours`.
    """
    if path.name in RUN_FILES and is_run(path.parent):
        raise OutputError(f"{path} is a part of the run {path.parent}: give another name")
    if (url := url_of(path)) is not None:
        raise OutputError(
            f"{url} is a URL: only 'moetrace parse' writes RUNs there, give a name on this machine"
        )
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link: it is not replaced, give another name")
    if not path.exists():
        return
    if path.is_dir() and _is_stood_in(path):
        raise OutputError(
            f"{path} is the current directory, holds it or is a mount point: it is not replaced, give another name"
        )
    if not force:
        raise OutputError(f"{path} exists: give another name or --force to replace it")
    strange = _strange(path, frozenset(ours), folders) if path.is_dir() else []
    if strange and "ranks.json" in strange:
        raise OutputError(
            f"{path} holds the RUNs of several ranks, which no other output replaces: give another name"
        )
    if strange:
        raise OutputError(
            f"{path} holds files that are not {whose} ({', '.join(strange[:3])}): give another name"
        )


def _is_stood_in(folder: Path) -> bool:
    """Whether a directory cannot be renamed, or not without moving the one that the user is in."""
    there = folder.resolve()
    try:
        here = Path.cwd().resolve()
    except OSError:  # the current directory was removed
        return os.path.ismount(folder)
    return there == here or there in here.parents or os.path.ismount(folder)


def _strange(folder: Path, ours: frozenset[str], folders: str = "") -> list[str]:
    """Names in a directory that are not ours to remove: a directory is never, unless `folders` matches it and it holds ours."""
    try:
        found = {p.name: p.is_dir() and not p.is_symlink() for p in folder.iterdir()}
    except OSError as err:
        raise _cannot(folder, err) from err
    return sorted(
        name
        for name, is_folder in found.items()
        if (is_folder and not (folders and re.fullmatch(folders, name) and not _strange(folder / name, ours)))
        or (not is_folder and name not in ours and not ((m := _STALE.fullmatch(name)) and m[1] in ours))
    )


def check_outside_runs(root: Path) -> None:
    """Raises OutputError if `root` is a RUN or lies in one, so that files put there would become strangers in it."""
    run = next((p for p in (root, *root.resolve().parents) if is_run(p)), None)
    if run is not None:
        inside = "is a run" if run == root else f"lies in the run {run}"
        raise OutputError(f"{root} {inside}: give another directory for the predicted runs")


def is_run(path: Path) -> bool:
    """Whether a path looks like a RUN directory, of one rank or of many."""
    return any((path / name).is_file() for name in ("run.json", RANKS_SUMMARY))


def lone_run(folder: Path) -> Path:
    """The RUN that is all a folder holds, as 'moetrace simulate -o' writes one; any other path as it is."""
    found = list(folder.iterdir()) if folder.is_dir() and not is_run(folder) else []
    return found[0] if len(found) == 1 and is_run(found[0]) else folder
