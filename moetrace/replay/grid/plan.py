"""What a grid asks, as text, and as cases of what its scenarios have in common, cut into tasks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware, load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.replay.economics import read_prices
from moetrace.replay.grid.shape import Case
from moetrace.replay.knobs import KNOBS
from moetrace.replay.load import LOAD, read_load
from moetrace.replay.scenario import Setting
from moetrace.replay.sets import SIZES, read_sets, scenarios
from moetrace.run import Run
from moetrace.synthesize import meta_of

IntArray = npt.NDArray[np.int64]
VARIED = ("batch", "input_len", "output_len", "n_a")  # knobs that scenarios of one case may differ in
CHUNK = 1 << 16  # scenarios worked out at once
MOST = 10**9
_CASES = 512  # that are worked out at once, at most
_MOST_CASES = 100_000


@dataclass(frozen=True, slots=True)
class Ask:
    """A grid as its user wrote it: models, machines, and NAME=VALUE[,VALUE] texts; every combination is a scenario.

    `prices` are those of one device per hour, ``2.5`` or ``h100-sxm=2.5``.
    """

    models: tuple[str, ...]
    machines: tuple[str, ...]
    sets: tuple[str, ...]
    prices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Scenarios `start` to `stop` of a grid."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The scenarios of a grid: in each case the product of the varied knobs' values, the last knob turning fastest.

    Cases that differ in their machine alone lie beside each other.
    """

    ask: Ask
    cases: tuple[Case, ...]
    varied: Mapping[str, IntArray]
    knobs: tuple[str, ...]  # those that a case says and that are not varied
    prices: Mapping[str, float]

    @property
    def per_case(self) -> int:
        """Scenarios of one case."""
        return int(np.prod([values.size for values in self.varied.values()], dtype=np.int64))

    @property
    def size(self) -> int:
        """Scenarios in all."""
        return len(self.cases) * self.per_case

    def tasks(self) -> Iterator[Task]:
        """All scenarios, in tasks of at most CHUNK: of whole cases where they are small."""
        whole = min(_CASES, max(1, CHUNK // self.per_case)) * self.per_case
        size = min(CHUNK, whole)
        for start in range(0, self.size, size):
            yield Task(start, min(start + size, self.size))

    def parts(self, task: Task) -> Iterator[tuple[Case, int, int]]:
        """(case, first and last scenario in it) of the cases that a task lies in."""
        at = task.start
        while at < task.stop:
            case, start = divmod(at, self.per_case)
            stop = min(self.per_case, start + task.stop - at)
            yield self.cases[case], start, stop
            at += stop - start

    def columns(self, start: int, stop: int) -> dict[str, IntArray]:
        """The varied knobs' values in scenarios of a case."""
        shape = tuple(values.size for values in self.varied.values())
        places = np.unravel_index(np.arange(start, stop), shape)
        return {name: values[at] for (name, values), at in zip(self.varied.items(), places, strict=True)}


@lru_cache(maxsize=4)
def plan_of(ask: Ask) -> Plan:
    """The plan of a grid. Raises ScenarioError, ProfileError or ModelError with one line if it cannot be."""
    chosen = read_sets(ask.sets)
    varied = {name: chosen[name] for name in VARIED if name in chosen and _is_whole(chosen[name])}
    hardware = [load_hardware(name) for name in ask.machines]
    rest = [
        f"{name}={','.join(value.text for value in values)}"
        for name, values in chosen.items()
        if name not in varied
    ]
    if "n_a" in varied and "placement" not in chosen and any(hw.law == "wafer" for hw in hardware):
        rest.append("placement=spread,own")  # not published: both are shown, as `scenarios` does
    models = [load_model(name) for name in ask.models]
    _once([model.name for model in models])
    cases = [case for model in models for case in _cases(model, hardware, ask, rest)]
    turned = {*read_sets(rest), *(s.name for case in cases for s in case.scenario.settings)}
    plan = Plan(
        ask,
        tuple(cases),
        {
            name: np.array([value.value for value in values], dtype=np.int64)
            for name, values in varied.items()
        },
        tuple(name for name in KNOBS if name in turned and name not in (*LOAD, *SIZES)),
        read_prices(ask.prices, hardware),
    )
    if plan.size > MOST:
        raise ScenarioError(f"{plan.size:,} scenarios: at most {MOST:,} in a grid")
    return plan


def _cases(model: ModelSpec, hardware: list[Hardware], ask: Ask, rest: list[str]) -> list[Case]:
    """The cases of one model, those of equal settings beside each other."""
    load, _ = read_load(ask.sets)
    run = Run(meta_of(model, load, ()))  # its ops are not asked
    pairs = scenarios(rest, hardware, run, most=_MOST_CASES)
    first: dict[tuple[Setting, ...], int] = {}
    places = [first.setdefault(scenario.settings, i) for i, (_, scenario) in enumerate(pairs)]
    return [Case(model, *pairs[i]) for i in sorted(range(len(pairs)), key=lambda i: places[i])]


def _once(names: list[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ScenarioError(f"model {twice} is named twice")


def _is_whole(values: tuple[Setting, ...]) -> bool:
    return all(isinstance(value.value, int) for value in values)
