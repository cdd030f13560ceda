"""Measured ops as columns: what every reader of measurements gives, and the words of the public tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.hardware import FORM_OF, coefficient_family
from moetrace.op import FloatArray, OpColumns

TextArray = npt.NDArray[np.str_]
# Public tables: their words for element types, engines and machines.
DTYPES = {
    "bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "fp8_block": "fp8_block", "int4_wo": "int4/bf16",
    "int8_wo": "int8/bf16", "w4a16_mxfp4": "mxfp4/bf16", "nvfp4": "nvfp4",
}  # fmt: skip
SYSTEMS = {"h100_sxm": "h100-sxm", "a100_sxm": "a100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200"}


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured ops: columns of equal length. `shape` names what is left out together when a fit is scored."""

    ops: OpColumns
    seconds: FloatArray
    engine: TextArray
    kernel: TextArray
    shape: TextArray
    hardware: TextArray
    weight: FloatArray
    row: npt.NDArray[np.int64]  # of the table it was read from, the first is 0
    source: str

    def __len__(self) -> int:
        return self.seconds.size

    def take(self, rows: npt.NDArray[Any]) -> Measured:
        """Some rows: indices, or a mask of all."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Measured(
            self.ops.take(index), self.seconds[index], self.engine[index], self.kernel[index], self.shape[index],
            self.hardware[index], self.weight[index], self.row[index], self.source,
        )  # fmt: skip

    @classmethod
    def join(cls, tables: Sequence[Measured]) -> Measured:
        """The rows of several tables one after another; each brings its own types of op, and dims that others lack."""
        types = tuple(op for t in tables for op in t.ops.types)
        starts = np.cumsum([0, *(len(t.ops.types) for t in tables[:-1])])
        code = np.concatenate([t.ops.code + at for t, at in zip(tables, starts, strict=True)])
        names = dict.fromkeys(name for t in tables for name in t.ops.dims)
        dims = {name: np.concatenate([t.ops.column(name) for t in tables]) for name in names}
        texts = {
            name: np.concatenate([getattr(t, name) for t in tables])
            for name in ("seconds", "engine", "kernel", "shape", "hardware", "weight", "row")
        }
        source = ", ".join(dict.fromkeys(t.source for t in tables))
        return cls(ops=OpColumns(types, code, dims), source=source, **texts)


def family_of(kind: str) -> str:
    """The family that ops of a kind are fitted and scored as."""
    return kind if kind in FORM_OF else coefficient_family(kind, work_of.family(kind))
