"""Scenario: the knobs that are turned, as a value. `scenarios` makes them from ``--set`` and the machines.

Parallelism is never in a machine's name: tp, ep, pp and dp come from knobs and must fill the machine's GPUs. Light: no numpy
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from moetrace.errors import ScenarioError
from moetrace.replay.knobs import KNOBS, knob_name
from moetrace.replay.parallel import NAMES, Parallel

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.run import Run

MAX_SCENARIOS = 512
SIZES = ("gpus", "nodes")  # knobs that make another machine, whose name says them


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

    def adding(self, name: str, text: str) -> Scenario:
        """This scenario with one more knob turned."""
        return replace(self, settings=_ordered((*self.settings, *_values(name, text))))

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
    sets: Sequence[str], machines: Sequence[Hardware | str], run: Run, most: int = MAX_SCENARIOS
) -> list[tuple[Hardware, Scenario]]:
    """Every (machine, scenario) that ``--set`` texts ask for: for each machine the product of the knobs' values.

    Parallelism goes to the machines that it fills; a machine of one GPU is shown without it. A wafer gets both
    expert placements where n_a is set and placement is not. Raises ScenarioError with one line: see `read_sets`, more than
    `most` scenarios, a
    tp that no machine has the GPUs for, a node left without parallelism, a placement without a wafer, gpus without a GPU.
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
    sized = next((setting for name in SIZES for setting in chosen.get(name, ())), None)
    if sized and not any(hw.device_class == "gpu" for hw in hardware):
        raise ScenarioError(
            f"{sized} says how many GPUs a machine has, and no GPU was named: a wafer machine takes as many wafers as the "
            "model needs, a CPU is one device"
        )
    found = [pair for hw in hardware for pair in _of_machine(chosen, hw, run)]
    pairs = list({(hw.name, scenario): (hw, scenario) for hw, scenario in found}.values())
    if len(pairs) > most:
        raise ScenarioError(f"{len(pairs)} scenarios: at most {most} at once")
    _all_used(chosen, pairs, hardware, run)
    return pairs


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
    count, nodes = scenario.get("gpus"), scenario.get("nodes")
    if count is None and nodes is None:
        return hw
    if count is not None and nodes is not None:
        raise ScenarioError(f"gpus={count} and nodes={nodes}: a machine is sized by one of them")
    total = int(count if count is not None else nodes * hw.domain_gpus)
    return hw if hw.gpus == total else node_of(hw, total)


_OF_GPUS = ("graph", "overlap", "engine")
_OWN = frozenset({*NAMES, *SIZES, "placement", *_OF_GPUS})  # those that not every machine takes


def _of_machine(
    chosen: Mapping[str, tuple[Setting, ...]], hw: Hardware, run: Run
) -> list[tuple[Hardware, Scenario]]:
    """The scenarios of one named machine, each with the machine of as many devices as it asks for."""
    own = {name: values for name, values in chosen.items() if name not in _OWN}
    notes: list[str] = []
    if hw.device_class == "wafer":
        if "placement" in chosen:
            own["placement"] = chosen["placement"]
        elif "n_a" in chosen:
            own["placement"] = _values("placement", "spread,own")
            notes.append(
                "experts' placement on the wafer is not published: both are shown, and they bound the answer"
            )
    elif hw.device_class == "gpu":
        own |= {name: chosen[name] for name in _OF_GPUS if name in chosen}
    if hw.device_class != "gpu" and (left := [name for name in (*_OF_GPUS, *SIZES) if name in chosen]):
        notes.append(f"{hw.name} is no GPU: {' and '.join(left)} do{'es' * (len(left) == 1)} not apply to it")
    sizes = [()] if hw.device_class != "gpu" else list(product(*(chosen[n] for n in SIZES if n in chosen)))
    found: dict[tuple[str, Scenario], tuple[Hardware, Scenario]] = {}
    for size in sizes:
        machine = machine_of(hw, Scenario(tuple(size)))
        told = list(notes)
        for settings in _parallelism(chosen, machine, run, told):
            for combination in product(*own.values()):
                alone = [s for s in combination if s.name != "overlap" or machine.gpus > 1]
                scenario = Scenario(_ordered((*alone, *settings)), tuple(told))
                found[machine.name, scenario] = machine, scenario
    return list(found.values())


def _ordered(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    order = {name: i for i, name in enumerate(KNOBS)}
    return tuple(sorted(settings, key=lambda s: order[s.name]))


def _parallelism(
    chosen: Mapping[str, tuple[Setting, ...]], hw: Hardware, run: Run, notes: list[str]
) -> list[tuple[Setting, ...]]:
    """The settings of tp, ep, pp and dp that fill this machine; one empty tuple where it needs none."""
    gpus, meta = gpus_of(hw, run), run.meta
    asked = {name: chosen[name] for name in NAMES if name in chosen}
    if gpus == 1:
        if any(s.value != 1 for values in asked.values() for s in values):
            notes.append(f"{hw.name} is one device: {' and '.join(NAMES)} do not apply to it")
        return [()]
    if not asked:
        if gpus in (meta.gpus, meta.tp * meta.pp * meta.dp) or meta.hardware == hw.name:
            return [()]
        raise ScenarioError(f"{hw.name} has {gpus} GPUs: add --set tp={gpus} or --set ep={gpus}")
    found: list[tuple[Setting, ...]] = []
    why: dict[str, None] = {}
    for combination in product(*asked.values()):
        problem = parallel_of(Scenario(combination), gpus, run).problem(gpus, hw.name)
        if problem is None:
            found.append(tuple(combination))
        else:
            why[problem] = None
    if not found:
        raise ScenarioError(next(reversed(why)))
    return found


def _all_used(
    chosen: Mapping[str, tuple[Setting, ...]],
    pairs: Sequence[tuple[Hardware, Scenario]],
    hardware: Sequence[Hardware],
    run: Run,
) -> None:
    """Raises ScenarioError for a parallelism above 1, a graph or an overlap that no machine takes."""
    for name in (*NAMES, *_OF_GPUS):
        for setting in chosen.get(name, ()):
            if setting.value in (1, "none", "any") or any(
                setting in scenario.settings for _, scenario in pairs
            ):
                continue
            have = ", ".join(sorted({f"{hw.name} has {gpus_of(hw, run)}" for hw, _ in pairs}))
            rule = (
                "tp x pp x dp must equal the number of GPUs, and ep divide tp x dp"
                if name in NAMES
                else "it is for GPUs, overlap for several of them"
            )
            raise ScenarioError(f"{setting} matches no machine: {rule} ({have})")


__all__ = ["Scenario", "Setting", "gpus_of", "machine_of", "parallel_of", "read_sets", "scenarios"]
