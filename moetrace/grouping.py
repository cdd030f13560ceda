"""Distinct combinations of integer columns, by hashing one number per row; rows by group, without asking per group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IntArray = npt.NDArray[np.int64]

_ROOM = 1 << 62


def distinct_rows(*columns: IntArray) -> tuple[IntArray, IntArray]:
    """(index of the first row of each combination, the combination of each row); combinations in order of the columns.

    Equal to ``np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)``, in linear time.
    """
    key, span = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        if not len(column):
            return key, key
        digits, base = _digits(column)
        if span * base >= _ROOM:
            key, span = _ranks(key)
        if span * base >= _ROOM:
            digits, base = _ranks(column)
        key, span = key * base + digits, span * base
    return _encode(key)


def rows_of_groups(group: IntArray, count: int) -> list[IntArray]:
    """The rows, ascending, of each of the groups 0 to `count` - 1; rows of other groups are in none."""
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(count + 1))
    return [order[low:high] for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def _digits(column: IntArray) -> tuple[IntArray, int]:
    """The column from 0 up, and how many values it may have."""
    low, high = int(column.min()), int(column.max())
    return (column - low, high - low + 1) if high - low < _ROOM else _ranks(column)


def _ranks(column: IntArray) -> tuple[IntArray, int]:
    first, ranks = _encode(column)
    return ranks, len(first)


def _encode(key: IntArray) -> tuple[IntArray, IntArray]:
    """(index of the first row of each value in ascending order, rank of each row's value)."""
    # From buffers: pa.array would import pandas.
    values = pa.Array.from_buffers(pa.int64(), len(key), [None, pa.py_buffer(np.ascontiguousarray(key))])
    encoded = values.dictionary_encode()  # codes in order of first appearance
    codes = _values(encoded.indices).astype(np.int64)
    seen = np.concatenate(([-1], np.maximum.accumulate(codes)[:-1]))
    first = np.flatnonzero(codes > seen)
    order = np.argsort(_values(encoded.dictionary))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return first[order], rank[codes]


def _values(array: pa.Array) -> npt.NDArray[np.int64 | np.int32]:
    """An array without nulls; its own `to_numpy` would import pandas."""
    width = np.int64 if array.type == pa.int64() else np.int32
    return np.frombuffer(
        array.buffers()[1], dtype=width, count=len(array), offset=array.offset * width().itemsize
    )
