"""Tables in batches of bounded size: from memory, or from a Parquet, CSV or JSON-lines file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.errors import ScenarioError, plainly
from moetrace.given import misfit
from moetrace.op import FloatArray

BATCH = 1 << 18  # rows held at once
# The columns that a measured time may stand in, and their unit in seconds; `latency` is that of the public tables, in ms.
TIMES: Mapping[str, float] = MappingProxyType(
    {"seconds": 1.0, "latency": 1e-3, "latency_ms": 1e-3, "latency_us": 1e-6}
)
_SUFFIXES = (".parquet", ".csv", ".jsonl")


def batches(table: object, progress: Callable[[float], None] = lambda share: None) -> Iterator[pa.Table]:
    """The rows of a table or file, at most BATCH at a time; an empty table is one batch.

    Raises ScenarioError if it is not a table, or the file cannot be read as what its name says it is.
    """
    if isinstance(table, str | Path):
        for part in _of_file(Path(table), progress):
            yield _named_once(part)
        return
    whole = _named_once(_in_memory(table))
    for at in range(0, max(1, whole.num_rows), BATCH):
        progress(at / max(1, whole.num_rows))
        yield whole.slice(at, BATCH)


def seconds_of(table: pa.Table) -> FloatArray:
    """The measured seconds of a table's rows, nan where empty. Raises ScenarioError unless one column of `TIMES` has them."""
    found = [name for name in table.column_names if name in TIMES]
    if not found:
        raise ScenarioError(
            "expected a column seconds with what was measured (or latency or latency_ms, in ms, or latency_us)"
        )
    if len(found) > 1:
        raise ScenarioError(f"columns {found[0]} and {found[1]} both say the time: leave one out")
    kind = table.schema.field(found[0]).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ScenarioError(f"the column {found[0]} is {kind}: expected numbers")
    return np.asarray(table.column(found[0]).to_numpy(), dtype=np.float64) * TIMES[found[0]]


def _named_once(table: pa.Table) -> pa.Table:
    """The table. Raises ScenarioError where two columns have one name."""
    twice = next((name for name, times in Counter(table.column_names).items() if times > 1), None)
    if twice is not None:
        raise ScenarioError(f"the table has several columns {twice}: which of them is meant is not known")
    return table


def _in_memory(table: object) -> pa.Table:
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    try:
        if isinstance(table, Mapping):
            lone = next(
                (name for name, one in table.items() if isinstance(one, str) or not hasattr(one, "__len__")),
                None,
            )
            if lone is not None:
                raise ScenarioError(
                    f"the column {lone} is {table[lone]!r}: expected a list of values, one for each row"
                )
            return pa.table(dict(table))
        frame = _frame(table)
        # Columns of words among numbers.
        mixed = {name: "string" for name, dtype in frame.dtypes.items() if str(dtype) == "object"}
        return pa.Table.from_pandas(frame.astype(mixed), preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ScenarioError(f"the table cannot be read: {error}") from error


def _frame(table: object) -> Any:
    if not hasattr(table, "columns") or not hasattr(table, "dtypes"):
        how = "expected a pyarrow Table, a DataFrame, a mapping of columns or a file (a Run's table() is one)"
        raise ScenarioError(misfit(table, "table", how))
    return table


def _of_file(path: Path, progress: Callable[[float], None]) -> Iterator[pa.Table]:
    if (path / "ops.parquet").is_file():
        raise ScenarioError(f"{path} is a RUN and no table: its ops are in {path / 'ops.parquet'}")
    if path.suffix not in _SUFFIXES:
        raise ScenarioError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    try:
        read = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}[path.suffix]
        some = False
        for table in read(path, progress):
            some = True
            yield table
        if not some:
            raise ScenarioError(f"{path}: the file holds no rows")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read as {path.suffix[1:]} ({plainly(error)})") from error


def _parquet(path: Path, progress: Callable[[float], None]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        done, total = 0, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(BATCH):
            progress(done / total)
            done += batch.num_rows
            yield pa.Table.from_batches([batch])


def _csv(path: Path, progress: Callable[[float], None]) -> Iterator[pa.Table]:
    from pyarrow import csv

    # The types of a column must hold for the whole file, not for its first block: text where any row needs it.
    total, at = max(1, path.stat().st_size), 0
    whole = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    while at < max(1, whole.num_rows):
        progress(at / total)
        yield whole.slice(at, BATCH)
        at += BATCH


def _jsonl(path: Path, progress: Callable[[float], None]) -> Iterator[pa.Table]:
    from pyarrow import json

    whole = json.read_json(path)
    for at in range(0, max(1, whole.num_rows), BATCH):
        progress(at / max(1, whole.num_rows))
        yield whole.slice(at, BATCH)
