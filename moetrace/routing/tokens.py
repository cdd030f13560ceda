"""Routing by token: what each token chose, on disk; kept on request only, for counts answer most questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.errors import OutputError, RunError, plainly
from moetrace.files import table_facts, values_of
from moetrace.routing.distinct import IntArray

TOKENS_FILE = "routing_tokens.parquet"  # beside routing.parquet
_VERSION = 1
# name, type, meaning. The order is the order on disk. "Token" is a position in the batch, never what stood there.
TOKEN_ROUTING_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("step", pa.int32(), "index into the run's steps"),
    ("layer", pa.int32(), "decoder layer from 0"),
    ("token", pa.int32(), "position in the step, sequence by sequence; padding is left out and leaves a gap"),
    ("rank_of_choice", pa.int16(), "1: the expert with the token's highest router weight, 2: the next"),
    ("expert", pa.int32(), "expert from 0, over all ranks"),
)
_NAMES = tuple(name for name, _, _ in TOKEN_ROUTING_COLUMNS)
_SCHEMA = pa.schema(
    [pa.field(n, t, nullable=False, metadata={"doc": d}) for n, t, d in TOKEN_ROUTING_COLUMNS]
)
_EXPERTS = b"moetrace.routing.experts"


def save_token_routing(
    path: Path, experts: int, parts: Iterable[tuple[int, int, IntArray, IntArray]]
) -> None:
    """Write (step, layer, tokens [n], expert ids [n, k]) parts as Parquet, one after the other."""
    with pq.ParquetWriter(path, _stamped(experts), compression="zstd") as writer:
        for step, layer, tokens, ids in parts:
            n, k = ids.shape
            columns = (
                np.full(n * k, step),
                np.full(n * k, layer),
                np.repeat(tokens, k),
                np.tile(np.arange(1, k + 1), n),
                ids.reshape(-1),
            )
            writer.write_table(_table(columns, experts))


@dataclass(frozen=True, slots=True)
class TokenRouting:
    """A file of `save_token_routing`, read a row group at a time when asked. `steps`: number here by number in the file."""

    path: Path | IO[bytes]
    experts: int
    steps: Mapping[int, int] | None = None

    @property
    def place(self) -> str:
        """What an error calls the file."""
        return str(self.path) if isinstance(self.path, Path) else TOKENS_FILE

    @classmethod
    def load(cls, path: Path | IO[bytes]) -> TokenRouting:
        """The file's facts. Raises RunError if it is not such a file."""
        where = path if isinstance(path, Path) else TOKENS_FILE
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{where}: not a table of tokens ({plainly(error)})") from None
        experts = (schema.metadata or {}).get(_EXPERTS, b"")
        if (
            not experts.isdigit()
            or not set(_NAMES) <= set(schema.names)
            or not all(pa.types.is_integer(schema.field(name).type) for name in _NAMES)
        ):
            raise RunError(f"{where}: not a table of tokens (expected the columns {', '.join(_NAMES)})")
        return cls(path, int(experts))

    def renumbered(self, steps: Mapping[int, int]) -> TokenRouting:
        """Some steps, by their number here, under other numbers."""
        before = self.steps
        now = steps if before is None else {f: steps[n] for f, n in before.items() if n in steps}
        return TokenRouting(self.path, self.experts, now)

    def parts(self) -> Iterator[tuple[IntArray, ...]]:
        """The columns of whole tokens, each [rows], in the file's order: a token's choices one after another from the first.

        Raises RunError: damaged, or not in that order.
        """
        rest: list[IntArray] = [np.zeros(0, dtype=np.int64)] * len(_NAMES)
        for read in self._groups():
            columns = [np.concatenate(pair) for pair in zip(rest, read, strict=True)]
            firsts = np.flatnonzero(columns[3] == 1)
            whole = int(firsts[-1]) if len(firsts) else 0  # the last token may go on in the next group
            rest = [column[whole:] for column in columns]
            if whole:
                yield self._checked([column[:whole] for column in columns])
        if len(rest[0]):
            yield self._checked(rest)

    def save(self, path: Path) -> None:
        """Write them, as they are numbered here. Raises OutputError."""
        try:
            with pq.ParquetWriter(path, _stamped(self.experts), compression="zstd") as writer:
                for columns in self.parts():
                    writer.write_table(_table(columns, self.experts))
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None

    def _groups(self) -> Iterator[list[IntArray]]:
        try:
            with pq.ParquetFile(self.path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=list(_NAMES))
                    if any(table.column(name).null_count for name in _NAMES):
                        raise RunError(f"{self.place}: a column of the table of tokens has nulls")
                    yield self._here([values_of(table.column(name)).astype(np.int64) for name in _NAMES])
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{self.place}: is damaged ({plainly(error)})") from None

    def _here(self, columns: list[IntArray]) -> list[IntArray]:
        if self.steps is None:
            return columns
        known, where = np.unique(columns[0], return_inverse=True)
        numbers = np.array([self.steps.get(step, -1) for step in known.tolist()], dtype=np.int64)
        step = numbers[where.reshape(-1)] if len(known) else columns[0]
        kept = step >= 0
        return [column[kept] for column in (step, *columns[1:])]

    def _checked(self, columns: list[IntArray]) -> tuple[IntArray, ...]:
        step, layer, token, rank, expert = columns
        same = np.ones(len(rank), dtype=bool)
        for column in (step, layer, token):
            same[1:] &= np.diff(column) == 0
        follows = np.r_[False, (np.diff(rank) == 1) & same[1:]]
        if bool(((rank != 1) & ~follows).any()):
            raise RunError(f"{self.place}: a token's choices do not follow one another from the first")
        if min(int(step.min()), int(layer.min())) < 0 or not 0 <= expert.min() <= expert.max() < self.experts:
            raise RunError(
                f"{self.place}: a step, layer or expert is out of range (of {self.experts} experts)"
            )
        return step, layer, token, rank, expert


def _stamped(experts: int) -> pa.Schema:
    return _SCHEMA.with_metadata({**table_facts("routing_tokens", _VERSION), _EXPERTS.decode(): str(experts)})


def _table(columns: Iterable[IntArray], experts: int) -> pa.Table:
    schema = _stamped(experts)
    arrays = [pa.array(v, type=t) for v, t in zip(columns, schema.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
