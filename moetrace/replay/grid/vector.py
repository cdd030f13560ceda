"""Many scenarios at once that differ in numbers alone: the steps of `simulate`, done once on Lanes.

Knobs, synthesis and memory are the very code of one scenario; only what it does with arrays of rows (prices, sums over a step,
measures of the load) is done here for [scenarios] at a time. Not done here, and so simulated one by one: wafers,
speculative decoding, eager launches, pipelines and overlapping halves (see `is_vectorised`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost import PriceContext, price
from moetrace.errors import MoetraceError, ScenarioError
from moetrace.hardware import Hardware
from moetrace.model import ModelSpec
from moetrace.op import Costs, Op, OpColumns
from moetrace.replay import memory
from moetrace.replay.draft import Draft
from moetrace.replay.engine import with_knobs
from moetrace.replay.lanes import Axis, Diverged, Lanes, Space
from moetrace.replay.load import workload_of
from moetrace.replay.measures import context_of, overhead_s
from moetrace.replay.scenario import Scenario, Setting, machine_of
from moetrace.replay.simulation import FITTED_TOKENS, served_as
from moetrace.run import Step
from moetrace.synthesize import Workload, passes_of, synthesize

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Column = npt.NDArray[Any]
TIMES = ("expected", "low", "high")
VARIED = ("batch", "input_len", "output_len", "n_a")  # knobs whose values may be Lanes
_ONE_BY_ONE = {
    "draft",
    "draft_tokens",
    "acceptance",
    "tokens_per_step",
    "pp",
    "overlap",
    "placement",
    "context",
}


@dataclass(frozen=True, slots=True)
class Case:
    """What a set of scenarios has in common: all but the values of the varied knobs."""

    model: ModelSpec
    hw: Hardware
    scenario: Scenario


@dataclass(slots=True)
class Answers:
    """Figures by scenario. `metrics` [measure][expected, low, high]; seconds by op family; `beyond` and `problem` are texts."""

    metrics: dict[str, FloatArray]
    decode_s: dict[str, FloatArray]
    prefill_s: dict[str, FloatArray]
    needed_bytes: FloatArray
    largest_batch: FloatArray
    fits: IntArray
    beyond: npt.NDArray[np.object_]
    problem: npt.NDArray[np.object_]
    gpus: int

    @classmethod
    def empty(cls, size: int) -> Answers:
        """Answers to be filled in: nothing is known yet."""
        unknown, words = np.full(size, np.nan), np.full(size, "", dtype=object)
        metrics = {name: np.full((3, size), np.nan) for name in MEASURED}
        return cls(metrics, {}, {}, unknown, unknown.copy(), np.full(size, -1), words, words.copy(), 0)


MEASURED = ("ttft", "tpot", "itl", "e2e", "throughput", "output_throughput", "user_speed")


def is_vectorised(case: Case) -> bool:
    """Whether the scenarios of a case can be worked out at once."""
    said = case.scenario.texts()
    return case.hw.law == "gpu" and not _ONE_BY_ONE & set(said) and said.get("graph", "on") == "on"


def answers(case: Case, columns: Mapping[str, Column]) -> Answers:
    """The figures of every scenario; `columns` has the values of the varied knobs, [scenarios] each.

    A scenario that cannot be (a knob that cannot apply) has a `problem` and nan elsewhere.
    """
    size = len(next(iter(columns.values())))
    out = Answers.empty(size)
    waiting = [np.arange(size)]
    while waiting:
        some = waiting.pop()
        try:
            _together(case, {name: values[some] for name, values in columns.items()}, some, out)
        except Diverged as parted:
            waiting += [some[parted.mask], some[~parted.mask]]
        except MoetraceError as error:
            out.problem[some] = str(error)
    return out


def _together(case: Case, columns: Mapping[str, Column], some: IntArray, out: Answers) -> None:
    """Fills in the figures of scenarios that go the same way. Raises Diverged where they do not."""
    space = Space(columns)
    draft, load = _draft(case, columns, space)
    need = memory.need(draft)
    seconds = _Seconds(draft, space)
    steps = [seconds.of_step(i) for i in range(len(draft.steps))]
    weights = _weights(draft.steps, space)
    first, rest = zip(
        *(_first_and_rest(draft.steps, [s[i] for s in steps], weights, load, space) for i in range(3)),
        strict=True,
    )
    for name, values in _measures(np.array(first), np.array(rest), load, space).items():
        out.metrics[name][:, some] = values
    out.needed_bytes[some] = _spread(need.needed_bytes, space)
    out.largest_batch[some] = _spread(need.largest_batch, space)
    out.fits[some] = _spread(need.fits, space)
    out.beyond[some] = _beyond(draft.steps, space)
    out.gpus = draft.gpus
    for family in seconds.families:
        by_step = [seconds.of_family(family, i) for i in range(len(draft.steps))]
        decode = _total(weights, by_step) / np.maximum(
            _total(weights, [np.ones(space.size)] * len(weights)), 1.0
        )
        out.decode_s.setdefault(family, np.zeros(len(out.fits)))[some] = decode
        out.prefill_s.setdefault(family, np.zeros(len(out.fits)))[some] = by_step[0]


def _draft(case: Case, columns: Mapping[str, Column], space: Space) -> tuple[Draft, Workload]:
    """The edited draft of the scenarios and their load, numbers being Lanes."""
    hw = machine_of(case.hw, case.scenario)
    load, turned = workload_of(
        Workload(1, 1, 1), _with(case.scenario, {n: v[0].item() for n, v in columns.items()})
    )
    lanes, turned = workload_of(Workload(1, 1, 1), _with(case.scenario, space.given))
    turned = served_as(case.model, load, turned)
    run = synthesize(case.model, load)
    steps, passes = passes_of(case.model, lanes)
    draft = Draft.of(run, hw, turned)
    placed = [op for ops in passes for _, op in ops]
    if len(placed) != draft.rows.size:
        raise ScenarioError("scenarios that go the same way differ in their ops")
    cells: list[Op | None] = [None] * len(draft.ops)
    for cell, op in zip(draft.cell.tolist(), placed, strict=True):
        cells[cell] = cells[cell] or op
    ops = tuple(op for op in cells if op is not None)
    return with_knobs(replace(draft, ops=ops, origin=ops, steps=steps)), lanes


def _with(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    """The scenario with the varied knobs at these values."""
    settings = (*scenario.settings, *(Setting(name, str(value), value) for name, value in values.items()))
    return replace(scenario, settings=settings)


class _Seconds:
    """What the cells of a draft take, summed by step: small sums on each axis first, spread over scenarios at the end."""

    def __init__(self, draft: Draft, space: Space) -> None:
        self.space, self.steps = space, len(draft.steps)
        distinct = list(dict.fromkeys(draft.ops))
        place = {id(op): i for i, op in enumerate(distinct)}
        lookup = {op: i for i, op in enumerate(distinct)}
        of_cell = np.array([place.get(id(op), -1) if id(op) in place else lookup[op] for op in draft.ops])
        step = draft.base.step[draft.rows]
        self.count = np.zeros((self.steps, len(distinct)))
        np.add.at(self.count, (step, of_cell[draft.cell]), 1.0)
        self.axis = [_axis_of(op, space) for op in distinct]
        self.dur = _durations(draft.hw, distinct, self.axis)
        self.family = [work_of.family(op.kind) for op in distinct]
        self.families = sorted(set(self.family))

    def of_step(self, step: int) -> FloatArray:
        """Seconds of a step, [3, scenarios]: expected, low, high."""
        return self._sum(step, range(len(self.axis)))

    def of_family(self, family: str, step: int) -> FloatArray:
        """Expected seconds of a family in a step, [scenarios]."""
        seconds: FloatArray = self._sum(step, [i for i, name in enumerate(self.family) if name == family])[0]
        return seconds

    def _sum(self, step: int, ops: Sequence[int]) -> FloatArray:
        small: dict[tuple[str, ...], FloatArray] = {}
        total = np.zeros((3, 1))
        for i in ops:
            count, axis = self.count[step, i], self.axis[i]
            if not count:
                continue
            if axis is None:
                total = total + count * self.dur[i]
            else:
                small[axis.roots] = small.get(axis.roots, 0.0) + count * self.dur[i]
        out = np.repeat(total, self.space.size, axis=1)
        for roots, values in small.items():
            out += values[:, self.space.axes[roots].index]
        return out / 1e9


def _axis_of(op: Op, space: Space) -> Axis | None:
    """The axis of all dims of an op, None if none varies."""
    axis: Axis | None = None
    values: list[Any] = [value for _, value in op.dims]
    for value in values:
        if isinstance(value, Lanes):
            axis = value.axis if axis is None else space.joint(axis, value.axis)
    return axis


def _durations(hw: Hardware, ops: Sequence[Op], axes: Sequence[Axis | None]) -> list[FloatArray]:
    """Whole ns of each op as expected and at both ends of its interval, [3, size of its axis]; 0 where it has no price."""
    out: list[FloatArray] = [np.zeros((3, 1))] * len(ops)
    alike: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for i, op in enumerate(ops):
        alike.setdefault((op.kind, op.dtype, tuple(name for name, _ in op.dims)), []).append(i)
    for (kind, dtype, names), members in alike.items():
        sizes = [1 if (axis := axes[i]) is None else axis.size for i in members]
        dims = {
            name: np.concatenate([_on(ops[i][name], axes[i], n) for i, n in zip(members, sizes, strict=True)])
            for name in names
        }
        columns = OpColumns((Op(kind, dtype),), np.zeros(sum(sizes), dtype=np.int64), dims)
        costs = price(work_of.works(columns), hw, context=PriceContext())
        for i, ns in zip(members, np.split(_ns(costs), np.cumsum(sizes)[:-1], axis=1), strict=True):
            out[i] = ns
    return out


def _on(value: Any, axis: Axis | None, size: int) -> FloatArray:
    if isinstance(value, Lanes) and axis is not None:
        return np.asarray(value.on(axis), dtype=np.float64)
    return np.full(size, float(value))


def _ns(costs: Costs) -> FloatArray:
    """Rounded as one scenario's rows are."""
    expected = np.rint(np.nan_to_num(costs.expected_s) * 1e9)
    error = 1.0 + np.nan_to_num(costs.error)
    return np.stack([expected, np.rint(expected / error), np.rint(expected * error)])


def _spread(value: Any, space: Space) -> FloatArray:
    """A figure of every scenario, nan where it is not known."""
    if isinstance(value, Lanes):
        return value.spread().astype(np.float64)
    return np.full(space.size, np.nan if value is None else float(value))


def _weights(steps: Sequence[Step], space: Space) -> list[FloatArray]:
    """How many decode steps each synthesized one stands for: `measures.step_weights`, for every scenario."""
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    at = [_spread(context_of(steps[i]), space) for i in decode]
    out = [np.zeros(space.size) for _ in steps]
    for i in decode[:1]:
        out[i] += 1.0
    for (i, a), (j, b) in zip(
        zip(decode, at, strict=True), zip(decode[1:], at[1:], strict=True), strict=False
    ):
        out[i] += (b - a + 1) / 2 - 1
        out[j] += (b - a + 1) / 2
    return out


def _first_and_rest(
    steps: Sequence[Step],
    seconds: Sequence[FloatArray],
    weights: Sequence[FloatArray],
    load: Workload,
    space: Space,
) -> tuple[FloatArray, FloatArray]:
    """(TTFT, all later tokens): `measures.first_and_rest`, for every scenario."""
    later, batch = _spread(load.output_len, space) - 1, _spread(load.batch, space)
    overhead = overhead_s(load)
    first = seconds[0]
    rest = later * (_total(weights, seconds) / np.maximum(1.0, later) + overhead)
    if not load.served:
        return first + overhead, rest
    target = _spread(load.input_len, space) + _spread(load.output_len, space) // 2
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    at = [_spread(context_of(steps[i]), space) for i in decode]
    alone = _between(target, at, [seconds[i] for i in decode])
    parts, prompts = _spread(load.parts, space), _spread(load.beside[0], space)
    if decode:
        rest = rest + (batch - 1) * parts * np.maximum(0.0, first - alone) / prompts
    return parts * (first + overhead) + (alone + overhead) / 2, rest


def _total(weights: Sequence[FloatArray], values: Sequence[FloatArray]) -> FloatArray:
    total = np.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        total = total + weight * value
    return total


def _between(target: FloatArray, at: Sequence[FloatArray], values: Sequence[FloatArray]) -> FloatArray:
    """Values interpolated in straight lines between ascending points, the outermost beyond them; 0 without points."""
    if not at:
        return np.zeros_like(target)
    out = np.array(values[0])
    for low, high, left, right in zip(at, at[1:], values, values[1:], strict=False):
        share = np.clip((target - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
        out = np.where(target > low, left + share * (right - left), out)
    return out


def _measures(first: FloatArray, rest: FloatArray, load: Workload, space: Space) -> dict[str, FloatArray]:
    """`measures.metrics` for every scenario: [3, scenarios] each, the value and both ends of its interval."""
    batch, new = _spread(load.batch, space), _spread(load.output_len, space)
    e2e, later = first + rest, np.where(new > 1, new - 1, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "ttft": first,
            "tpot": rest / later,
            "itl": np.where(new > 1, rest / (batch * new - 1), np.nan),
            "e2e": e2e,
            "throughput": batch * (_spread(load.input_len, space) + new) / e2e,
            "output_throughput": batch * new / e2e,
            "user_speed": later / rest,
        }
    return {
        name: np.stack([v[0], np.minimum(v[1], v[2]), np.maximum(v[1], v[2])]) for name, v in found.items()
    }


def _beyond(steps: Sequence[Step], space: Space) -> npt.NDArray[np.object_]:
    """The phases of the steps with more tokens than the machine's coefficients were fitted on, "" for none."""
    out = np.full(space.size, "", dtype=object)
    for phase in sorted({step.phase or "" for step in steps}):
        beyond = np.zeros(space.size, dtype=bool)
        for step in steps:
            if step.phase == phase:
                beyond |= _spread(step.tokens, space) > FITTED_TOKENS
        out = np.where(beyond, np.where(out == "", phase, out + " and " + phase), out)
    return out
