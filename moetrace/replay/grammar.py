"""How the value of a knob is written. Light: the command line's help reads it, so nothing heavy is imported here.

``,`` between scenarios, ``:`` between layers of one value, ``6x13`` for thirteen layers of 6, ``native`` for unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moetrace.errors import ScenarioError, unknown

NATIVE = "native"
MAX_WHOLE = 10**9
MAX_LAYERS = 4096

Parse = Callable[[str, str], Any]


def whole(name: str, text: str) -> int:
    """The whole number, 1 or more, of one knob's value. Raises ScenarioError."""
    if not (text.isascii() and text.isdigit()) or not 1 <= len(text) <= 12 or not 1 <= int(text) <= MAX_WHOLE:
        raise ScenarioError(f"{name}={text}: expected a whole number from 1 to {MAX_WHOLE}")
    return int(text)


def one_whole(name: str, text: str) -> int:
    """`whole`, with a clearer word for a value by layer, which this knob does not take."""
    if ":" in text or "x" in text:
        raise ScenarioError(f"{name}={text}: {name} has one value for the run, not one per layer")
    return whole(name, text)


def whole_or_native(name: str, text: str) -> int | str:
    """A whole number, or ``native``."""
    return NATIVE if text == NATIVE else one_whole(name, text)


def by_layer(name: str, text: str) -> int | str | tuple[int, ...]:
    """A whole number, ``native``, or one number per MoE layer: ``6:6:4`` or run lengths ``6x13:4x13``."""
    if text == NATIVE:
        return NATIVE
    if ":" not in text and "x" not in text:
        return whole(name, text)
    values: list[int] = []
    for part in text.split(":"):
        value, times, count = part.partition("x")
        n = whole(name, count) if times else 1
        if len(values) + n > MAX_LAYERS:
            raise ScenarioError(f"{name}={text}: more than {MAX_LAYERS} layers")
        values.extend([whole(name, value)] * n)
    return tuple(values)


def one_of(*choices: str) -> Parse:
    """A parser that takes one of these words."""

    def parse(name: str, text: str) -> str:
        if text not in choices:
            raise ScenarioError(unknown(f"value of {name}", text, choices))
        return text

    return parse


def dtype_name(name: str, text: str) -> str:
    """An element type that weights may have."""
    from moetrace.op import dtypes  # here: it brings numpy

    weights = [d for d in dtypes() if d not in ("int32", "int64", "fp64")]
    return str(one_of(*weights)(name, text))
