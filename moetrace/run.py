"""Run: the value in the middle. Measured, synthesized and predicted runs have this one schema.

On disk a directory: ``run.json`` (metadata), ``ops.parquet`` (one row per op execution), ``routing.parquet`` (if any) and
``attribution.parquet`` (once made). This is the only file that knows the columns. Tables are read lazily and by column.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moetrace import markup
from moetrace.errors import ModelError, RunError
from moetrace.files import replace_directory, write_parquet
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.routing import Routing
from moetrace.units import seconds

if TYPE_CHECKING:
    import pandas as pd

RUN_VERSION = 1
_PARTS = "moetrace.parts"  # what the row groups of a file are, where they are whole steps
TABLE_FACTS = {"moetrace.table": "ops", "moetrace.version": str(RUN_VERSION)}
TEXT = pa.dictionary(pa.int32(), pa.string())
PHASES = ("prefill", "decode", "mixed")

# name, type, meaning (with its unit and what null says). The order is the order on disk; docs/schema.md is made from it.
OPS_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("rank", pa.int32(), "rank of the process that recorded the op, from 0"),
    ("device", pa.int32(), "device index as the profiler numbers it; -1 on a CPU"),
    ("stream", pa.int64(), "device stream, or the thread on a CPU"),
    ("step", pa.int32(), "index into the run's steps; null: outside of every step"),
    ("phase", TEXT, "prefill, decode or mixed; null: the trace does not say"),
    (
        "layer",
        pa.int32(),
        "decoder layer from 0; null: not in a layer (embedding, lm_head, sampling, copies) or not known",
    ),
    ("family", TEXT, "op family, such as experts, attention, communication"),
    ("kind", TEXT, "op kind, such as moe_gate_up; `other`: the name was not recognised"),
    ("op", TEXT, "the Op as text: kind, dtype and dims; parses back with moetrace.op.Op.parse"),
    ("kernel", TEXT, "kernel or operator name as recorded"),
    ("start_ns", pa.int64(), "start, ns since the epoch of the recording"),
    ("dur_ns", pa.int64(), "duration in ns"),
    ("launch_ns", pa.int64(), "when the host call that launched it began, ns; null: launch not recorded"),
    ("graph", pa.int64(), "id of the graph launch that replayed it; null: launched by itself"),
    ("op_source", TEXT, "where kind and dims came from: shapes, capture, annotation, model, name or none"),
    (
        "layer_source",
        TEXT,
        "where the layer came from: annotation, module, order, period (repetition alone) or none; null: not known",
    ),
    ("flops", pa.float64(), "floating-point operations at the stated routing; null: dims not known"),
    (
        "weight_bytes",
        pa.float64(),
        "bytes of weights that must be read, scales included; null: dims not known",
    ),
    ("kv_bytes", pa.float64(), "bytes of KV cache read and written; null: dims not known"),
    ("act_bytes", pa.float64(), "bytes of activations read and written; null: dims not known"),
    ("net_bytes", pa.float64(), "bytes that leave this rank; null: dims not known"),
    (
        "intensity",
        pa.float64(),
        "arithmetic intensity, FLOPs per byte of memory; null: no bytes or not known",
    ),
    ("bytes_per_s", pa.float64(), "achieved memory bytes per second; null: not known, or no duration"),
    ("flop_per_s", pa.float64(), "achieved FLOPs per second; null: not known, or no duration"),
    (
        "error",
        pa.float64(),
        "predicted runs: the 80 % interval is dur_ns divided and multiplied by 1 + error; null: not a predicted run",
    ),
    ("provenance", TEXT, "predicted runs: what the duration rests on; null: not a predicted run"),
)
OPS_SCHEMA = pa.schema([pa.field(n, t, metadata={"doc": d}) for n, t, d in OPS_COLUMNS])
# What a file may lack, as one of a moetrace from before the column: it reads as null, which says that it is not known.
_OPTIONAL = frozenset(name for name, _, doc in OPS_COLUMNS if "null" in doc)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the engine. Times in ns; None where the trace does not say.

    `tokens` is the number of tokens computed, `kv_tokens` the KV tokens that full attention reads, summed over sequences.
    """

    index: int
    name: str
    phase: str | None
    start_ns: int
    end_ns: int
    batch: int | None = None
    tokens: int | None = None
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a run besides its ops."""

    kind: str  # measured, predicted or synthesized
    source: str  # the trace's file name
    steps: tuple[Step, ...] = ()
    model: ModelSpec | None = None
    model_source: str = "none"  # given, recorded, inferred (and from what), or none
    native_layers: int | None = None  # the real model's depth, where fewer were recorded
    device: str = ""  # the profiler's name for the device
    device_class: str = "gpu"  # gpu, cpu or wafer
    hardware: str | None = None  # the profile that the device matches
    gpus: int = 1
    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1
    engine: str | None = None
    routing: str = "none"  # provenance of distinct-expert counts
    notes: tuple[str, ...] = ()  # warnings and assumptions, one sentence each
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # counts of the reader: events, damaged, outside steps

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict that from_dict reads back."""
        return {**asdict(self), "model": self.model.to_dict() if self.model else None, "version": RUN_VERSION}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Meta:
        """The metadata that `to_dict` wrote. Raises RunError or ModelError naming what is not as it should be."""
        values = _checked(cls, raw, "")
        values["steps"] = tuple(
            Step(**_checked(Step, step, f"steps[{i}].")) for i, step in enumerate(values.get("steps", ()))
        )
        values["model"] = ModelSpec.from_dict(raw["model"]) if raw.get("model") else None
        values["notes"] = tuple(values.get("notes", ()))
        return cls(**values)


_NONE = type(None)
# What JSON must hold for a field, by the field's annotation: types, and their name in an error.
_JSON: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "str | None": ((str, _NONE), "a text or null"),
    "int": ((int,), "a whole number"),
    "int | None": ((int, _NONE), "a whole number or null"),
    "tuple[Step, ...]": ((list,), "a list of steps"),
    "tuple[str, ...]": ((list,), "a list of texts"),
    "ModelSpec | None": ((dict, _NONE), "a model or null"),
    "Mapping[str, Any]": ((dict,), "an object"),
}


def _checked(cls: type[Meta] | type[Step], raw: Any, where: str) -> dict[str, Any]:
    """The values that are fields of the class; an unknown key is of a later version. Raises RunError by name of the field."""
    if not isinstance(raw, dict):
        raise RunError(f"{where.rstrip('.') or 'it'} is not an object")
    found: dict[str, Any] = {}
    for f in fields(cls):
        if f.name not in raw:
            if f.default is MISSING and f.default_factory is MISSING:
                raise RunError(f"it lacks {where}{f.name}")
            continue
        value, (types, what) = raw[f.name], _JSON[str(f.type)]
        texts = f.type != "tuple[str, ...]" or all(isinstance(v, str) for v in value or ())
        if not isinstance(value, types) or isinstance(value, bool) or not texts:
            raise RunError(f"{where}{f.name} is {str(value)[:40]!r}, expected {what}")
        found[f.name] = value
    return found


class Run:
    """Metadata and op table of a run, in memory or on disk; columns are read when asked for."""

    def __init__(
        self,
        meta: Meta,
        ops: pa.Table | None = None,
        routing: Routing | None = None,
        path: Path | None = None,
        file: IO[bytes] | None = None,
    ) -> None:
        """With `file`, an open file of the op table without a name takes the place of `path`."""
        self.meta = meta
        self.path = path
        self._file = file
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
        try:
            raw = orjson.loads(meta_file.read_bytes())
            version = raw.get("version", 0) if isinstance(raw, dict) else 0
            meta = Meta.from_dict(raw) if version == RUN_VERSION else None
        except (orjson.JSONDecodeError, RunError, ModelError) as err:
            raise RunError(
                f"{meta_file} is not a run's metadata ({err}): parse the trace again with --force"
            ) from err
        if meta is None:
            raise RunError(
                f"{root} has run version {str(version)[:20]}, this moetrace reads {RUN_VERSION}: "
                "upgrade moetrace, or parse the trace again with --force"
            )
        return cls(meta, path=root)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the op table, reading only it from disk."""
        if self._ops is not None:
            return self._ops.column(name)
        return self.table([name]).column(name)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The op table, or only some columns of it."""
        if self._ops is not None:
            return self._ops.select(list(columns)) if columns else self._ops
        file = self._parquet()
        try:
            if problem := self._schema_problem(columns):
                raise RunError(f"{file} {problem}: parse the trace again with --force")
            return _filled(pq.read_table(file, columns=self._present(columns)), columns)
        except (pa.ArrowInvalid, OSError) as err:
            raise self._unreadable(err) from err

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Run]:
        """The run in parts of whole steps, in order, each a run in memory (of these columns); the run itself if it is not long."""
        metadata = self._schema.metadata or {} if self._ops is None else {}
        if metadata.get(_PARTS.encode()) != b"steps":
            yield self
            return
        if problem := self._schema_problem(columns):
            raise RunError(f"{self._parquet()} {problem}: parse the trace again with --force")
        try:
            file = pq.ParquetFile(self._parquet())
            for i in range(file.num_row_groups):
                table = _filled(file.read_row_group(i, columns=self._present(columns)), columns)
                yield Run(self.meta, table, self._routing, self.path)
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

    def _unreadable(self, err: Exception) -> RunError:
        said = str(err).split("\n")[0][:120]
        return RunError(f"{self._parquet()} cannot be read ({said}): parse the trace again with --force")

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
        missing = [name for name in wanted if name not in (*self._schema.names, *_OPTIONAL)]
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
        return np.asarray(pc.fill_null(self.column(name), null).to_numpy())

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
    def routing(self) -> Routing | None:
        """Recorded routing, if any."""
        if self._routing is None and self.path is not None and (self.path / "routing.parquet").is_file():
            self._routing = Routing.load(self.path / "routing.parquet")
        return self._routing

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The op table as a DataFrame."""
        frame: pd.DataFrame = self.table(columns).to_pandas()
        return frame

    # -- making --------------------------------------------------------------------------------------------------
    def with_meta(self, **changes: Any) -> Run:
        return Run(replace(self.meta, **changes), self._ops, self._routing, self.path, self._file)

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
        model = self.meta.model.name if self.meta.model else "unknown model"
        return f"<Run {self.meta.kind}: {self.num_rows} ops, {len(self.meta.steps)} steps, {model} on {self.meta.hardware or self.meta.device or 'unknown device'}>"


def _filled(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """The table with nulls for the columns that its file lacks."""
    for name in columns or OPS_SCHEMA.names:
        if name not in table.column_names:
            table = table.append_column(
                OPS_SCHEMA.field(name), pa.nulls(table.num_rows, OPS_SCHEMA.field(name).type)
            )
    return table.select(list(columns)) if columns else table


class TableParts:
    """A table that comes in parts of whole steps: in memory if there is one, else in a file without a name."""

    def __init__(self, schema: pa.Schema, new_file: Callable[[], IO[bytes]] | None = None) -> None:
        """`new_file` opens such a file; without it all is held in memory. The schema's metadata goes into the file."""
        self._schema, self._new_file = schema, new_file
        self._tables: list[pa.Table] = []
        self._file: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """A part."""
        self._tables.append(table)
        if self._new_file is None or (len(self._tables) < 2 and self._writer is None):
            return
        if self._writer is None:
            self._file = self._new_file()
            facts = {**(self._schema.metadata or {}), _PARTS.encode(): b"steps"}
            self._writer = pq.ParquetWriter(self._file, self._schema.with_metadata(facts), compression="zstd")
        for part in self._tables:
            self._writer.write_table(part.replace_schema_metadata(), row_group_size=max(1, part.num_rows))
        self._tables = []

    def finish(self) -> pa.Table | IO[bytes]:
        """The table, or the file that holds it."""
        if self._writer is None or self._file is None:
            return pa.concat_tables(self._tables)
        self._writer.close()
        return self._file


def codes_of(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A text column as (code per row, the distinct texts); -1 for null."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    joined = encoded.unify_dictionaries().combine_chunks()
    array = joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
    index = np.asarray(pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)).astype(np.int64)
    return index, array.dictionary.to_pylist()


def text_column(index: npt.NDArray[Any], texts: Sequence[str]) -> pa.DictionaryArray:
    """A dictionary-encoded text column from codes (-1: null) and texts."""
    codes = pa.array(index.astype(np.int32), mask=index < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(list(texts), pa.string()))


def nullable(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """A column with nulls where `mask` is true."""
    return pa.array(values, type=kind, mask=mask)


def ops_table(columns: Mapping[str, pa.Array]) -> pa.Table:
    """An op table of the schema from some of its columns; the others are null."""
    unknown = set(columns) - set(OPS_SCHEMA.names)
    if unknown:
        raise RunError(f"no such columns in the ops table: {', '.join(sorted(unknown))}")
    rows = len(next(iter(columns.values())))
    arrays = [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in OPS_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=OPS_SCHEMA)


__all__ = ["OPS_COLUMNS", "OPS_SCHEMA", "RUN_VERSION", "Meta", "Run", "Step", "TableParts"]
