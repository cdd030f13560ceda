"""What a grid asks, as text, and as cases of what its scenarios have in common, cut into tasks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError
from moetrace.model import load_model
from moetrace.replay.grid.vector import VARIED, Case, is_vectorised
from moetrace.replay.load import LOAD, read_load
from moetrace.replay.scenario import Setting, read_sets, scenarios
from moetrace.synthesize import synthesize

IntArray = npt.NDArray[np.int64]
CHUNK = 1 << 16  # scenarios worked out at once
MOST = 10**9
_FEW = 256
_MOST_CASES = 100_000


@dataclass(frozen=True, slots=True)
class Ask:
    """A grid as its user wrote it: a model, machines, and NAME=VALUE[,VALUE] texts; every combination is a scenario."""

    model: str
    machines: tuple[str, ...]
    sets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Scenarios `start` to `stop` of one case."""

    case: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The scenarios of a grid: in each case the product of the varied knobs' values, the last knob turning fastest."""

    ask: Ask
    cases: tuple[Case, ...]
    varied: Mapping[str, IntArray]
    knobs: tuple[str, ...]  # those that were asked for and are not varied

    @property
    def per_case(self) -> int:
        """Scenarios of one case."""
        return int(np.prod([values.size for values in self.varied.values()], dtype=np.int64))

    @property
    def size(self) -> int:
        """Scenarios in all."""
        return len(self.cases) * self.per_case

    def tasks(self) -> Iterator[Task]:
        """All scenarios, in tasks of at most CHUNK; of few where they are simulated one by one, so that little is lost."""
        for at, case in enumerate(self.cases):
            size = CHUNK if is_vectorised(case) else min(CHUNK, _FEW)
            for start in range(0, self.per_case, size):
                yield Task(at, start, min(start + size, self.per_case))

    def columns(self, task: Task) -> dict[str, IntArray]:
        """The varied knobs' values in a task's scenarios."""
        shape = tuple(values.size for values in self.varied.values())
        places = np.unravel_index(np.arange(task.start, task.stop), shape)
        return {name: values[at] for (name, values), at in zip(self.varied.items(), places, strict=True)}


@lru_cache(maxsize=4)
def plan_of(ask: Ask) -> Plan:
    """The plan of a grid. Raises ScenarioError, ProfileError or ModelError with one line if it cannot be."""
    chosen = read_sets(ask.sets)
    varied = {name: chosen[name] for name in VARIED if name in chosen and _is_whole(chosen[name])}
    load, _ = read_load(ask.sets)
    rest = [
        f"{name}={','.join(value.text for value in values)}"
        for name, values in chosen.items()
        if name not in varied
    ]
    model = load_model(ask.model)
    if "n_a" in varied and "placement" not in chosen and any(_is_wafer(name) for name in ask.machines):
        rest.append("placement=spread,own")  # not published: both are shown, as `scenarios` does
    pairs = scenarios(rest, ask.machines, synthesize(model, load), most=_MOST_CASES)
    plan = Plan(
        ask,
        tuple(Case(model, hw, scenario) for hw, scenario in pairs),
        {
            name: np.array([value.value for value in values], dtype=np.int64)
            for name, values in varied.items()
        },
        tuple(name for name in read_sets(rest) if name not in LOAD),
    )
    if plan.size > MOST:
        raise ScenarioError(f"{plan.size:,} scenarios: at most {MOST:,} in a grid")
    return plan


def _is_whole(values: tuple[Setting, ...]) -> bool:
    return all(isinstance(value.value, int) for value in values)


def _is_wafer(machine: str) -> bool:
    from moetrace.hardware import load_hardware

    return load_hardware(machine).device_class == "wafer"
