"""An op table written in parts of whole steps, so that a long run never stands in memory at once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

PARTS = "moetrace.parts"  # what the row groups of a file are, where they are whole steps


def give_back() -> None:
    """Gives memory that is free back to the system, as behind a part of a long run.

    Parts of unlike sizes leave the heap full of holes, which the allocators keep: on Linux glibc's, and Arrow's own.
    """
    pa.default_memory_pool().release_unused()
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """glibc's malloc_trim; None where there is none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


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
            facts = {**(self._schema.metadata or {}), PARTS.encode(): b"steps"}
            self._writer = pq.ParquetWriter(self._file, self._schema.with_metadata(facts), compression="zstd")
        for part in self._tables:
            self._writer.write_table(part.replace_schema_metadata(), row_group_size=max(1, part.num_rows))
        self._tables = []
        give_back()

    def finish(self) -> pa.Table | IO[bytes]:
        """The table, or the file that holds it."""
        if self._writer is None or self._file is None:
            return pa.concat_tables(self._tables)
        self._writer.close()
        return self._file
