"""What the ops of many drafts take: every distinct one is priced once on each machine, in one call for all that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost import PriceContext, price
from moetrace.cost.beyond import beyond
from moetrace.hardware import Hardware
from moetrace.op import Costs, Op, OpColumns, Works
from moetrace.replay.columns import axis_of, column
from moetrace.replay.grid.counted import Counted, Key, key_of
from moetrace.replay.lanes import Axis

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_HELD = ("model_bytes", "beside_bytes")  # what the wafer law must know beside an op's dims
_MOST_REASONS = 62  # that fit a whole number's bits, and one for all others


Held = tuple[Any, Any]  # bytes of a model and of one beside it
Member = tuple[Op, Axis | None, Held | None, int]


@dataclass(frozen=True, slots=True)
class Times:
    """Of ops on their axes: whole ns [3, rows] as expected and at both ends of the interval, and what lies beyond the fit:
    bit i of `mark` [rows] for `reasons[i]`."""

    ns: FloatArray
    mark: IntArray
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a draft's ops lie: the first row of each, and which of them lie on which axis (by its settings)."""

    begin: IntArray
    axes: dict[tuple[str, ...], tuple[Axis | None, IntArray]]


class Pricing:
    """Ops that are gathered first and priced together."""

    def __init__(self) -> None:
        self.place: dict[Key, int] = {}
        self.known: dict[int, tuple[Counted, Placed]] = {}
        self.alike: dict[Key, list[Member]] = {}
        self.rows = 0
        self.answers: dict[Key, Times] = {}
        self.groups: list[tuple[Works, tuple[FloatArray, FloatArray] | None, IntArray]] | None = None

    def add(self, counted: Counted, held: Held | None = None) -> Placed:
        """Gathers a draft's ops; those of one draft on several machines once.

        `held` are the bytes of the model and of one beside it, where the machine's law asks.
        """
        if held is None and id(counted) in self.known:
            return self.known[id(counted)][1]
        every = zip(counted.ops, counted.keys, counted.times, strict=True)
        added = [self._add(op, key, held, times) for op, key, times in every]
        axes: dict[tuple[str, ...], tuple[Axis | None, list[int]]] = {}
        for i, (_, axis) in enumerate(added):
            axes.setdefault(axis.roots if axis else (), (axis, []))[1].append(i)
        placed = Placed(
            np.array([begin for begin, _ in added], dtype=np.int64),
            {roots: (axis, np.array(members)) for roots, (axis, members) in axes.items()},
        )
        self.known[id(counted)] = counted, placed
        return placed

    def _add(self, op: Op, key: Key, held: Held | None, times: Any) -> tuple[int, Axis | None]:
        """Where the op's rows begin, and the axis that they and how often they run lie on (None: one for all scenarios)."""
        asked = tuple(zip(_HELD, held, strict=True)) if held else ()
        axis = axis_of((*(value for _, value in op.dims), *(held or ()), times))
        whole = (id(axis.space) if axis is not None else 0, key, key_of(Op("", "", asked)))
        if whole not in self.place:
            size = 1 if axis is None else axis.size
            self.place[whole] = self.rows
            kind = (op.kind, op.dtype, tuple(name for name, _ in op.dims))
            self.alike.setdefault(kind, []).append((op, axis, held, self.rows))
            self.rows += size
        return self.place[whole], axis

    def on(self, hw: Hardware, context: PriceContext) -> Times:
        """The times of all rows on one device of a machine; those of a node are those of its device."""
        key = (hw.base or hw.name, id(hw.families), hw.link, context)
        if key not in self.answers:
            self.answers[key] = self._on(hw, context)
        return self.answers[key]

    def _on(self, hw: Hardware, context: PriceContext) -> Times:
        if self.groups is None:
            self.groups = [self._group(kind, members) for kind, members in self.alike.items()]
        ns, mark = np.zeros((3, self.rows)), np.zeros(self.rows, dtype=np.int64)
        bits: dict[str, int] = {}
        for works, held, rows in self.groups:
            ns[:, rows] = _ns(price(works, hw, context=context, held=held))
            for reason, which in beyond(works, hw, context):
                bit = bits.setdefault(reason, len(bits))
                mark[rows[which]] |= 1 << min(bit, _MOST_REASONS)
        told = list(bits)
        if len(told) > _MOST_REASONS:
            told = [*told[:_MOST_REASONS], "and more"]
        return Times(ns, mark, tuple(told))

    def _group(
        self, kind: Key, members: Sequence[Member]
    ) -> tuple[Works, tuple[FloatArray, FloatArray] | None, IntArray]:
        """The works of ops of one kind, type and set of dims, and the places of their rows."""
        sizes = [1 if axis is None else axis.size for _, axis, _, _ in members]
        columns = [dict(op.dims) for op, _, _, _ in members]
        dims = {
            name: np.concatenate([
                column(values[name], axis, size)
                for values, (_, axis, _, _), size in zip(columns, members, sizes, strict=True)
            ])
            for name in kind[2]
        }  # fmt: skip
        told = [
            (column(held[0], axis, size), column(held[1], axis, size))
            for (_, axis, held, _), size in zip(members, sizes, strict=True)
            if held is not None
        ]
        own, other = zip(*told, strict=True) if told else ((), ())
        rows = np.concatenate(
            [np.arange(at, at + size) for (_, _, _, at), size in zip(members, sizes, strict=True)]
        )
        ops = OpColumns((Op(kind[0], kind[1]),), np.zeros(rows.size, dtype=np.int64), dims)
        return work_of.works(ops), (np.concatenate(own), np.concatenate(other)) if told else None, rows


def _ns(costs: Costs) -> FloatArray:
    """Rounded as one scenario's rows are."""
    expected = np.rint(np.nan_to_num(costs.expected_s) * 1e9)
    error = 1.0 + np.nan_to_num(costs.error)
    return np.stack([expected, np.rint(expected / error), np.rint(expected * error)])
