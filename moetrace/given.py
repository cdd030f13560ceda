"""What callers of the Python functions give: one in the place of several, and values of other types in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moetrace.errors import MoetraceError, unknown


def misfit(given: object, wanted: str, how: str) -> str:
    """One line for a value of another type: ``a DataFrame is no Run: moetrace.load reads one``."""
    if given is None:
        said = "None"
    elif isinstance(given, type):
        said = f"the class {given.__name__}"
    else:
        name = type(given).__name__
        said = f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
    return f"{said} is no {wanted}: {how}"


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
