"""Printing of quantities: SI inside, human text at the border."""

from __future__ import annotations

import math


def _scaled(value: float, unit: str, steps: tuple[tuple[float, str], ...], digits: int) -> str:
    if not math.isfinite(value):
        return "-"
    scale, prefix = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    text = f"{value / scale:,.{digits}f}"
    return f"{text} {prefix}{unit}".rstrip() if text.strip("-0.") else "0"


_TIME = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
_SIZE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}  # units that a duration may be written in


def seconds(value: float, digits: int = 1) -> str:
    """``"1.5 ms"`` for 0.0015."""
    return "0" if value == 0 else _scaled(value, "s", _TIME, digits)


def count(value: float, unit: str = "", digits: int = 1) -> str:
    """``"3.4 TB/s"`` for 3.35e12 and unit ``"B/s"`` (decimal prefixes)."""
    return "0" if value == 0 else _scaled(value, unit, _SIZE, digits)


def percent(share: float, digits: int = 1) -> str:
    """``"65.6 %"`` for 0.656; a dash for a share that is not known."""
    return "-" if not math.isfinite(share) else f"{100 * share:.{digits}f} %"
