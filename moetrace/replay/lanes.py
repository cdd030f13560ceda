"""Lanes: one number for each of many scenarios, in the place of one number.

The code that edits one scenario's ops is run once for thousands: its numbers are Lanes, and every sum or product of them is
an array's. Where that code must decide (an `if`, a `min`, a loop's length) and the scenarios disagree, `Diverged` is raised:
the caller parts them by the decision and runs each part again. So whatever is computed is what one scenario alone would
give, and what the code cannot do for many at once costs time, never truth.

A number that follows from few settings has few values: Lanes hold the distinct ones, and an `Axis` says which of them each
scenario has. Operations on two axes meet on the axis of both, which is worked out once. Equal numbers of one set of scenarios
are one object, and what an operation gave for the very same numbers is kept: many cases ask for the same sums.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]


class Diverged(Exception):  # noqa: N818 - a signal, not a failure
    """Scenarios decide differently: `mask` [scenarios] is true for those of one part."""

    def __init__(self, mask: BoolArray) -> None:
        super().__init__("scenarios decide differently")
        self.mask = mask


class Axis:
    """Which of `size` values each scenario has: `index` [scenarios]. `roots` are the settings that it follows from."""

    def __init__(self, space: Space, roots: tuple[str, ...], index: IntArray, size: int) -> None:
        self.space, self.roots, self.index, self.size = space, roots, index, size


class Space:
    """The axes of one set of scenarios, given each varied setting's value in each scenario."""

    def __init__(self, columns: Mapping[str, Values], exact: bool = False) -> None:
        self.order, self.size = tuple(columns), len(next(iter(columns.values())))
        self.exact = exact  # a text that names a number parts those that would name another
        self.axes: dict[tuple[str, ...], Axis] = {}
        self.given: dict[str, Lanes] = {}
        self.places: dict[tuple[tuple[str, ...], tuple[str, ...]], IntArray] = {}
        self.answers: dict[tuple[Any, ...], tuple[Lanes, tuple[Any, ...]]] = {}
        self.met: dict[tuple[tuple[str, ...], tuple[str, ...]], Axis] = {}
        self.one: dict[tuple[Any, ...], Lanes] = {}  # which keeps all Lanes, and so their ids
        self.done: dict[tuple[Any, ...], Lanes] = {}
        for name, values in columns.items():
            distinct, index = np.unique(values, return_inverse=True)
            axis = Axis(self, (name,), index.reshape(-1).astype(np.int64), distinct.size)
            self.axes[axis.roots] = axis
            self.given[name] = self.lanes(axis, distinct)

    def lanes(self, axis: Axis, values: Values) -> Lanes:
        """The one object of these numbers."""
        key = (axis.roots, values.dtype.char, values.tobytes())
        found = self.one.get(key)
        if found is None:
            found = self.one[key] = Lanes(axis, values)
        return found

    def joint(self, one: Axis, two: Axis) -> Axis:
        """The axis of all settings that either follows from."""
        if one is two:
            return one
        met = self.met.get((one.roots, two.roots))
        if met is None:
            met = self.met[one.roots, two.roots] = self._joint(one, two)
        return met

    def _joint(self, one: Axis, two: Axis) -> Axis:
        roots = tuple(name for name in self.order if name in one.roots or name in two.roots)
        if roots not in self.axes:
            key = np.zeros(one.index.size, dtype=np.int64)
            for name in roots:
                part = self.axes[(name,)]
                key = key * part.size + part.index
                distinct, key = np.unique(key, return_inverse=True)
                key = key.reshape(-1).astype(np.int64)
            self.axes[roots] = Axis(self, roots, key, distinct.size)
        return self.axes[roots]

    def place(self, of: Axis, on: Axis) -> IntArray:
        """For each value of the axis `on`, which value of the axis `of` goes with it; shape [on.size]."""
        key = (of.roots, on.roots)
        if key not in self.places:
            first = np.zeros(on.size, dtype=np.int64)
            first[on.index] = np.arange(on.index.size)
            self.places[key] = of.index[first]
        return self.places[key]


def _pair(name: str) -> Callable[[Lanes, Any], Any]:
    act = getattr(operator, name)

    def method(self: Lanes, other: Any) -> Any:
        return self.with_other(other, act)

    return method


def _turned(name: str) -> Callable[[Lanes, Any], Any]:
    act = getattr(operator, name)

    def turned(mine: Any, others: Any) -> Any:
        return act(others, mine)

    def method(self: Lanes, other: Any) -> Any:
        return self.with_other(other, turned)

    return method


def _rounded(values: Values) -> Values:
    return np.rint(values).astype(np.int64)


def _floor(values: Values) -> Values:
    return np.floor(values).astype(np.int64)


def _ceil(values: Values) -> Values:
    return np.ceil(values).astype(np.int64)


class Lanes:
    """One number for each scenario: `values` [axis.size], whichever of them `axis.index` says."""

    __slots__ = ("axis", "decided", "values")

    def __init__(self, axis: Axis, values: Values) -> None:
        self.axis, self.values = axis, values
        # What they say in a condition, once asked, where they all say the same.
        self.decided: bool | None = None

    def on(self, axis: Axis) -> Values:
        """The values on an axis that follows from more settings; shape [axis.size]."""
        return self.values if axis is self.axis else self.values[self.axis.space.place(self.axis, axis)]

    def spread(self) -> Values:
        """The value of each scenario."""
        return self.values[self.axis.index]

    def with_other(self, other: Any, act: Callable[[Any, Any], Any]) -> Any:
        """`act` on these and other numbers, value by value; NotImplemented for what is not a number.

        What an `act` gave is kept, so it is a function that lives as long as the program.
        """
        space = self.axis.space
        if isinstance(other, Lanes):
            key: tuple[Any, ...] = (act, id(self), id(other))
            if key not in space.done:
                axis = space.joint(self.axis, other.axis)
                space.done[key] = space.lanes(axis, act(self.on(axis), other.on(axis)))
            return space.done[key]
        if not isinstance(other, (int, float, np.number)):
            return NotImplemented
        key = (act, id(self), other, type(other))
        if key not in space.done:
            space.done[key] = space.lanes(self.axis, act(self.values, other))
        return space.done[key]

    def _each(self, act: Callable[[Values], Values]) -> Lanes:
        space, key = self.axis.space, (act, id(self))
        if key not in space.done:
            space.done[key] = space.lanes(self.axis, act(self.values))
        return space.done[key]

    def _agreed(self) -> Any:
        """The one value of all scenarios. Raises Diverged, those of the first value apart, where there are several."""
        if (self.values == self.values[0]).all():
            return self.values[0].item()
        raise Diverged((self.values == self.values[0])[self.axis.index])

    __add__, __radd__ = _pair("add"), _turned("add")
    __sub__, __rsub__ = _pair("sub"), _turned("sub")
    __mul__, __rmul__ = _pair("mul"), _turned("mul")
    __truediv__, __rtruediv__ = _pair("truediv"), _turned("truediv")
    __floordiv__, __rfloordiv__ = _pair("floordiv"), _turned("floordiv")
    __mod__, __rmod__ = _pair("mod"), _turned("mod")
    __pow__, __rpow__ = _pair("pow"), _turned("pow")
    __lt__, __le__, __gt__, __ge__ = _pair("lt"), _pair("le"), _pair("gt"), _pair("ge")
    __eq__ = _pair("eq")
    __ne__ = _pair("ne")

    def __neg__(self) -> Lanes:
        return self._each(np.negative)

    def __round__(self, digits: int | None = None) -> Lanes:
        if digits:
            return self.axis.space.lanes(self.axis, np.round(self.values, digits))
        return self._each(_rounded)

    def __floor__(self) -> Lanes:
        return self._each(_floor)

    def __ceil__(self) -> Lanes:
        return self._each(_ceil)

    def __bool__(self) -> bool:
        if self.decided is None:
            true = self.values != 0
            if true.any() and not true.all():
                raise Diverged(true[self.axis.index])
            self.decided = bool(true.all())
        return self.decided

    def __int__(self) -> int:
        return int(self._agreed())

    def __index__(self) -> int:
        return operator.index(self._agreed())

    def __float__(self) -> float:
        return float(self._agreed())

    def __hash__(self) -> int:
        return 0  # equal ones must hash alike, and whether they are equal may differ between scenarios

    def is_integer(self) -> bool:
        """Whether all values are whole."""
        return bool(np.all(np.mod(self.values, 1) == 0))

    def __format__(self, spec: str) -> str:
        low, high = self.values.min().item(), self.values.max().item()
        if low == high or self.axis.space.exact:
            return format(self._agreed(), spec)
        return f"{low:{spec}}..{high:{spec}}"

    def __str__(self) -> str:
        return format(self, "")

    __repr__ = __str__


Integral.register(Lanes)


def each(function: Callable[..., float], *numbers: Any) -> Any:
    """A function of numbers, worked out once for each combination that occurs where some of them are Lanes.

    `function` is one that lives as long as the program: what it gave for the very same Lanes is kept.
    """
    lanes = [number for number in numbers if isinstance(number, Lanes)]
    if not lanes:
        return function(*numbers)
    space = lanes[0].axis.space
    asked = (function, *(id(number) if isinstance(number, Lanes) else number for number in numbers))
    if asked not in space.answers:
        # The Lanes are kept, so that their ids are not used again.
        space.answers[asked] = _each(function, lanes, numbers), numbers
    return space.answers[asked][0]


def _each(function: Callable[..., float], lanes: Sequence[Lanes], numbers: Sequence[Any]) -> Lanes:
    axis = lanes[0].axis
    for other in lanes[1:]:
        axis = axis.space.joint(axis, other.axis)
    columns = [
        (number.on(axis) if isinstance(number, Lanes) else np.full(axis.size, number)) for number in numbers
    ]
    known: dict[tuple[Any, ...], float] = {}
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return axis.space.lanes(axis, np.array([_once(known, function, row) for row in rows], dtype=np.float64))


def _once(known: dict[tuple[Any, ...], float], function: Callable[..., float], row: tuple[Any, ...]) -> float:
    if row not in known:
        known[row] = function(*row)
    return known[row]


def largest(one: Any, two: Any) -> Any:
    """The larger of two numbers in each scenario, without parting them."""
    return _chosen(one, two, np.maximum, max)


def smallest(one: Any, two: Any) -> Any:
    """The smaller of two numbers in each scenario, without parting them."""
    return _chosen(one, two, np.minimum, min)


def _chosen(one: Any, two: Any, act: Callable[[Any, Any], Any], plain: Callable[[Any, Any], Any]) -> Any:
    if isinstance(one, Lanes):
        return one.with_other(two, act)
    return two.with_other(one, act) if isinstance(two, Lanes) else plain(one, two)


__all__ = ["Axis", "Diverged", "Lanes", "Space", "each", "largest", "smallest"]
