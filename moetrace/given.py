"""What callers of the Python functions pass: one value where several are taken, and a clear error for any other type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moetrace.errors import MoetraceError, unknown


def misfit(given: object, wanted: str, how: str) -> str:
    """One line for a value of another type: ``a DataFrame is not a Run: moetrace.load reads one``."""
    if given is None:
        said = "None"
    elif isinstance(given, type):
        said = f"the class {given.__name__}"
    else:
        said = _a(type(given).__name__)
    return f"{said} is not {_a(wanted)}: {how}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def several(
    given: object, kinds: type | tuple[type, ...], wanted: str, how: str, error: type[MoetraceError]
) -> list[Any]:
    """What was given as a list, one alone as a list of one. Raises `error` where another type is given or among them."""
    if isinstance(given, kinds):
        return [given]
    if isinstance(given, Mapping | bytes) or hasattr(given, "columns") or not isinstance(given, Iterable):
        raise error(misfit(given, wanted, how))
    found = list(given)
    for one in found:
        if not isinstance(one, kinds):
            raise error(misfit(one, wanted, how))
    return found


def columns_of(
    given: Sequence[str] | str | None, known: Sequence[str], error: type[MoetraceError]
) -> list[str] | None:
    """The names of columns, one alone as a list of one; None for all. Raises `error` for one that is not known."""
    if given is None:
        return None
    names = several(given, str, "column", "expected its name", error)
    for name in names:
        if name not in known:
            raise error(unknown("column", name, known))
    return names or None


__all__ = ["columns_of", "misfit", "several"]
