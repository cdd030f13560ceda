"""Fields of a config, read with their kind checked: what a Hugging Face config.json may hold is not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moetrace.errors import ModelError

MAX_LAYERS = 4096
_MAX_VALUE = 1 << 31


def is_whole(value: object, low: int = 0) -> bool:
    """Whether a value is an int (no bool) of at least `low` that a model could have."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < _MAX_VALUE


@dataclass(frozen=True, slots=True)
class Config:
    """A config with the name that errors give its origin."""

    data: Mapping[str, Any]
    where: str

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def find(self, names: tuple[str, ...]) -> int | None:
        """The first of these fields that is set, as a whole number; None if none is."""
        name = next((name for name in names if self.has(name)), None)
        if name is None:
            return None
        value = self.data[name]
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]  # said of each layer, the same for all
        if not is_whole(value):
            raise ModelError(f"{self.where}: {name} is {value!r}, expected a whole number")
        return int(value)

    def number(self, *names: str) -> int:
        value = self.find(names)
        if value is None:
            also = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise ModelError(f"{self.where}: lacks the field {names[0]!r}{also}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.data.get(name, default))

    def items(self, name: str, of: type = int) -> list[Any]:
        """A field that lists whole numbers (or text); empty where it is not set."""
        value = self.data.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
            raise ModelError(f"{self.where}: {name} is {value!r}, expected a list of {of.__name__}")
        return value
