"""Names of communication kernels and operators, from a TOML table: the built-in one, and one that a user gives."""

from __future__ import annotations

import re
import sys
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetrace.errors import MoetraceError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST = 1 << 20  # bytes of a table
_KEYS = {"kind", "pattern", "library"}


@dataclass(frozen=True, slots=True)
class Names:
    """(pattern, kind) of kernels and of operators, in the order of matching."""

    kernels: tuple[tuple[str, str], ...] = ()
    operators: tuple[tuple[str, str], ...] = ()

    def kind(self, kernel: str, operator: str) -> str | None:
        """The kind of the first pattern that is found in the kernel's name, else in the operator's; None if none is."""
        for name, rows in ((kernel, self.kernels), (operator, self.operators)):
            found = next((kind for pattern, kind in rows if name and re.search(pattern, name)), None)
            if found is not None:
                return found
        return None


def read_names(path: Path, kinds: AbstractSet[str]) -> Names:
    """The table of a file with ``[[kernel]]`` and ``[[operator]]`` entries: ``pattern``, ``kind`` and, for readers, ``library``.

    Raises MoetraceError naming the entry for what is no such table, a kind that is not among `kinds`, or no regular expression.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise MoetraceError(f"{path} is not a table of names: it has more than {_LARGEST >> 20} MiB")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise MoetraceError(f"{path} cannot be read ({err.strerror or type(err).__name__})") from err
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as err:
        raise MoetraceError(f"{path} is not TOML: {' '.join(str(err).split())[:120]}") from err
    strange = sorted(set(raw) - {"kernel", "operator"})
    if strange or not raw:
        said = f"it has {strange[0]!r}" if strange else "it is empty"
        raise MoetraceError(f"{path}: expected [[kernel]] and [[operator]] entries, {said}")
    return Names(
        *(
            tuple(
                _entry(path, f"{key} {i}", row, kinds)
                for i, row in enumerate(_rows(path, key, raw.get(key, [])), 1)
            )
            for key in ("kernel", "operator")
        )
    )


def _rows(path: Path, key: str, rows: Any) -> list[Any]:
    if not isinstance(rows, list):
        raise MoetraceError(f"{path}: {key} is not a list of entries: write [[{key}]]")
    return rows


def _entry(path: Path, where: str, row: Any, kinds: AbstractSet[str]) -> tuple[str, str]:
    if not isinstance(row, dict) or not {"kind", "pattern"} <= set(row) <= _KEYS:
        raise MoetraceError(f"{path}: {where}: expected pattern and kind (and library, if you like)")
    pattern, kind = row["pattern"], row["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise MoetraceError(f"{path}: {where}: {unknown('kind of communication', str(kind), kinds)}")
    try:
        empty = not isinstance(pattern, str) or re.search(pattern, "") is not None
    except re.error as err:
        raise MoetraceError(
            f"{path}: {where}: pattern {pattern!r} is not a regular expression ({err})"
        ) from err
    if empty:
        raise MoetraceError(f"{path}: {where}: pattern {pattern!r} would match every name")
    return str(pattern), kind
