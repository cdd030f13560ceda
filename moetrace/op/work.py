"""Work: what an op takes, with no machine in it; `Amounts` and `Works`: the same of many ops, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypedDict, cast

import numpy as np
import numpy.typing as npt

from moetrace.op.columns import FloatArray, OpColumns, Rows
from moetrace.op.value import Op

Amount: TypeAlias = "FloatArray | float"


@dataclass(frozen=True, slots=True)
class Work:
    """What one op takes, on any machine. Bytes are those that must cross from memory if nothing is cached.

    `weight_bytes` is the expectation at the stated routing; `weight_bytes_min` what is touched for certain (the counted
    distinct experts, else the k of one token). `net_bytes` leave each rank, in `net_steps` dependent messages.
    `experts` is the number of distinct experts expected on this rank, `rows` the token rows those experts multiply.
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    weight_bytes_min: float = 0.0
    kv_read_bytes: float = 0.0
    kv_write_bytes: float = 0.0
    act_read_bytes: float = 0.0
    act_write_bytes: float = 0.0
    net_bytes: float = 0.0
    net_ranks: float = 0.0
    experts: float = 0.0
    rows: float = 0.0
    launches: float = 1.0
    resident_bytes: float = 0.0  # weights held for this op, touched or not: all experts, the whole matrix
    # Of activations between the kernels of a merged op: may stay in cache, so not in `bytes`.
    inner_bytes: float = 0.0
    known: bool = True  # False: the dims did not suffice, so the record is empty, not zero

    @property
    def bytes(self) -> float:
        return (
            self.weight_bytes
            + self.kv_read_bytes
            + self.kv_write_bytes
            + self.act_read_bytes
            + self.act_write_bytes
        )

    @property
    def kv_bytes(self) -> float:
        return self.kv_read_bytes + self.kv_write_bytes

    @property
    def act_bytes(self) -> float:
        return self.act_read_bytes + self.act_write_bytes

    @property
    def bytes_min(self) -> float:
        """Bytes that are touched for certain."""
        return self.weight_bytes_min + self.kv_bytes + self.act_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, FLOPs per byte; nan where nothing moves."""
        return self.flops / self.bytes if self.bytes else float("nan")


UNKNOWN = Work(known=False)

WORK_COLUMNS = tuple(f.name for f in fields(Work) if f.name != "known")


class Amounts(TypedDict, total=False):
    """The fields of `Work` for a group of like ops: an array each, or a number that holds for all; 0 where not said."""

    flops: Amount
    weight_bytes: Amount
    weight_bytes_min: Amount
    kv_read_bytes: Amount
    kv_write_bytes: Amount
    act_read_bytes: Amount
    act_write_bytes: Amount
    net_bytes: Amount
    net_ranks: Amount
    experts: Amount
    rows: Amount
    launches: Amount
    resident_bytes: Amount
    inner_bytes: Amount


@dataclass(frozen=True, slots=True)
class Works:
    """The works of many ops as columns; `ops` are the ops themselves, in the same order."""

    ops: OpColumns
    column: dict[str, FloatArray]
    known: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, ops: Sequence[Op], works: Iterable[Work]) -> Works:
        rows = list(works)
        return cls(
            OpColumns.of(ops),
            {name: np.array([getattr(w, name) for w in rows], dtype=np.float64) for name in WORK_COLUMNS},
            np.array([w.known for w in rows], dtype=bool),
        )

    @classmethod
    def empty(cls, ops: OpColumns) -> Works:
        """Columns to be filled: nothing is known yet."""
        column = {name: np.zeros(len(ops)) for name in WORK_COLUMNS}
        column["launches"] += 1.0
        return cls(ops, column, np.zeros(len(ops), dtype=bool))

    def fill(self, rows: Rows, amounts: Amounts) -> None:
        """Sets the work of some rows, which is then known."""
        self.known[rows] = True
        for name, amount in cast("Mapping[str, Amount]", amounts).items():
            self.column[name][rows] = amount

    def __call__(self, row: int) -> Work:
        """The Work of one row."""
        if not self.known[row]:
            return UNKNOWN
        figures: dict[str, Any] = {name: float(values[row]) for name, values in self.column.items()}
        return Work(**figures)

    def __getitem__(self, name: str) -> FloatArray:
        """A column by a Work field's name, or one of the sums ``bytes``, ``bytes_min``, ``kv_bytes``, ``act_bytes``."""
        c = self.column
        if name == "kv_bytes":
            return c["kv_read_bytes"] + c["kv_write_bytes"]
        if name == "act_bytes":
            return c["act_read_bytes"] + c["act_write_bytes"]
        if name == "bytes":
            return c["weight_bytes"] + self["kv_bytes"] + self["act_bytes"]
        if name == "bytes_min":
            return c["weight_bytes_min"] + self["kv_bytes"] + self["act_bytes"]
        return c[name]

    def dim(self, name: str, default: float = np.nan) -> FloatArray:
        """A dim of the ops as a column, `default` where an op has none."""
        return self.ops.column(name, default)

    def take(self, rows: Rows) -> Works:
        """The works of some rows, in the order given."""
        column = {name: values[rows] for name, values in self.column.items()}
        return Works(self.ops.take(rows), column, self.known[rows])

    def __len__(self) -> int:
        return len(self.ops)
