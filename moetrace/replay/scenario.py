"""Scenario: the knobs that are turned, as a value. `scenarios` makes them from ``--set`` and the machines.

Parallelism is never in a machine's name: tp and ep come from knobs and must fill the machine's GPUs. pp and dp are not
offered yet, so tp alone must equal them. Light: no numpy here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from moetrace.errors import ScenarioError
from moetrace.replay.knobs import KNOBS, knob_name

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.run import Run

MAX_SCENARIOS = 512


@dataclass(frozen=True, slots=True)
class Setting:
    """One knob at one value; `text` is how the user wrote the value."""

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

    @classmethod
    def of(cls, *sets: str) -> Scenario:
        """The one scenario of texts such as ``"n_a=4"``. Raises ScenarioError if they say several, or none that is known."""
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

    def texts(self) -> dict[str, str]:
        """Knob name to value as text."""
        return {s.name: s.text for s in self.settings}


def read_sets(sets: Sequence[str]) -> dict[str, tuple[Setting, ...]]:
    """The values of each knob named in ``NAME=VALUE[,VALUE...]`` texts, knobs in the order of the knob table.

    Raises ScenarioError: no such knob, no value, a value that cannot be read, or a knob or value given twice.
    """
    found: dict[str, tuple[Setting, ...]] = {}
    given: dict[str, str] = {}
    for text in sets:
        raw, equals, values = text.partition("=")
        if not equals:
            raise ScenarioError(f"--set {text!r}: expected NAME=VALUE, such as n_a=4")
        name = knob_name(raw)
        if name in given:
            raise ScenarioError(
                f"knob {name} is given twice ({given[name]!r} and {text!r}): name it once, with a comma between its values"
            )
        given[name] = text
        found[name] = _values(name, values)
    return {name: found[name] for name in KNOBS if name in found}


def _values(name: str, text: str) -> tuple[Setting, ...]:
    knob = KNOBS[name]
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ScenarioError(f"{name}={text}: a value is missing (expected {knob.grammar})")
    settings = tuple(Setting(name, part, knob.parse(name, part)) for part in parts)
    if len({s.value for s in settings}) < len(settings):
        raise ScenarioError(f"{name}={text}: a value is given twice")
    return settings


def scenarios(
    sets: Sequence[str], machines: Sequence[Hardware | str], run: Run
) -> list[tuple[Hardware, Scenario]]:
    """Every (machine, scenario) that ``--set`` texts ask for: for each machine the product of the knobs' values.

    A tp or ep value goes to the machines that it fills; a machine of one GPU is shown without it. A wafer gets both
    expert placements where n_a is set and placement is not. Raises ScenarioError with one line: see `read_sets`, and a
    tp that no machine has the GPUs for, a node left without parallelism, or a placement without a wafer.
    """
    from moetrace.hardware import load_hardware

    hardware = [load_hardware(machine) for machine in machines]
    if not hardware:
        raise ScenarioError("no machine was named: expected at least one --hw NAME")
    chosen = read_sets(sets)
    if "placement" in chosen and not any(hw.device_class == "wafer" for hw in hardware):
        raise ScenarioError(
            "placement says where a wafer keeps its experts, and no wafer was named: add --hw cs3"
        )
    pairs = [(hw, scenario) for hw in hardware for scenario in _of_machine(chosen, hw, run)]
    if len(pairs) > MAX_SCENARIOS:
        raise ScenarioError(f"{len(pairs)} scenarios: at most {MAX_SCENARIOS} at once")
    _all_used(chosen, pairs, hardware, run)
    return pairs


def gpus_of(hw: Hardware, run: Run) -> int:
    """The GPUs that a replay on `hw` uses: those of the profile, or of the recording where it ran on this very machine."""
    return max(hw.gpus, run.meta.gpus) if run.meta.hardware == hw.name else hw.gpus


def _of_machine(chosen: Mapping[str, tuple[Setting, ...]], hw: Hardware, run: Run) -> list[Scenario]:
    own = {name: values for name, values in chosen.items() if name not in ("tp", "ep", "placement")}
    notes: list[str] = []
    parallel = _parallelism(chosen, hw, run, notes)
    if hw.device_class == "wafer":
        if "placement" in chosen:
            own["placement"] = chosen["placement"]
        elif "n_a" in chosen:
            own["placement"] = _values("placement", "spread,own")
            notes.append(
                "experts' placement on the wafer is not published: both are shown, and they bound the answer"
            )
    plain = list(product(*own.values()))
    return [
        Scenario(_ordered((*combination, *settings)), tuple(notes))
        for settings in parallel
        for combination in plain
    ]


def _ordered(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    order = {name: i for i, name in enumerate(KNOBS)}
    return tuple(sorted(settings, key=lambda s: order[s.name]))


def _parallelism(
    chosen: Mapping[str, tuple[Setting, ...]], hw: Hardware, run: Run, notes: list[str]
) -> list[tuple[Setting, ...]]:
    """The (tp, ep) settings that fill this machine; one empty tuple where it needs none."""
    gpus = gpus_of(hw, run)
    asked = {name: chosen[name] for name in ("tp", "ep") if name in chosen}
    if gpus == 1:
        if any(s.value != 1 for values in asked.values() for s in values):
            notes.append(f"{hw.name} is one device: tp and ep do not apply to it")
        return [()]
    if not asked:
        if run.meta.tp * 1 == gpus or run.meta.hardware == hw.name:
            return [()]
        raise ScenarioError(f"{hw.name} has {gpus} GPUs: add --set tp={gpus} or --set ep={gpus}")
    found: list[tuple[Setting, ...]] = []
    odd: list[int] = []
    for combination in product(*asked.values()):
        by_name = {s.name: s for s in combination}
        tp = by_name["tp"].value if "tp" in by_name else gpus
        ep = by_name["ep"].value if "ep" in by_name else 1
        if tp == gpus and tp % ep == 0:
            found.append(tuple(combination))
        elif tp == gpus:
            odd.append(ep)
    if not found and odd:
        raise ScenarioError(
            f"ep={','.join(map(str, odd))} does not divide tp={gpus}, the GPUs of {hw.name}: experts are shared out over the "
            "tensor-parallel GPUs"
        )
    if not found:
        given = " ".join(f"{n}={','.join(s.text for s in v)}" for n, v in asked.items())
        raise ScenarioError(
            f"{hw.name} has {gpus} GPUs, which {given} does not fill: expected tp={gpus} or ep={gpus}"
        )
    return found


def _all_used(
    chosen: Mapping[str, tuple[Setting, ...]],
    pairs: Sequence[tuple[Hardware, Scenario]],
    hardware: Sequence[Hardware],
    run: Run,
) -> None:
    """Raises ScenarioError for a tp or ep value above 1 that no machine takes."""
    for name in ("tp", "ep"):
        for setting in chosen.get(name, ()):
            if setting.value == 1 or any(setting in scenario.settings for _, scenario in pairs):
                continue
            have = ", ".join(f"{hw.name} has {gpus_of(hw, run)}" for hw in hardware)
            rule = (
                "tp must equal the number of GPUs"
                if name == "tp"
                else "ep must divide tp, the number of GPUs"
            )
            raise ScenarioError(f"{setting} matches no machine: {rule} ({have})")


__all__ = ["Scenario", "Setting", "gpus_of", "read_sets", "scenarios"]
