"""What ``--set`` and the machines ask for: texts read by the knobs' grammar, and a scenario for each machine and combination.

Parallelism is never in a machine's name: tp, ep, pp and dp come from knobs and must fill the machine's GPUs. Light: no numpy
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from moetrace.errors import ScenarioError
from moetrace.given import several
from moetrace.replay.knobs import KNOBS, knob_name
from moetrace.replay.parallel import NAMES
from moetrace.replay.scenario import Scenario, Setting, gpus_of, machine_of, parallel_of

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.run import Run

MAX_SCENARIOS = 512
SIZES = ("gpus", "nodes")  # knobs that make another machine, whose name says them


def read_sets(sets: Sequence[str] | str) -> dict[str, tuple[Setting, ...]]:
    """The values of each knob named in ``NAME=VALUE[,VALUE...]`` texts, knobs in the order of the knob table.

    Raises ScenarioError: no such knob, no value, a value that cannot be read, or a knob or value given twice.
    """
    found: dict[str, tuple[Setting, ...]] = {}
    given: dict[str, str] = {}
    for text in several(
        sets, str, "setting", "expected text such as 'n_a=4', each for itself", ScenarioError
    ):
        raw, equals, values = text.partition("=")
        if not equals:
            raise ScenarioError(f"--set {text!r}: expected NAME=VALUE, such as n_a=4")
        name = knob_name(raw)
        if name in given:
            raise ScenarioError(
                f"knob {name} is given twice ({given[name]!r} and {text!r}): name it once, with a comma between its values"
            )
        given[name] = text
        found[name] = values_of(name, values)
    return {name: found[name] for name in KNOBS if name in found}


def values_of(name: str, text: str) -> tuple[Setting, ...]:
    """The values of one knob, with commas between. Raises ScenarioError as `read_sets`."""
    name = knob_name(name)
    knob = KNOBS[name]
    parts = [part.strip() for part in str(text).split(",")]
    if "" in parts:
        raise ScenarioError(f"{name}={text}: a value is missing (expected {knob.grammar})")
    values = [knob.parse(name, part) for part in parts]
    # An engine by its key, however it was written: what is saved of a run says which it was.
    settings = tuple(
        Setting(name, value if name == "engine" else part, value)
        for part, value in zip(parts, values, strict=True)
    )
    if len({s.value for s in settings}) < len(settings):
        raise ScenarioError(f"{name}={text}: a value is given twice")
    return settings


def scenarios(
    sets: Sequence[str] | str,
    machines: Sequence[Hardware | str] | Hardware | str,
    run: Run,
    most: int = MAX_SCENARIOS,
) -> list[tuple[Hardware, Scenario]]:
    """Every (machine, scenario) that ``--set`` texts ask for: for each machine the product of the knobs' values.

    Parallelism goes to the machines that it fills; a machine of one GPU is shown without it. A wafer gets both
    expert placements where n_a is set and placement is not. Raises ScenarioError with one line: see `read_sets`, more than
    `most` scenarios, a
    tp that no machine has the GPUs for, a node left without parallelism, a placement without a wafer, gpus without a GPU.
    """
    from moetrace.hardware import load_hardware, machines_of
    from moetrace.run import check_runs

    check_runs(run)
    hardware = [load_hardware(machine) for machine in machines_of(machines)]
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
            own["placement"] = values_of("placement", "spread,own")
            notes.append(
                "experts' placement on the wafer is not published: both are shown, and they bound the answer"
            )
    elif hw.device_class == "gpu":
        own |= {name: chosen[name] for name in _OF_GPUS if name in chosen}
    if hw.device_class != "gpu" and (left := [name for name in (*_OF_GPUS, *SIZES) if name in chosen]):
        notes.append(
            f"{hw.name} is not a GPU: {' and '.join(left)} do{'es' * (len(left) == 1)} not apply to it"
        )
    sizes = [()] if hw.device_class != "gpu" else list(product(*(chosen[n] for n in SIZES if n in chosen)))
    found: dict[tuple[str, Scenario], tuple[Hardware, Scenario]] = {}
    for size in sizes:
        machine = machine_of(hw, Scenario(tuple(size)))
        told = list(notes)
        for settings in _parallelism(chosen, machine, run, told):
            for combination in product(*own.values()):
                alone = [s for s in combination if s.name != "overlap" or machine.gpus > 1]
                scenario = Scenario(ordered((*alone, *settings)), tuple(told))
                found[machine.name, scenario] = machine, scenario
    return list(found.values())


def ordered(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Settings in the order of the knob table."""
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


__all__ = ["SIZES", "ordered", "read_sets", "scenarios", "values_of"]
