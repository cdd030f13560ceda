"""The JSON of Kineto events: decoded by type with msgspec, where it is as profilers write it, else as whatever it holds.

Also what is done before decoding: calls of Python, which most of a trace's events may be, are left out undecoded.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from moetrace.formats.events import IntArray
from moetrace.formats.kineto_values import INT64

_EXACT = float(1 << 51)  # us that a float holds, in ns still far within 64 bits
LONG = 8_796_000_000_000  # us from which (2^43) a float does not hold every ns: three months, or an absolute time
DECIMALS = re.compile(rb'"ts"[ \t\r\n]*:[ \t\r\n]*-?\d{13,}\.\d*[1-9]')

ABSENT = -INT64  # outside of what _Int takes, so no event can say it
_Int = Annotated[int, msgspec.Meta(ge=1 - INT64, le=INT64 - 1)]
NO_TEXT = msgspec.Raw(b"")


class Args(msgspec.Struct, gc=False, frozen=True):
    external: _Int = msgspec.field(default=ABSENT, name="External id")
    external_2021: _Int = msgspec.field(default=-1, name="external id")
    correlation: _Int = -1
    device: _Int = 0
    stream: _Int = ABSENT
    bytes: _Int | str = 0
    kernel: str | None = None
    node: _Int = msgspec.field(default=0, name="graph node id")
    marked: str | None = msgspec.field(default=None, name="str")
    annotation: str | None = None
    dims: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Input Dims")
    dims_2021: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Input dims")
    types: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Input type")
    collective: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Collective name")
    dtype: msgspec.Raw = NO_TEXT
    elements_in: msgspec.Raw = msgspec.field(default=NO_TEXT, name="In msg nelems")
    elements_out: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Out msg nelems")
    group: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Group size")
    ranks: msgspec.Raw = msgspec.field(default=NO_TEXT, name="Process Group Ranks")


NO_ARGS = Args()


class Event(msgspec.Struct, gc=False):
    ph: str | None = None
    cat: str | None = None
    name: str | None = None
    ts: float | None = None
    dur: float | None = 0.0
    pid: int | str | None = None
    tid: int | str | None = None
    args: Args | None = NO_ARGS


class _Stamp(msgspec.Struct, gc=False):
    ts: msgspec.Raw = NO_TEXT


EVENTS = msgspec.json.Decoder(list[Event])
STAMPS = msgspec.json.Decoder(list[_Stamp])


class OddError(ValueError):
    """A chunk that is not as profilers write it, for reading event by event."""


# How torch's event of a Python call begins, up to its name: a text in JSON cannot hold it, for its quotes would be escaped.
_SPACE = rb"[ \t\r\n]*"
_WORDS = (
    rb'"ph"',
    rb":",
    rb'"X"',
    rb",",
    rb'"cat"',
    rb":",
    rb'"python_function"',
    rb",",
    rb'"name"',
    rb":",
    b'"',
)
_BEGINS = re.compile(rb"\{(" + b"".join(_SPACE + word for word in _WORDS) + rb")")
_MODULE_CALL = b"nn.Module"


def without_calls(chunk: bytes, between: bytes) -> tuple[bytes, int]:
    """(the chunk without its events of calls of Python that are no module's, their number), by how each event begins.

    The first event and the last always stay, so that what is left is a list if the chunk was one.
    """
    begins = _BEGINS.search(chunk)
    if begins is None:
        return chunk, 0
    first, *events, last = chunk.split(between) if between in chunk else (chunk, b"")
    call = begins[1]
    module = call + _MODULE_CALL
    kept = [event for event in events if not event.startswith(call) or event.startswith(module)]
    if len(kept) == len(events):
        return chunk, 0
    return between.join([first, *kept, last]), len(events) - len(kept)


def loads(text: bytes) -> Any:
    """JSON as profilers write it, Infinity, control characters and bad UTF-8 included. Raises ValueError, RecursionError.

    Where times are longer than a float holds, long numbers with decimals come as Decimal.
    """
    if DECIMALS.search(text):
        return json.loads(text.decode("utf-8", "replace"), strict=False, parse_float=_exact)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text.decode("utf-8", "replace"), strict=False)


def _exact(text: str) -> float | Decimal:
    value = float(text)
    return Decimal(text) if LONG <= abs(value) < INT64 else value


def times_ns(values: list[float | None]) -> IntArray:
    """Microseconds as whole nanoseconds. Split before scaling: exact for floats below 2^43 us. Raises OddError."""
    us = np.array(values, dtype=np.float64)  # None becomes NaN
    if not (np.abs(us) < _EXACT).all():
        raise OddError
    low = np.floor(us)
    return low.astype(np.int64) * 1000 + np.rint((us - low) * 1000).astype(np.int64)


def digits_ns(text: bytes) -> int:
    """Microseconds as whole nanoseconds, read digit by digit: exact for any."""
    if b"e" in text or b"E" in text:
        raise OddError
    return int((Decimal(text.decode()) * 1000).to_integral_value())
