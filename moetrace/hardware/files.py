"""Profile files: which there are, their TOML as tables, and a reader that takes checked values out of those."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path
from typing import Any

from moetrace.errors import ProfileError, plainly, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _folder() -> Path:
    """In a wheel the profiles lie within the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    inside = package / "hw_profiles"
    return inside if inside.is_dir() else package.parent / "hw_profiles"


def profile_names() -> tuple[str, ...]:
    """Names of all shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def read_profile(name_or_path: str) -> tuple[Path, dict[str, Any]]:
    """Path and unchecked tables of a shipped profile's name, or of a path to a ``.toml`` file. Raises ProfileError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in profile_names():
            raise ProfileError(
                unknown("hardware profile", name_or_path, profile_names())
                + " (h100-sxm-x8 is eight of one; or a path to a .toml file)"
            )
        path = _folder() / f"{name_or_path}.toml"
    try:
        return path, _tables(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"hardware profile {path}: cannot be read ({plainly(error)})") from error
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"hardware profile {path}: is not TOML: {error}") from error


@lru_cache(maxsize=64)
def _tables(text: str) -> dict[str, Any]:
    """The tables of a TOML text, which nobody changes: a report asks for the same machines dozens of times."""
    return tomllib.loads(text)


class Reader:
    """Takes values from one profile's tables, or raises a ProfileError that names file, key and expectation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, value: object, expected: str) -> ProfileError:
        return ProfileError(f"hardware profile {self.path}: {key} = {value!r}: expected {expected}")

    def keys(
        self, table: object, where: str, required: set[str], optional: AbstractSet[str] = frozenset()
    ) -> dict[str, Any]:
        """`table`, if it is one and has all required keys and no other than the optional ones."""
        if not isinstance(table, dict):
            raise self.error(where, table, "a table")
        for key in table:
            if key not in required | optional:
                text = unknown(f"key in [{where}]" if where else "key", key, required | optional)
                raise ProfileError(f"hardware profile {self.path}: {text}")
        for key in sorted(required - set(table)):
            raise ProfileError(
                f"hardware profile {self.path}: {f'[{where}]' if where else 'it'} lacks the key {key!r}"
            )
        return table

    def table(self, parent: Mapping[str, Any], where: str, key: str) -> dict[str, Any]:
        """A table of free keys, empty if absent."""
        value = parent.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"{where}.{key}", value, "a table")
        return value

    def number(
        self,
        table: Mapping[str, Any],
        where: str,
        key: str,
        low: float,
        high: float = 1e19,
        whole: bool = False,
    ) -> float:
        value = table[key]
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not good or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            raise self.error(f"{where}.{key}" if where else key, value, f"{what} from {low:g} to {high:g}")
        return float(value)

    def text(self, table: Mapping[str, Any], where: str, key: str) -> str:
        value = table[key]
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{where}.{key}" if where else key, value, "a text")
        return value
