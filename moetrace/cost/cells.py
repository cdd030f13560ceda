"""Cells of a table: its columns as codes of texts or as numbers, and what is wrong with which row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.op import FloatArray

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Rows:
    """What is found wrong while rows are read; the first problem of a row stays."""

    size: int
    source: Mapping[str, str]  # the table's name of each column that we know
    problems: list[str] = field(default_factory=lambda: [""])
    problem: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.problem = np.zeros(self.size, dtype=np.int64)

    def called(self, name: str) -> str:
        """What the table calls a dim."""
        return self.source.get(name, name)

    def mark(self, bad: BoolArray, text: str) -> None:
        bad = bad & (self.problem == 0)
        if bad.any():
            self.problem[bad] = len(self.problems)
            self.problems.append(text)

    def mark_each(self, code: IntArray, texts: Sequence[str | None]) -> None:
        """Marks the rows of every code that has a text."""
        for at, text in enumerate(texts):
            if text is not None:
                self.mark(code == at, text)


def codes(column: pa.ChunkedArray, words: Mapping[str, str] | None = None) -> tuple[IntArray, list[str]]:
    """(code of each row, -1 for null; the texts) of a column of texts or numbers; `words` replaces some texts."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_encode()
    code = np.asarray(pc.fill_null(whole.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False))
    texts = [str(text) for text in whole.dictionary.to_pylist()]
    return code, [words.get(text, text) for text in texts] if words else texts


def numbers(rows: Rows, name: str, column: pa.ChunkedArray) -> FloatArray:
    """A column as floats, nan for null; texts that are no numbers are marked."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(), dtype=np.float64)
    code, texts = codes(column)
    values = np.array([*(number(text) for text in texts), np.nan])[code]
    rows.mark((code >= 0) & np.isnan(values), f"{rows.called(name)} is not a number")
    return np.asarray(values)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
