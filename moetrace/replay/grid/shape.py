"""What scenarios compute: the code that edits one scenario's ops, run once for all of a case, on few of their layers.

Layers of one kind have the same ops, so a case is drafted with one layer of each kind, counted as often as it occurs. Drafts
hold no times: machines of as many devices share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import MoetraceError, ScenarioError
from moetrace.hardware import Hardware
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.replay import measures, speculate
from moetrace.replay.base import Base, step_classes
from moetrace.replay.draft import At, Draft
from moetrace.replay.editing import with_knobs
from moetrace.replay.grammar import Segments
from moetrace.replay.grid.counted import Counted, Key, count_of, key_of
from moetrace.replay.grid.eager import Launched, launches
from moetrace.replay.lanes import Diverged, Space
from moetrace.replay.load import served_as, workload_of
from moetrace.replay.scenario import Scenario, Setting, machine_of
from moetrace.run import Run, Step
from moetrace.synthesize import Workload, meta_of, passes_of

IntArray = npt.NDArray[np.int64]
Column = npt.NDArray[Any]
_ONE = Workload(1, 1, 1)


@dataclass(frozen=True, slots=True)
class Case:
    """What a set of scenarios has in common: all but the values of the varied knobs."""

    model: ModelSpec
    hw: Hardware
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class Drafting:
    """A drafting model beside: the knobs that say it, and its own draft (None: what a step yields is stated)."""

    tokens: int
    acceptance: float
    said: float | None
    shape: Shape | None

    @property
    def yielded(self) -> float:
        """Tokens that one step yields."""
        return measures.Draft(self.tokens, self.acceptance, 0.0, 0.0, self.said).yielded


@dataclass(frozen=True, slots=True)
class Shape:
    """The draft of scenarios that go the same way; `some` are their places among those that were asked for."""

    some: IntArray
    space: Space
    draft: Draft
    load: Workload
    counted: Counted
    drafting: Drafting | None = None
    launched: tuple[Launched, ...] = ()  # the steps whose ops the host launches one by one


class Drafts:
    """Makes the drafts of cases on one set of scenarios, given the varied knobs' values in each."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns, self.size = columns, len(next(iter(columns.values())))
        self.spaces: dict[tuple[bytes, bool], Space] = {}
        self.outlines: dict[Key, _Outline] = {}
        self.parts: dict[Key, list[IntArray]] = {}  # how cases of the same sizes parted before
        self.known: dict[Key, list[Shape | tuple[IntArray, str]]] = {}

    def of(self, case: Case) -> list[Shape | tuple[IntArray, str]]:
        """The shapes of a case, and (which, why) of scenarios that cannot be. They cover all scenarios, each once."""
        hw = machine_of(case.hw, case.scenario)
        own = hw.name if case.scenario.get("engine") else ""
        key = (case.model.name, case.model, case.scenario.settings, hw.gpus, hw.law, own)
        if key not in self.known:
            self.known[key] = list(self._parted(case, hw))
        found = self.known[key]
        return [_moved(made, hw, case.scenario) if isinstance(made, Shape) else made for made in found]

    def _parted(self, case: Case, hw: Hardware) -> Iterator[Shape | tuple[IntArray, str]]:
        like = (
            case.model.name,
            *(case.scenario.get(name) for name in ("dp", "pp", "overlap", "serving", "draft", "engine")),
        )
        waiting = [(some, False) for some in self.parts.get(like, [np.arange(self.size)])]
        done: list[IntArray] = []
        while waiting:
            some, exact = waiting.pop()
            try:
                yield self._shape(case, hw, some, exact)
            except Diverged as parted:
                waiting += [(some[parted.mask], exact), (some[~parted.mask], exact)]
                continue
            except MoetraceError as error:
                if not exact:  # once more, so that what is said of each names its own numbers
                    waiting.append((some, True))
                    continue
                yield some, str(error)
            done.append(some)
        self.parts[like] = done

    def _shape(self, case: Case, hw: Hardware, some: IntArray, exact: bool) -> Shape:
        key = some.tobytes(), exact
        if key not in self.spaces:
            columns = {name: values[some] for name, values in self.columns.items()}
            self.spaces[key] = Space(columns, exact)
        space = self.spaces[key]
        first = {name: lanes.spread()[0].item() for name, lanes in space.given.items()}
        load, turned = workload_of(_ONE, _with(case.scenario, space.given))
        alone, _ = workload_of(_ONE, _with(case.scenario, first))
        verify, yielded = _verified(case.scenario)
        load, alone = (replace(one, verify=verify, yielded=yielded) for one in (load, alone))
        drafting = self._drafting(case, hw, load, some, space)
        turned = served_as(case.model, alone, turned)
        draft = with_knobs(self._draft(case.model, hw, turned, load, space))
        counted = count_of(draft, self._times(case.model, turned))
        launched = launches(draft, counted.of_cell, self._order(case.model, turned))
        return Shape(some, space, draft, load, counted, drafting, launched)

    def _drafting(
        self, case: Case, hw: Hardware, load: Workload, some: IntArray, space: Space
    ) -> Drafting | None:
        """The drafting model on the machines that `speculate.places` names, the first that takes it."""
        stated = speculate.stated(case.scenario)
        if stated is not None:
            return Drafting(0, 0.0, stated.ends[0].said, None)
        asked = speculate.asked(case.scenario)
        if asked is None:
            return None
        model, tokens, acceptance = asked
        own = speculate.load_of(load, case.scenario)
        for machine, how in speculate.places(hw, case.scenario):
            how = served_as(model, own, how)
            try:
                draft = with_knobs(self._draft(model, machine, how, own, space))
            except ScenarioError:
                continue
            break
        counted = count_of(draft, self._times(model, how))
        launched = launches(draft, counted.of_cell, self._order(model, how))
        shape = Shape(some, space, draft, own, counted, launched=launched)
        return Drafting(tokens, acceptance, None, shape)

    def _draft(self, model: ModelSpec, hw: Hardware, turned: Scenario, load: Workload, space: Space) -> Draft:
        """The draft before its knobs."""
        kinds = _layer_kinds(model, turned)
        # A drafting model has its data-parallel group's part of the batch, whose lanes live as long as their space.
        made = (load.served, load.chunk, load.verify, load.groups, load.apart, load.yielded, load.drafts)
        key = (model, *made, kinds, id(space), id(load.batch))
        if key not in self.outlines:
            self.outlines[key] = _outline(model, load, kinds)
        return self.outlines[key].draft(hw, turned)

    def _times(self, model: ModelSpec, turned: Scenario) -> dict[int, int]:
        """How many layers each drafted one stands for."""
        kinds = _layer_kinds(model, turned)
        return {kinds.index(kind): kinds.count(kind) for kind in set(kinds)}

    def _order(self, model: ModelSpec, turned: Scenario) -> tuple[int, ...] | None:
        """The drafted layer that stands for each layer, in order; None: each for itself."""
        if turned.get("layers") is not None:
            return None
        kinds = _layer_kinds(model, turned)
        return tuple(kinds.index(kind) for kind in kinds)


def _moved(shape: Shape, hw: Hardware, scenario: Scenario) -> Shape:
    """The shape on another machine of as many devices."""
    drafting = shape.drafting
    if drafting is not None and drafting.shape is not None:
        there = {machine.gpus: machine for machine, _ in speculate.places(hw, scenario)}
        own = drafting.shape
        own = replace(own, draft=replace(own.draft, hw=there[own.draft.hw.gpus]))
        drafting = replace(drafting, shape=own)
    return replace(shape, draft=replace(shape.draft, hw=hw), drafting=drafting)


def _verified(scenario: Scenario) -> tuple[int, float]:
    """(tokens of each sequence that go through a step, tokens that it yields)."""
    if (stated := speculate.stated(scenario)) is not None:
        yielded = stated.ends[0].yielded
        return ceil(yielded), yielded
    if (asked := speculate.asked(scenario)) is None:
        return 1, 1.0
    return asked[1] + 1, measures.Draft(asked[1], asked[2], 0.0, 0.0).yielded


def _with(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    """The scenario with the varied knobs at these values."""
    settings = (*scenario.settings, *(Setting(name, str(value), value) for name, value in values.items()))
    return replace(scenario, settings=settings)


def _layer_kinds(model: ModelSpec, turned: Scenario) -> tuple[Key, ...]:
    """What each layer is: those of one kind have the same ops. A layer that a knob may single out is a kind of its own."""
    n_a = turned.get("n_a")
    single = turned.get("layers") is not None or isinstance(n_a, (tuple, Segments))
    stages = turned.get("pp", 1)
    ends = {model.layers * stage // stages - 1 for stage in range(1, stages + 1)} if stages > 1 else set()
    return tuple(
        (
            layer == 0,
            model.is_moe(layer),
            model.is_linear(layer),
            model.window(layer),
            layer if single or layer in ends else -1,
        )
        for layer in range(model.layers)
    )


@dataclass(frozen=True, slots=True)
class _Outline:
    """A draft's parts that no machine and no knob changes."""

    run: Run
    base: Base
    ops: tuple[Op, ...]
    at: tuple[At, ...]
    cell: IntArray
    model: ModelSpec
    steps: tuple[Step, ...] = field(default=())

    def draft(self, hw: Hardware, scenario: Scenario) -> Draft:
        rows = np.arange(self.cell.size)
        return Draft(
            self.run, hw, scenario, self.base, self.ops, self.ops, self.at, rows, self.cell,
            np.zeros(rows.size, dtype=bool), self.steps, self.model,
        )  # fmt: skip


def _outline(model: ModelSpec, load: Workload, kinds: tuple[Key, ...]) -> _Outline:
    """The rows of `synthesize` in the first layer of each kind."""
    steps, passes = passes_of(model, load)
    like = step_classes(steps).tolist()
    kept = {kinds.index(kind) for kind in set(kinds)} | {-1}
    cells: dict[Key, int] = {}
    ops: list[Op] = []
    at: list[At] = []
    rows: list[tuple[int, int, int]] = []  # step, layer, cell
    for step, placed in enumerate(passes):
        known: dict[int, Key] = {}  # layers of one kind hold the very same ops
        for layer, op in placed:
            if layer not in kept:
                continue
            if id(op) not in known:
                known[id(op)] = key_of(op)
            key = (known[id(op)], layer, like[step])
            if key not in cells:
                cells[key] = len(ops)
                ops.append(op)
                at.append(At(like[step], layer, layer))
            rows.append((step, layer, cells[key]))
    step_of, layer_of, cell = np.array(rows, dtype=np.int64).T
    zero = np.zeros(cell.size, dtype=np.int64)
    base = Base(np.arange(cell.size), step_of, step_of, layer_of, cell, zero, zero, tuple(ops), 0)
    return _Outline(Run(meta_of(model, load, steps)), base, tuple(ops), tuple(at), cell, model, steps)
