"""What the names of an nsys trace say: ids of its strings to texts, and ranges that torch's emit_nvtx wrote to operators.

Only so many names are remembered at a time: emit_nvtx numbers its ranges, so that every one has a name of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from moetrace.errors import TraceError
from moetrace.formats.events import OPERATOR, RANGE, EventsBuilder, IntArray, Tensors
from moetrace.formats.nsys_file import Database

_REMEMBERED = 1 << 14  # names
_MAX_TEXTS = 256 << 20  # characters of distinct names: real traces have a few million

_VERSION = re.compile(r"_v\d{4,5}(?:_ptsz)?$")  # cudaLaunchKernel_v7000
# What torch's emit_nvtx appends to an operator's name; older torch without op_id.
_MARK = re.compile(r"(?<=.), (?:seq|op_id|sizes) = ", re.DOTALL)
_EMITTED = re.compile(
    r"(, seq = -?\d+)?(?:, op_id = \d+)?(?:, sizes = (\[[\d\[\], ]*\]))?(?:, input_op_ids = .*)?", re.DOTALL
)


class Told(NamedTuple):
    """What a name says of its event; `cls` -1: of the class that it has."""

    name: str
    cls: int = -1
    tensors: Tensors | None = None


def plain(text: str) -> Told:
    """A name as it is."""
    return Told(text)


def api(text: str) -> Told:
    """The name of a runtime or driver call, without the version that nsys appends."""
    return Told(_VERSION.sub("", text))


def emitted(text: str) -> Told:
    """A range by its text: torch's emit_nvtx writes ``aten::mm, op_id = 3, sizes = [[2, 4], [4, 8]]`` for an operator.

    It writes the user's own record_function ranges likewise: those lack a namespace, a sequence number and inputs.
    """
    mark = _MARK.search(text)
    at = mark.start() if mark else len(text)
    found, name = _EMITTED.fullmatch(text, at), text[:at]
    if found is None:
        return Told(text, RANGE)
    operator = "::" in name if at < len(text) else name.startswith("aten::")
    if not operator and not found[1] and not found[2]:
        return Told(name, RANGE)
    return Told(name, OPERATOR, _tensors(found[2]) if found[2] else None)


def _tensors(sizes: str) -> Tensors | None:
    """Shapes as emit_nvtx prints them, a list of tensors as its members; it prints no element types."""
    try:
        shapes = orjson.loads(sizes)
    except orjson.JSONDecodeError:
        return None
    flat: list[tuple[int, ...]] = []
    for shape in shapes:
        members = shape if isinstance(shape, list) and shape and isinstance(shape[0], list) else [shape]
        for member in members:
            if not isinstance(member, list) or not all(
                isinstance(n, int) and 0 <= n < 1 << 48 for n in member
            ):
                return None
            flat.append(tuple(member))
    return Tensors(tuple(flat), ("",) * len(flat))


class Names:
    """The names of one table, as they stand in its rows, to what they say."""

    def __init__(self, db: Database, builder: EventsBuilder, said: Callable[[str], Told] = plain) -> None:
        self._db, self._builder, self._said = db, builder, said
        self._known: dict[str | int | None, tuple[int, int, int]] = {}

    def of(self, raw: Sequence[str | int | None]) -> IntArray:
        """(class or -1, code of the text, code of the tensors or -1) of each name, shape [names, 3]."""
        known = self._known
        if len(known) > _REMEMBERED:
            known.clear()
        if lacking := set(raw).difference(known):
            texts = self._db.strings(sorted(i for i in lacking if isinstance(i, int)))
            for name in lacking:
                text = (
                    name if isinstance(name, str) else "" if name is None else texts.get(name, f"name {name}")
                )
                known[name] = self._learn(self._said(text))
            self._weigh()
        return np.array([known[name] for name in raw], dtype=np.int64).reshape(-1, 3)

    def _learn(self, told: Told) -> tuple[int, int, int]:
        builder = self._builder
        code = builder.text(told.name)
        return told.cls, code, -1 if told.tensors is None else builder.tensor_sets[told.tensors]

    def _weigh(self) -> None:
        if self._builder.texts.held > _MAX_TEXTS:
            raise TraceError(
                f"{self._db.path} has more than {_MAX_TEXTS >> 20} million characters of different names: expected a few"
            )
