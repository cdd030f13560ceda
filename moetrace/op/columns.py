"""Many ops as columns: what a run's distinct ops and a table of a million rows have in common.

A formula of work or time is written once, for an `OpGroup`: it reads like an Op whose dims are arrays. `OpColumns` are any
ops, with the dims that an op lacks as nan; `groups` cuts them into groups of one kind, one dtype and one set of dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from moetrace.errors import MoetraceError
from moetrace.op.value import Op, Typed

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Rows: TypeAlias = "IntArray | slice"
_FEW = 1 << 14


@dataclass(frozen=True, slots=True)
class OpGroup(Typed):
    """Ops of one kind, dtype and set of dims: each dim is an array, [size]."""

    kind: str
    dtype: str
    size: int
    dims: Mapping[str, FloatArray]

    @classmethod
    def of(cls, op: Op) -> OpGroup:
        """The group of one op."""
        return cls(op.kind, op.dtype, 1, {name: np.array([float(value)]) for name, value in op.dims})

    @overload
    def get(self, name: str) -> FloatArray | None: ...
    @overload
    def get(self, name: str, default: FloatArray | float) -> FloatArray | float: ...
    def get(self, name: str, default: FloatArray | float | None = None) -> FloatArray | float | None:
        """A dim's values, or `default`: either all ops of the group have it, or none has."""
        return self.dims.get(name, default)

    def given(self, name: str, default: FloatArray | float) -> FloatArray | float:
        """A dim's values, `default` where they are 0 or the dim is not known."""
        values = self.dims.get(name)
        return default if values is None else np.where(values == 0, default, values)

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self.dims:
            raise MoetraceError(f"ops of kind {self.kind!r} have no dim {name!r}")
        return self.dims[name]

    def has(self, *names: str) -> bool:
        """Whether all of these dims are known."""
        return all(name in self.dims for name in names)


@dataclass(frozen=True, slots=True)
class OpColumns:
    """Ops by row: `types[code]` is a row's kind and dtype, as an Op without dims; `dims` its dims, nan where the op lacks one.

    Arrays are [rows].
    """

    types: tuple[Op, ...]
    code: IntArray
    dims: Mapping[str, FloatArray]

    @classmethod
    def of(cls, ops: Sequence[Op]) -> OpColumns:
        """The columns of ops, in order."""
        code: dict[Op, int] = {}
        codes = [code.setdefault(Op(op.kind, op.dtype), len(code)) for op in ops]
        dims: dict[str, FloatArray] = {}
        for row, op in enumerate(ops):
            for name, value in op.dims:
                if name not in dims:
                    dims[name] = np.full(len(ops), np.nan)
                dims[name][row] = value
        return cls(tuple(code), np.array(codes, dtype=np.int64), dims)

    def __len__(self) -> int:
        return self.code.size

    def __iter__(self) -> Iterator[Op]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Op:
        """One row as an Op, its dims in the order of the columns."""
        said = self.types[int(self.code[row])]
        found = ((name, float(values[row])) for name, values in self.dims.items())
        known = ((name, int(v) if v.is_integer() else v) for name, v in found if v == v)
        return Op(said.kind, said.dtype, tuple(known))

    def column(self, name: str, default: float = np.nan) -> FloatArray:
        """A dim of all rows, `default` where an op lacks it."""
        values = self.dims.get(name)
        if values is None:
            return np.full(len(self), default)
        return values if default != default else np.where(np.isnan(values), default, values)

    def take(self, rows: Rows) -> OpColumns:
        """Some rows, in the order given."""
        return OpColumns(
            self.types, self.code[rows], {name: values[rows] for name, values in self.dims.items()}
        )

    def by_type(self, values: Sequence[float]) -> FloatArray:
        """A number for each of `types`, spread over the rows."""
        return np.asarray(values, dtype=np.float64)[self.code]

    def groups(self) -> Iterator[tuple[Rows, OpGroup]]:
        """(rows, their ops) of each group of one kind, dtype and set of dims; a slice where that is all rows."""
        if not len(self):
            return
        key, span = self.code, max(1, len(self.types))
        whole: dict[str, FloatArray] = {}
        partial: list[str] = []
        for name, values in self.dims.items():
            absent = np.isnan(values)
            if not absent.any():
                whole[name] = values
            elif not absent.all():
                partial.append(name)
                key, span = key * 2 + absent, span * 2
                if span > _FEW:
                    seen, key = np.unique(key, return_inverse=True)
                    span = seen.size
        # Sixteen bits are sorted by their digits, in linear time.
        order = np.argsort(key.astype(np.int16) if span <= _FEW else key, kind="stable")
        bounds = np.flatnonzero(np.diff(key[order], prepend=-1))
        for low, high in zip(bounds, [*bounds[1:], len(self)], strict=True):
            rows: Rows = slice(None) if high - low == len(self) else order[low:high]
            first = int(order[low])
            names = (*whole, *(name for name in partial if not np.isnan(self.dims[name][first])))
            said = self.types[int(self.code[first])]
            dims = {name: self.dims[name][rows] for name in names}
            yield rows, OpGroup(said.kind, said.dtype, int(high - low), dims)
