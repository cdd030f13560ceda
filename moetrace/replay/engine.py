"""replay: a run on another machine and with knobs turned, as a predicted run with its error bars.

Knobs edit the draft, `distinct` settles routing, `anchor` finds durations, `schedule` lays them out. Rows outside of every
step are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware, load_hardware
from moetrace.replay import memory
from moetrace.replay.assumptions import assumptions_of
from moetrace.replay.copies import copy_error
from moetrace.replay.draft import Draft
from moetrace.replay.editing import edited
from moetrace.replay.launching import launch_s
from moetrace.replay.notebook import as_html, in_words
from moetrace.replay.outcome import Outcome
from moetrace.replay.parallel import Share
from moetrace.replay.predicted import first_rows, meta_of, per_step, steps_at, table_of
from moetrace.replay.scenario import Scenario, machine_of
from moetrace.replay.setting import context_of, crossing_ns, keeps_gaps, source_of
from moetrace.replay.summary import Tally
from moetrace.replay.timed import timed
from moetrace.run import OPS_SCHEMA, TABLE_FACTS, Meta, Run, TableParts, check_runs

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
OnMachine: TypeAlias = tuple[Hardware, Scenario]  # as `scenarios` gives them
AS_RECORDED = Scenario()
# What a saved run of halves or of a pipeline must say, since its table does not hold the others.
PARTED = (
    "the ops of a step are one half's, or one part's of its batch or prompts: what its timeline has as idle is the others' "
    "time, or a pipeline that fills"
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A scenario on a machine: the predicted run, and a JSON-able summary of it (schema ``moetrace.replay/1``).

    `step_s` [steps, 3] is what each step takes in seconds: expected, and both ends of the 80 % interval. `shares` has for each
    step what one rank's ops stand for, empty where all of a step's work is in them; `launched` whether the host launches its
    ops one by one, empty where it does in none. `ahead_s` [steps] is how long before each step its launch began, 0 where no
    host launched it beside another.
    """

    scenario: Scenario
    hardware: str
    run: Run
    summary: dict[str, Any]
    step_s: FloatArray
    ahead_s: FloatArray
    shares: tuple[Share, ...] = ()
    launched: tuple[bool, ...] = ()

    def __repr__(self) -> str:
        return f"<Prediction {in_words(self.summary)}; .summary, .run>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a step of each phase with its interval, and the op families of the mean decode step."""
        return as_html(self.summary)


@overload
def replay(run: Run, hw: Hardware | str, scenario: Scenario | OnMachine = AS_RECORDED) -> Prediction: ...


@overload
def replay(run: Run, hw: Hardware | str, scenario: list[Scenario] | list[OnMachine]) -> list[Prediction]: ...


def replay(
    run: Run,
    hw: Hardware | str,
    scenario: Scenario | OnMachine | list[Scenario] | list[OnMachine] = AS_RECORDED,
) -> Prediction | list[Prediction]:
    """The run predicted on `hw`, a machine or the name of one, with the scenario's knobs turned; of a list of scenarios, as
    `scenarios` gives it, a list with each.

    Its own hardware and no knob give the measured step times to the ns. Raises ScenarioError with one line if a knob
    cannot apply, the parallelism does not fill the machine, no op lies in a step, or a scenario was made for another chip.
    """
    check_runs(run)
    machine = load_hardware(hw)
    if isinstance(scenario, list):
        pairs = [_on(machine, one) for one in scenario]  # all are read before the first is predicted
        return [predict(run, *pair) for pair in pairs]
    return predict(run, *_on(machine, scenario))


def _on(hw: Hardware, given: Scenario | OnMachine) -> tuple[Hardware, Scenario]:
    """A scenario and its machine: the one that it comes with, which must be of the chip of `hw`, or `hw` at the size asked."""
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Hardware)):
        return machine_of(hw, given), given
    there, scenario = given
    if there.chip != hw.chip:
        raise ScenarioError(
            f"{scenario.label}: the scenario was made for {there.name}, not for {hw.name}: replay it on that machine"
        )
    return machine_of(there, scenario), scenario


def predict(run: Run, hw: Hardware, scenario: Scenario, beside: memory.Beside | None = None) -> Prediction:
    """`replay` on the very machine that is given, `beside` what a drafting model takes on it."""
    whole = _Whole(run, scenario, beside)
    for part in run.parts():
        _replay_part(part, hw, scenario, whole)
    return whole.prediction(hw)


class _Whole:
    """A prediction that comes in parts of whole steps: of a long run, one after the other, else all in one."""

    def __init__(self, run: Run, scenario: Scenario, beside: memory.Beside | None) -> None:
        self.run, self.scenario, self.beside = run, scenario, beside
        self.origin: int | None = None  # start of the first op, ns
        self.gained = 0  # ns by which the parts so far moved those that follow
        self.tally = Tally(run)
        self.steps = list(run.meta.steps)
        self.step_s = np.zeros((len(self.steps), 3))
        self.ahead_s = np.zeros(len(self.steps))
        self.shares: tuple[Share, ...] = ()
        self.launched: tuple[bool, ...] = ()
        self.meta: Meta | None = None
        self.tables = TableParts(OPS_SCHEMA.with_metadata(TABLE_FACTS), run.new_file)

    def add(self, meta: Meta, table: pa.Table, outcome: Outcome, crossing: IntArray) -> None:
        """A part."""
        self.meta = self.meta or meta
        self.tables.write(table)
        self.tally.add(outcome, crossing)
        for i in np.unique(outcome.draft.base.step).tolist():
            self.steps[i] = meta.steps[i]
        self.shares = outcome.draft.shares
        launched = launch_s(outcome.draft, outcome.source) > 0
        self.launched = tuple(launched.tolist()) if launched.any() else ()
        self.step_s += np.stack([outcome.span, outcome.low, outcome.high], axis=1) / 1e9
        self.ahead_s += outcome.ahead / 1e9

    def prediction(self, hw: Hardware) -> Prediction:
        """The whole. Raises ScenarioError if there was no part."""
        if self.meta is None:
            raise ScenarioError("the run has no op inside a step, so there is nothing to replay")
        made = self.tables.finish()
        parted = (PARTED,) if any(share.halves or share.times != 1 for share in self.shares) else ()
        meta = replace(self.meta, steps=tuple(self.steps), notes=(*self.tally.assumptions, *parted))
        routing = self.run.routing if _keeps_routing(self.scenario) else None
        kept = isinstance(made, pa.Table)
        run = Run(meta, made, routing) if kept else Run(meta, None, routing, file=made)
        return Prediction(
            self.scenario,
            hw.name,
            run,
            self.tally.summary(),
            self.step_s,
            self.ahead_s,
            self.shares,
            self.launched,
        )


def _replay_part(run: Run, hw: Hardware, scenario: Scenario, whole: _Whole) -> None:
    """Predicts the steps of one part of a run."""
    draft = edited(run, hw, scenario)
    source = source_of(run, hw)
    need = memory.need(draft)
    context = context_of(draft, need, whole.beside)
    if whole.beside:
        need = memory.joined(need, whole.beside.need, hw, draft.gpus)
    crossing = np.array(crossing_ns(draft, need), dtype=np.int64)
    found = timed(draft, source, context, crossing, copy_error(draft)[0])
    said = assumptions_of(draft, source, found.priced, found.measured, found.dur - found.wait)
    assumptions = (*scenario.notes, *draft.notes, *said)
    begin = _begins(draft, found.spans, keeps_gaps(draft, source), whole)
    steps = steps_at(draft, begin, found.spans)
    meta = meta_of(draft, steps, assumptions, context, launch_s(draft, source))
    table = table_of(draft, found.priced, begin[draft.base.segment[draft.rows]] + found.start, found.dur)
    span, low, high = (per_step(draft, ns) for ns in (found.spans, found.low, found.high))
    outcome = Outcome(
        draft, found.priced, source, found.dur, found.wait, found.was, span, low, high, found.busy, found.ahead, need,
        context, assumptions,
    )  # fmt: skip
    whole.add(meta, table, outcome, crossing)


def _begins(draft: Draft, spans: IntArray, gaps: bool, whole: _Whole) -> IntArray:
    """Start of each segment in ns: as recorded, moved by what earlier steps gained or lost; without gaps one after another."""
    base, first = draft.base, first_rows(draft)
    step, starts = base.step[first], base.start[first]
    gained = per_step(draft, spans)
    if gaps:
        ends = np.maximum.reduceat(base.start + base.dur, first)
        gained = gained - per_step(draft, ends - starts)
    elif whole.origin is None:
        whole.origin = int(starts.min())
    moved = whole.gained + np.concatenate([[0], np.cumsum(gained)[:-1]])[step]
    whole.gained += int(gained.sum())
    return np.asarray((starts if gaps else whole.origin) + moved)


def _keeps_routing(scenario: Scenario) -> bool:
    """Whether the recorded routing is that of the predicted run too."""
    return not {"n_a", "n_e", "prune_inter", "batch", "layers"} & set(scenario.texts())
