"""How the value of a knob is written. Light: the command line's help reads it, so nothing heavy is imported here.

``,`` between scenarios, ``:`` between layers of one value, ``6x13`` for thirteen layers of 6, ``8/6/6`` for equal parts of
the depth, ``native`` for unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moetrace.engines import engine_among
from moetrace.errors import ScenarioError, unknown
from moetrace.units import SECONDS

NATIVE = "native"
MAX_WHOLE = 10**9
MAX_LAYERS = 4096
_LONGEST_S = 60.0
ENGINES = ("any", "vllm", "sglang", "trtllm")

Parse = Callable[[str, str], Any]


@dataclass(frozen=True, slots=True)
class Segments:
    """One value for each of several equal parts of the depth, first layers first: ``8/6/6``."""

    values: tuple[int, ...]

    def spread(self, layers: int, asked: str) -> tuple[int, ...]:
        """The value of each of `layers` layers. Raises ScenarioError on fewer layers than parts."""
        parts = len(self.values)
        if layers < parts:
            raise ScenarioError(f"{asked}: {parts} parts of a depth of {layers} MoE layers")
        return tuple(self.values[i * parts // layers] for i in range(layers))

    def __str__(self) -> str:
        return "/".join(map(str, self.values))


@dataclass(frozen=True, slots=True)
class Kept:
    """How many experts are kept, and whether those that were chosen most."""

    count: int
    popular: bool = False

    def __str__(self) -> str:
        return f"{self.count}{'@popular' * self.popular}"


def kept_experts(name: str, text: str) -> Kept:
    """A count, with ``@popular`` or ``@random`` (the default) behind it."""
    count, at, how = text.partition("@")
    if at and how not in ("random", "popular"):
        raise ScenarioError(unknown(f"way to keep experts in {name}", how, ("random", "popular")))
    return Kept(one_whole(name, count), how == "popular")


def percent(name: str, text: str) -> float:
    """A share in per cent, 0 to 99."""
    return number(name, text.removesuffix("%"), 0.0, 99.0)


def number(name: str, text: str, low: float, high: float) -> float:
    """A number of that range. Raises ScenarioError."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ScenarioError(f"{name}={text}: expected a number from {low:g} to {high:g}")
    return value


def duration(name: str, text: str) -> float:
    """Seconds, written with their unit: ``5ms``, ``200us``, ``0.01s``. Raises ScenarioError."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)(s|ms|us)", text)
    if not found or float(found[1]) * SECONDS[found[2]] > _LONGEST_S:
        raise ScenarioError(
            f"{name}={text}: expected a time of at most {_LONGEST_S:g} s with its unit, such as 5ms or 200us"
        )
    return float(found[1]) * SECONDS[found[2]]


def ranged(low: float, high: float) -> Parse:
    """A parser of numbers from `low` to `high`."""
    return lambda name, text: number(name, text, low, high)


def whole(name: str, text: str) -> int:
    """The whole number, 1 or more, of one knob's value. Raises ScenarioError."""
    if text.isascii() and text.isdigit() and len(text) > 1 and text.startswith("0"):
        raise ScenarioError(
            f"{name}={text}: a number does not begin with 0; a comma stands between scenarios, not between thousands"
        )
    if not (text.isascii() and text.isdigit()) or not 1 <= len(text) <= 12 or not 1 <= int(text) <= MAX_WHOLE:
        raise ScenarioError(f"{name}={text}: expected a whole number from 1 to {MAX_WHOLE}")
    return int(text)


def one_whole(name: str, text: str) -> int:
    """`whole`, with a clearer word for a value by layer, which this knob does not take."""
    if ":" in text or ("x" in text and text.replace("x", "").isdigit()):
        raise ScenarioError(f"{name}={text}: {name} has one value for the run, not one per layer")
    return whole(name, text)


def whole_or_native(name: str, text: str) -> int | str:
    """A whole number, or ``native``."""
    return NATIVE if text == NATIVE else one_whole(name, text)


def by_layer(name: str, text: str) -> int | str | tuple[int, ...] | Segments:
    """A whole number, ``native``, one number per MoE layer (``6:6:4``, run lengths ``6x13:4x13``) or per part (``8/6/6``)."""
    if text == NATIVE:
        return NATIVE
    if "/" in text:
        return Segments(tuple(whole(name, part) for part in text.split("/")))
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


def model_name(name: str, text: str) -> str:
    """The name or path of a model, as text."""
    if not text.strip():
        raise ScenarioError(f"{name}: expected a model's name")
    return text


def engine_name(name: str, text: str) -> str:
    """A serving engine, with its version behind an ``@`` or without."""
    return engine_among(ENGINES, name, text)


def routing_name(name: str, text: str) -> str:
    """A routing: ``uniform``, ``balanced``, ``power_law:ALPHA``, ``skewed[:SIGMA]``, ``popularity``, ``recorded``."""
    kind, colon, value = text.partition(":")
    one_of("uniform", "balanced", "power_law", "skewed", "popularity", "recorded")(name, kind)
    if kind == "power_law" or (kind == "skewed" and colon):
        number(name, value or "nothing", 0.0, 10.0)
        return f"{kind}:{float(value):g}"
    if colon:
        raise ScenarioError(f"{name}={text}: {kind} has no number behind it")
    return text


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
