"""Scenario: the knobs that are turned, as a value, and the machine and parallelism that it makes. Light: no numpy here.

`sets` makes scenarios from ``--set`` and the machines. It knows the knobs, which know what a draft is, which holds a scenario:
so it is imported only when text is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moetrace.errors import ScenarioError
from moetrace.given import misfit
from moetrace.replay.parallel import NAMES, Parallel

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.run import Run


@dataclass(frozen=True, slots=True)
class Setting:
    """One knob at one value; `text` is how the user wrote the value, an engine by its key."""

    name: str
    text: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name}={self.text}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """The knobs turned, in the order of the knob table, and what had to be said when they were chosen."""

    settings: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.settings, tuple):
            raise ScenarioError(
                misfit(self.settings, "tuple of settings", "Scenario.of('n_a=4') reads them from text")
            )

    @classmethod
    def of(cls, *sets: str) -> Scenario:
        """The one scenario of texts such as ``"n_a=4"``. Raises ScenarioError if they say several, or none that is known."""
        from moetrace.replay.sets import read_sets

        chosen = read_sets(sets)
        several = [values for values in chosen.values() if len(values) > 1]
        if several:
            raise ScenarioError(f"{several[0][0].name} has {len(several[0])} values: expected one scenario")
        return cls(tuple(values[0] for values in chosen.values()))

    @property
    def label(self) -> str:
        """``"n_a=4 tp=8"``; ``"as recorded"`` if no knob is turned."""
        return " ".join(str(s) for s in self.settings) or "as recorded"

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a knob, or `default` if it is not turned."""
        return next((s.value for s in self.settings if s.name == name), default)

    def adding(self, name: str, text: str) -> Scenario:
        """This scenario with one more knob turned."""
        from moetrace.replay.sets import ordered, values_of

        return replace(self, settings=ordered((*self.settings, *values_of(name, text))))

    def texts(self) -> dict[str, str]:
        """Knob name to value as text."""
        return {s.name: s.text for s in self.settings}


def gpus_of(hw: Hardware, run: Run) -> int:
    """The GPUs that a replay on `hw` uses: those of the profile, or of the recording where it ran on this very machine."""
    return max(hw.gpus, run.meta.gpus) if run.meta.hardware == hw.name else hw.gpus


def parallel_of(scenario: Scenario, gpus: int, run: Run) -> Parallel:
    """How a replay of `run` shares out `gpus` devices."""
    meta = run.meta
    chosen = {name: int(scenario.get(name)) for name in NAMES if scenario.get(name) is not None}
    return Parallel.of(chosen, gpus, Parallel(meta.tp, meta.ep, meta.pp, meta.dp))


def machine_of(hw: Hardware, scenario: Scenario) -> Hardware:
    """The machine with as many devices as the scenario's `gpus` or `nodes` say. Raises ScenarioError or ProfileError."""
    from moetrace.hardware import node_of

    given: object = scenario  # whatever a caller took for one
    if isinstance(given, str):
        raise ScenarioError(f"{given!r} is text and no Scenario: Scenario.of({given!r}) reads it")
    if not isinstance(given, Scenario):
        raise ScenarioError(
            misfit(given, "Scenario", "Scenario.of('n_a=4') makes one, Scenario() changes nothing")
        )
    count, nodes = scenario.get("gpus"), scenario.get("nodes")
    if count is None and nodes is None:
        return hw
    if count is not None and nodes is not None:
        raise ScenarioError(f"gpus={count} and nodes={nodes}: a machine is sized by one of them")
    total = int(count if count is not None else nodes * hw.domain_gpus)
    return hw if hw.gpus == total else node_of(hw, total)


__all__ = ["Scenario", "Setting", "gpus_of", "machine_of", "parallel_of"]
