"""Reading and printing of quantities: SI inside, human text at the borders."""

from __future__ import annotations

import math
import re

from moetrace.errors import MoetraceError

_PREFIX = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "µ": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
}
_QUANTITY = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([nuµmkKMGTP]?)(i?)([A-Za-z/]*)\s*")


def parse_quantity(text: str, unit: str) -> float:
    """SI value of a text such as ``"3.35TB/s"``, ``"80 GiB"`` or ``"5us"``; `unit` is what must stand behind the prefix.

    Raises MoetraceError if the text is not a number followed by an optional prefix and that unit.
    """
    found = _QUANTITY.fullmatch(text)
    if not found or found[4] not in ("", unit):
        raise MoetraceError(f"{text!r} is not a quantity in {unit} (expected something like '3.35T{unit}')")
    scale = 1024.0 ** (round(math.log10(_PREFIX[found[2]])) / 3) if found[3] else _PREFIX[found[2]]
    return float(found[1]) * scale


def _scaled(value: float, unit: str, steps: tuple[tuple[float, str], ...], digits: int) -> str:
    if not math.isfinite(value):
        return "-"
    for scale, prefix in steps:
        if abs(value) >= scale:
            return f"{value / scale:,.{digits}f} {prefix}{unit}"
    scale, prefix = steps[-1]
    return f"{value / scale:,.{digits}f} {prefix}{unit}"


_TIME = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
_SIZE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def seconds(value: float, digits: int = 1) -> str:
    """``"1.5 ms"`` for 0.0015."""
    return "0" if value == 0 else _scaled(value, "s", _TIME, digits)


def count(value: float, unit: str = "", digits: int = 1) -> str:
    """``"3.4 TB/s"`` for 3.35e12 and unit ``"B/s"`` (decimal prefixes)."""
    return "0" if value == 0 else _scaled(value, unit, _SIZE, digits)


def percent(share: float, digits: int = 1) -> str:
    """``"65.6 %"`` for 0.656; a dash for a share that is not known."""
    return "-" if not math.isfinite(share) else f"{100 * share:.{digits}f} %"
