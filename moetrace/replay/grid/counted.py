"""The distinct ops of a draft, each counted as often as it runs in each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.op import Op
from moetrace.ops import family
from moetrace.replay.draft import Draft
from moetrace.replay.lanes import Lanes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The distinct ops of a draft and how often each is run in each step, [steps, ops], `times` over where it is in a loop.

    `of_cell` is which of them each cell of the draft is.
    """

    ops: tuple[Op, ...]
    keys: tuple[Key, ...]
    families: tuple[str, ...]
    count: FloatArray
    times: tuple[Any, ...]
    of_cell: IntArray


def key_of(op: Op) -> Key:
    """What tells an op from others of the same scenarios, numbers of many of them compared without parting them: equal
    ones are one object."""
    dims: Iterable[tuple[str, Any]] = op.dims
    told = ((n, (id(v),) if isinstance(v, Lanes) else v) for n, v in dims)
    return (op.kind, op.dtype, *told)


def count_of(draft: Draft, times: Mapping[int, int]) -> Counted:
    """The distinct ops of a draft, each row as often as its layer stands for."""
    place: dict[Key, int] = {}
    ops: list[Op] = []
    again: list[Any] = []
    of_cell = []
    for op, often in zip(draft.ops, _loops(draft), strict=True):
        key = (*key_of(op), id(often) if isinstance(often, Lanes) else often)
        if key not in place:
            place[key] = len(ops)
            ops.append(op)
            again.append(often)
        of_cell.append(place[key])
    layer = np.array([times.get(at.layer, 1) for at in draft.at], dtype=np.float64)
    count = np.zeros((len(draft.steps), len(ops)))
    cells = np.array(of_cell, dtype=np.int64)
    np.add.at(count, (draft.base.step[draft.rows], cells[draft.cell]), layer[draft.cell])
    return Counted(tuple(ops), tuple(place), tuple(family(op.kind) for op in ops), count, tuple(again), cells)


def _loops(draft: Draft) -> list[Any]:
    """How often each cell runs at each of its rows: more than once within a loop."""
    out: list[Any] = [1] * len(draft.ops)
    inside = 0
    times: Any = 1
    for cell in draft.cell.tolist() if draft.loops else ():
        loop = draft.loops[cell]
        if loop is not None:
            times, inside = loop.times, loop.rows
        if inside:
            out[cell], inside = times, inside - 1
    return out
