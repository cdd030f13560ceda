"""Numbers that may stand for many scenarios, as columns: of the axis on which all of them vary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.op import Op, OpColumns, Works
from moetrace.replay.lanes import Axis, Lanes

FloatArray = npt.NDArray[np.float64]


def axis_of(numbers: Iterable[Any]) -> Axis | None:
    """The axis of all these numbers, None if none varies."""
    axis: Axis | None = None
    for value in numbers:
        if isinstance(value, Lanes):
            axis = value.axis if axis is None else axis.space.joint(axis, value.axis)
    return axis


def column(value: Any, axis: Axis | None, size: int) -> FloatArray:
    """A number on an axis of `size` values; shape [size]."""
    if isinstance(value, Lanes) and axis is not None:
        return np.asarray(value.on(axis), dtype=np.float64)
    return np.full(size, float(value))


def works_of(op: Op) -> tuple[Works, Axis | None]:
    """The works of an op in every scenario, on the axis of its dims; one row where none varies."""
    axis = axis_of(value for _, value in op.dims)
    return works_on(op, axis), axis


def works_on(op: Op, axis: Axis | None) -> Works:
    """The works of an op on an axis that its dims vary on, or a wider one; one row on none."""
    size = 1 if axis is None else axis.size
    dims = {name: column(value, axis, size) for name, value in op.dims}
    return work_of.works(OpColumns((Op(op.kind, op.dtype),), np.zeros(size, dtype=np.int64), dims))
