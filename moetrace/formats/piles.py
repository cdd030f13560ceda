"""Columns of whole numbers that outgrow memory: kept as blocks, and spilled to a temporary file once they are many.

A spill file has no name (where the system can do that), so that nothing of it is left on any exit, however sudden.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import OutputError

IntArray = npt.NDArray[np.int64]
Block = dict[str, npt.NDArray[Any]]

ROWS = 1 << 16  # rows that the stages behind the reader work on at a time
_HELD = 24 << 20  # bytes that all piles together hold in memory
_MARGIN = 256 << 20  # bytes of the disk that a spill leaves free
_NEEDS = "a trace of this size needs more to be sorted on disk (write the RUN to a larger disk, or point TMPDIR at one)"
_NARROW = (np.int8, np.int16, np.int32)


class Spill:
    """Where piles spill to: a folder on a disk with room. Raises OutputError with one line where it has none."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else Path(tempfile.gettempdir())
        self.held = 0

    def file(self) -> IO[bytes]:
        """A new file without a name."""
        try:
            return tempfile.TemporaryFile(prefix=".moetrace-", suffix=".spill", dir=self.folder)
        except OSError as err:
            raise self._refused(err) from err

    def check(self, nbytes: int, needs: str = _NEEDS) -> None:
        """Raises OutputError if the disk has no room for so many bytes more; `needs` says what needs it and the way out."""
        free = shutil.disk_usage(self.folder).free
        if free < nbytes + _MARGIN:
            raise OutputError(f"{self.folder} has {free >> 20} MiB free: {needs}")

    def write(self, file: IO[bytes], place: int, chunks: Sequence[bytes | memoryview]) -> int:
        """Writes into a file of this spill from a place on; where that ends."""
        nbytes = sum(map(len, chunks))
        self.check(nbytes)
        try:
            file.seek(place)
            file.writelines(chunks)
        except OSError as err:
            raise self._refused(err) from err
        return place + nbytes

    def _refused(self, err: OSError) -> OutputError:
        said = os.strerror(err.errno) if err.errno else str(err)
        return OutputError(f"cannot write a temporary file in {self.folder}: {said}")


class Pile:
    """Rows of named columns, appended in blocks and read back in the same order. Numbers are stored as narrow as they are."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._blocks: list[Block] = []  # those still in memory
        self._file: IO[bytes] | None = None
        self._index: list[list[tuple[str, str, int]]] = []  # per block on disk: (column, dtype, rows)
        self._rows = self._end = 0  # rows in all, and where the file ends

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """One block: equally long columns, the same in every block."""
        size = len(next(iter(columns.values())))
        if not size:
            return
        block = {name: _narrow(values) for name, values in columns.items()}
        self._rows += size
        self._blocks.append(block)
        self._spill.held += sum(values.nbytes for values in block.values())
        if self._spill.held > _HELD or self._file is not None:
            self._flush()

    def blocks(self) -> Iterator[Block]:
        """The rows in blocks of at most ROWS, or as they were appended where one is longer; wide numbers."""
        waiting: list[Block] = []
        have = 0
        for block in self._each():
            size = len(next(iter(block.values())))
            if have + size > ROWS and waiting:
                yield _joined(waiting)
                waiting, have = [], 0
            waiting.append(block)
            have += size
        if waiting:
            yield _joined(waiting)

    def all(self) -> Block:
        """All rows as one block; empty for an empty pile."""
        found = list(self._each())
        return _joined(found) if found else {}

    def scatter(self, code: Callable[[Block], IntArray], count: int) -> list[Pile]:
        """The rows in `count` piles, by the code that each block's rows get, in their order. This pile is empty afterwards."""
        piles = [Pile(self._spill) for _ in range(count)]
        for block in self.blocks():
            codes = code(block)
            order = np.argsort(codes, kind="stable")
            bounds = np.searchsorted(codes[order], np.arange(count + 1))
            for i in np.flatnonzero(np.diff(bounds)).tolist():
                at = order[bounds[i] : bounds[i + 1]]
                piles[i].append({name: values[at] for name, values in block.items()})
        self.clear()
        return piles

    def clear(self) -> None:
        """Forgets all rows and gives their room back."""
        self._release()
        if self._file is not None:
            self._file.close()
        self._file, self._index, self._rows, self._end = None, [], 0, 0

    def _release(self) -> None:
        self._spill.held -= sum(values.nbytes for block in self._blocks for values in block.values())
        self._blocks = []

    def _flush(self) -> None:
        if self._file is None:
            self._file = self._spill.file()
        columns = [values for block in self._blocks for values in block.values()]
        self._end = self._spill.write(self._file, self._end, [values.data.cast("B") for values in columns])
        for block in self._blocks:
            self._index.append([(name, values.dtype.str, len(values)) for name, values in block.items()])
        self._release()

    def _each(self) -> Iterator[Block]:
        place = 0
        for entries in self._index:
            block: Block = {}
            for name, kind, size in entries:
                if self._file is None:
                    return
                self._file.seek(place)
                nbytes = np.dtype(kind).itemsize * size
                block[name] = np.frombuffer(self._file.read(nbytes), dtype=kind)
                place += nbytes
            yield block
        yield from self._blocks


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype != np.int64:
        return np.ascontiguousarray(values)
    low, high = int(values.min()), int(values.max())
    for kind in _NARROW:
        info = np.iinfo(kind)
        if info.min <= low and high <= info.max:
            return values.astype(kind)
    return np.ascontiguousarray(values)


def _joined(blocks: list[Block]) -> Block:
    """One block of several; whole numbers of any width become 64 bits wide, flags stay."""
    out: Block = {}
    left = [dict(block) for block in blocks]
    blocks.clear()  # what was read from disk goes column by column
    for name in list(left[0]):
        parts = [block.pop(name) for block in left]
        kind = np.dtype(np.bool_ if parts[0].dtype == np.bool_ else np.int64)
        out[name] = np.concatenate(parts, dtype=kind)
    return out
