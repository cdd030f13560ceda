"""The Run itself: metadata and op table, in memory or on disk. Tables are read lazily and by column."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace import markup
from moetrace.errors import ModelError, RunError
from moetrace.files import read_parquet, replace_directory, write_parquet
from moetrace.given import columns_of, misfit
from moetrace.op import Op
from moetrace.routing import Routing
from moetrace.run.columns import (
    OPS_SCHEMA,
    OPTIONAL,
    RUN_VERSION,
    TABLE_FACTS,
    codes_of,
    filled,
    without_nulls,
)
from moetrace.run.meta import Meta
from moetrace.run.parts import PARTS, give_back
from moetrace.units import seconds

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """Metadata and op table of a run, in memory or on disk; columns are read when asked for."""

    def __init__(
        self,
        meta: Meta,
        ops: pa.Table | None = None,
        routing: Routing | None = None,
        path: Path | None = None,
        file: IO[bytes] | None = None,
        routing_files: tuple[IO[bytes], ...] = (),
    ) -> None:
        """With `file`, an open file of the op table without a name takes the place of `path`; so do `routing_files`."""
        self.meta = meta
        self.path = path
        self._file = file
        self._routing_files = routing_files
        self._ops = ops
        self._routing = routing

    # -- reading -------------------------------------------------------------------------------------------------
    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """The run stored in a directory. Raises RunError with one line if it is not one."""
        root = Path(path)
        meta_file = root / "run.json"
        if not meta_file.is_file() or not (root / "ops.parquet").is_file():
            raise RunError(
                f"{root} is not a moetrace run: expected run.json and ops.parquet (make one with 'moetrace parse')"
            )
        return cls(meta_of(meta_file.read_bytes(), root), path=root)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the op table, reading only it from disk."""
        return self.table([name]).column(name)

    def table(self, columns: Sequence[str] | str | None = None) -> pa.Table:
        """The op table, or only some columns of it. Raises RunError for a column that there is not."""
        known = {*OPS_SCHEMA.names, *self._schema.names} if self._ops is None else self._ops.column_names
        columns = columns_of(columns, tuple(known), RunError)
        if self._ops is not None:
            return self._ops.select(columns) if columns else self._ops
        file = self._parquet()
        try:
            if problem := self._schema_problem(columns):
                raise RunError(f"{self._place} {problem}: parse the trace again with --force")
            return filled(read_parquet(file, self._present(columns)), columns)
        except (pa.ArrowInvalid, OSError) as err:
            raise self._unreadable(err) from err

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Run]:
        """The run in parts of whole steps, in order, each a run in memory (of these columns); a short run is one part."""
        metadata = self._schema.metadata or {} if self._ops is None else {}
        if metadata.get(PARTS.encode()) != b"steps":
            yield self
            return
        if problem := self._schema_problem(columns):
            raise RunError(f"{self._place} {problem}: parse the trace again with --force")
        try:
            file = pq.ParquetFile(self._parquet())
            for i in range(file.num_row_groups):
                table = filled(file.read_row_group(i, columns=self._present(columns)), columns)
                yield Run(self.meta, table, self._routing, self.path)
                del table
                give_back()
        except (pa.ArrowInvalid, OSError) as err:
            raise self._unreadable(err) from err

    def new_file(self) -> IO[bytes]:
        """A new file without a name, beside the run's own if that has a place."""
        try:
            return tempfile.TemporaryFile(prefix=".moetrace-", dir=self.path)
        except OSError:  # a folder that may only be read
            return tempfile.TemporaryFile(prefix=".moetrace-")

    def _parquet(self) -> Path | IO[bytes]:
        """Where the op table lies."""
        if self._file is not None:
            self._file.seek(0)
            return self._file
        if self.path is None:
            raise RunError("this run has neither a table nor a path")
        return self.path / "ops.parquet"

    @property
    def _place(self) -> str:
        """What an error calls the op table."""
        return f"ops.parquet of {self.meta.source}" if self._file is not None else str(self._parquet())

    def _unreadable(self, err: Exception) -> RunError:
        said = str(err).split("\n")[0][:120]
        return RunError(f"{self._place} cannot be read ({said}): parse the trace again with --force")

    @cached_property
    def _schema(self) -> pa.Schema:
        """What the file on disk says of its columns. Raises RunError if it cannot be read."""
        try:
            return pq.read_schema(self._parquet())
        except (pa.ArrowInvalid, OSError) as err:
            raise self._unreadable(err) from err

    def _present(self, columns: Sequence[str] | None) -> list[str] | None:
        """Those of the columns asked for that the file has; None for all that it has."""
        return [name for name in columns if name in self._schema.names] if columns else None

    def _schema_problem(self, columns: Sequence[str] | None) -> str | None:
        """How the file's columns differ from those asked for (default: all of them), in words; None if they do not."""
        wanted = columns or OPS_SCHEMA.names
        missing = [name for name in wanted if name not in (*self._schema.names, *OPTIONAL)]
        if missing:
            more = f" and {len(missing) - 3} more" if missing[3:] else ""
            return f"lacks the columns {', '.join(missing[:3])}{more}"
        for name in set(wanted) & set(OPS_SCHEMA.names) & set(self._schema.names):
            have, want = self._schema.field(name).type, OPS_SCHEMA.field(name).type
            if have != want and not (pa.types.is_dictionary(want) and pa.types.is_string(have)):
                return f"has {have} in column {name}, not {want}"
        return None

    def numpy(self, name: str, null: float | int = -1) -> npt.NDArray[Any]:
        """One column as numpy, nulls replaced by `null`."""
        return without_nulls(self.column(name), null)

    def codes(self, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
        """A text column as (code per row, the distinct texts); -1 for null."""
        return codes_of(self.column(name))

    @cached_property
    def distinct_ops(self) -> tuple[npt.NDArray[np.int64], tuple[Op, ...]]:
        """(index per row, the distinct ops)."""
        index, texts = self.codes("op")
        return index, tuple(Op.parse(t) for t in texts)

    @property
    def num_rows(self) -> int:
        if self._ops is not None:
            return int(self._ops.num_rows)
        return int(pq.read_metadata(self._parquet()).num_rows)

    @property
    def has_routing(self) -> bool:
        """Whether routing was recorded; it is not read for this."""
        return self._routing is not None or self._recorded is not None or bool(self._routing_files)

    @property
    def routing(self) -> Routing | None:
        """Recorded routing, if any."""
        if self._routing is None and self._recorded is not None:
            self._routing = Routing.load(self._recorded)
        elif self._routing is None and self._routing_files:
            self._routing = Routing.load(*self._routing_files)
        return self._routing

    @property
    def _recorded(self) -> Path | None:
        """Where the recorded routing lies on disk."""
        path = self.path / "routing.parquet" if self.path is not None else None
        return path if path is not None and path.is_file() else None

    def to_pandas(self, columns: Sequence[str] | str | None = None) -> pd.DataFrame:
        """The op table as a DataFrame."""
        frame: pd.DataFrame = self.table(columns).to_pandas()
        return frame

    # -- making --------------------------------------------------------------------------------------------------
    def with_meta(self, **changes: Any) -> Run:
        meta = replace(self.meta, **changes)
        return Run(meta, self._ops, self._routing, self.path, self._file, self._routing_files)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> Run:
        """Writes the run as a directory, whole or not at all, and returns it as loaded from there."""
        root = Path(path)

        def fill(folder: Path) -> None:
            if self._file is not None:
                self._file.seek(0)
                with (folder / "ops.parquet").open("wb") as out:
                    shutil.copyfileobj(self._file, out, 1 << 20)
            else:
                write_parquet(self.table(), folder / "ops.parquet", TABLE_FACTS)
            if self.routing is not None:
                self.routing.save(folder / "routing.parquet")
            (folder / "run.json").write_bytes(
                orjson.dumps(self.meta.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
            )

        replace_directory(root, fill, force)
        return Run.load(root)

    def _repr_html_(self) -> str:
        """What a notebook shows: who ran, and the steps of each phase."""
        steps = self.meta.steps
        rows = []
        for phase in dict.fromkeys(s.phase for s in steps):
            spans = [(s.end_ns - s.start_ns) / 1e9 for s in steps if s.phase == phase]
            rows.append((phase or "unknown", f"{len(spans):,}", seconds(float(np.median(spans)))))
        return markup.table(repr(self)[1:-1], ("phase", "steps", "median step"), rows)

    def __repr__(self) -> str:
        meta = self.meta
        model = meta.model.name if meta.model else "unknown model"
        where = meta.hardware or meta.device or "unknown device"
        return f"<Run {meta.kind}: {self.num_rows} ops, {len(meta.steps)} steps, {model} on {where}>"


def check_runs(*given: object) -> None:
    """Raises RunError where a caller gave something else in the place of a Run, such as the path of one."""
    for one in given:
        if isinstance(one, (str, os.PathLike)):
            raise RunError(f"{os.fspath(one)!r} is a path and no Run: moetrace.load reads one from it")
        if not isinstance(one, Run):
            within = isinstance(getattr(one, "run", None), Run)
            raise RunError(misfit(one, "Run", "its .run is one" if within else "moetrace.load reads one"))


def runs_of(given: Run | Iterable[Run]) -> list[Run]:
    """One run or several as a list. Raises RunError as `check_runs`."""
    alone = isinstance(given, Run | str | Mapping) or not isinstance(given, Iterable)
    some: Any = [given] if alone else given
    found = list(some)
    check_runs(*found)
    return found


def meta_of(data: bytes, where: object) -> Meta:
    """The metadata in a run.json. Raises RunError with one line if it is none, or of another version."""
    try:
        raw = orjson.loads(data)
        version = raw.get("version", 0) if isinstance(raw, dict) else 0
        if version == RUN_VERSION:
            return Meta.from_dict(raw)
    except (orjson.JSONDecodeError, RunError, ModelError) as err:
        raise RunError(
            f"{where}/run.json is not a run's metadata ({err}): parse the trace again with --force"
        ) from err
    raise RunError(
        f"{where} has run version {str(version)[:20]}, this moetrace reads {RUN_VERSION}: "
        + ("upgrade moetrace, or " if isinstance(version, int) and version > RUN_VERSION else "")
        + "parse the trace again with --force"
    )
