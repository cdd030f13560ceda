"""What a knob is, and the table of all knobs. Light: no numpy here, for the command line's help lists the knobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from moetrace.errors import ScenarioError, unknown
from moetrace.replay.grammar import Parse

if TYPE_CHECKING:
    from moetrace.replay.draft import Draft

Apply: TypeAlias = "Callable[[Draft, Any], Draft]"


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob: its name, what it sets, how its value is written and read, and the edit itself.

    `late` knobs apply after the routing is settled, for they ask how many distinct experts there are. `not_recorded` says
    why a recording cannot be replayed with it; empty for one that it can be.
    """

    name: str
    meaning: str
    grammar: str
    parse: Parse
    apply: Apply
    late: bool = False
    not_recorded: str = ""


KNOBS: dict[str, Knob] = {}


def knob(
    name: str, meaning: str, how: str, parse: Parse, *, late: bool = False, not_recorded: str = ""
) -> Callable[[Apply], Apply]:
    """Registers a function as a knob."""

    def register(apply: Apply) -> Apply:
        KNOBS[name] = Knob(name, meaning, how, parse, apply, late, not_recorded)
        return apply

    return register


def knob_table() -> tuple[tuple[str, str, str], ...]:
    """(name, meaning, grammar of one value) of every knob, for help texts and docs."""
    return tuple((k.name, k.meaning, k.grammar) for k in KNOBS.values())


def knob_name(given: str) -> str:
    """The knob that a name means; ``n-a`` is ``n_a``. Raises ScenarioError listing the knobs."""
    name = given.strip().replace("-", "_")
    if name not in KNOBS:
        raise ScenarioError(unknown("knob", given, KNOBS))
    return name
