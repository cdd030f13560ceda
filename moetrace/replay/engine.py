"""replay: a run on another machine and with knobs turned, as a predicted run with its error bars.

Knobs edit the draft, `distinct` settles routing, `anchor` finds durations, `schedule` lays them out. Rows outside of every
step are dropped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.cost import PriceContext
from moetrace.errors import ScenarioError
from moetrace.hardware import ANY_ENGINE, Hardware, load_hardware
from moetrace.machines.wafer import crossings_s
from moetrace.ops.columns import record_columns
from moetrace.parse.nesting import exposed_by
from moetrace.replay import memory, schedule, shares
from moetrace.replay.anchor import Priced, price_cells
from moetrace.replay.assumptions import assumptions_of
from moetrace.replay.distinct import settle
from moetrace.replay.draft import Draft, Share
from moetrace.replay.intervals import narrowed
from moetrace.replay.knobs import KNOBS
from moetrace.replay.scenario import Scenario, machine_of
from moetrace.replay.summary import Outcome, Tally, as_html
from moetrace.replay.waits import waits_of
from moetrace.run import (
    OPS_SCHEMA,
    TABLE_FACTS,
    Meta,
    Run,
    Step,
    TableParts,
    nullable,
    numbers,
    ops_table,
    text_column,
)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
AS_RECORDED = Scenario()
_ADDED = " (added by the replay)"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A scenario on a machine: the predicted run, and a JSON-able summary of it (schema ``moetrace.replay/1``).

    `step_s` [steps, 3] is what each step takes in seconds: expected, and both ends of the 80 % interval. `shares` has for each
    step what one rank's ops stand for, empty where all of a step's work is in them.
    """

    scenario: Scenario
    hardware: str
    run: Run
    summary: dict[str, Any]
    step_s: FloatArray
    shares: tuple[Share, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: a step of each phase with its interval, and the op families of the mean decode step."""
        return as_html(self.summary)


def replay(run: Run, hw: Hardware | str, scenario: Scenario = AS_RECORDED) -> Prediction:
    """The run predicted on `hw`, a machine or the name of one, with the scenario's knobs turned.

    Its own hardware and no knob give the measured step times to the ns. Raises ScenarioError with one line if a knob
    cannot apply, the parallelism does not fill the machine, or no op lies in a step.
    """
    hw = machine_of(load_hardware(hw), scenario)
    whole = _Whole(run, scenario)
    for part in run.parts():
        _replay_part(part, hw, scenario, whole)
    return whole.prediction(hw)


class _Whole:
    """A prediction that comes in parts of whole steps: of a long run, one after the other, else all in one."""

    def __init__(self, run: Run, scenario: Scenario) -> None:
        self.run, self.scenario = run, scenario
        self.origin: int | None = None  # start of the first op, ns
        self.gained = 0  # ns by which the parts so far moved those that follow
        self.tally = Tally(run)
        self.steps = list(run.meta.steps)
        self.step_s = np.zeros((len(self.steps), 3))
        self.shares: tuple[Share, ...] = ()
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
        self.step_s += np.stack([outcome.span, outcome.low, outcome.high], axis=1) / 1e9

    def prediction(self, hw: Hardware) -> Prediction:
        """The whole. Raises ScenarioError if there was no part."""
        if self.meta is None:
            raise ScenarioError("the run has no op inside a step, so there is nothing to replay")
        made = self.tables.finish()
        meta = replace(self.meta, steps=tuple(self.steps), notes=self.tally.assumptions)
        routing = self.run.routing if _keeps_routing(self.scenario) else None
        kept = isinstance(made, pa.Table)
        run = Run(meta, made, routing) if kept else Run(meta, None, routing, file=made)
        return Prediction(self.scenario, hw.name, run, self.tally.summary(), self.step_s, self.shares)


def _replay_part(run: Run, hw: Hardware, scenario: Scenario, whole: _Whole) -> None:
    """Predicts the steps of one part of a run."""
    draft = edited(run, hw, scenario)
    source = _source(run, hw)
    gaps = source is not None and draft.scenario.get("graph") != "on"
    need = memory.need(draft)
    context = context_of(draft, need)
    priced = price_cells(draft, source, PriceContext(engine=context.engine), context)
    line, measured = _timeline(draft)
    waits = waits_of(draft, gaps)
    was = waits.recorded(draft.rows.size)
    measured = measured - was
    dur = priced.durations(draft.cell, np.where(draft.inserted, 0, measured))
    error = np.nan_to_num(priced.error)[draft.cell]
    eager = launch_s(draft, source)
    off = schedule.HOST_LAUNCH_FACTOR

    def lay_out(durations: IntArray, host: float) -> tuple[IntArray, IntArray, IntArray]:
        return waits.laid_out(
            durations,
            lambda d, w: schedule.lay_out(line, draft.rows, draft.inserted, d, gaps, host, (was, w)),
        )

    ends = [np.rint(d).astype(np.int64) for d in (dur, dur / (1 + error), dur * (1 + error))]
    laid = [lay_out(d, host) for d, host in zip(ends, (eager, eager / off, eager * off), strict=True)]
    assumptions = (*scenario.notes, *draft.notes, *assumptions_of(draft, source, priced, measured, dur))
    start, _, dur = laid[0]
    wait = dur - ends[0]
    alone = exposed_by(line.segment[draft.rows], start, start + dur)[0]
    crossing = np.array(crossing_ns(draft, need), dtype=np.int64)
    of_step = draft.base.step[_first_rows(draft)]
    expected, fast_end, slow_end = (
        shares.stretched(draft, line.segment[draft.rows], d, span) + crossing[of_step] for _, span, d in laid
    )
    spans, low, high = narrowed(draft, line.segment[draft.rows], ends, (expected, fast_end, slow_end))
    begin = _begins(draft, spans, gaps, whole)
    steps = _steps(draft, begin, spans)
    meta = _meta(draft, steps, assumptions, context)
    table = _table(draft, priced, begin[line.segment[draft.rows]] + start, dur)
    span, fast, slow = (_per_step(draft, x) for x in (spans, low, high))
    worked = np.bincount(line.segment[draft.rows], alone, spans.size).astype(np.float64)
    busy = _per_step(draft, shares.worked(draft, worked, laid[0][1], spans - crossing[of_step])) + crossing
    outcome = Outcome(
        draft, priced, source, dur, wait, was, span, fast, slow, busy, need, context, assumptions
    )
    whole.add(meta, table, outcome, crossing)


def edited(run: Run, hw: Hardware, scenario: Scenario) -> Draft:
    """The draft with every knob of the scenario applied, in the knob table's order, and its routing settled."""
    return with_knobs(Draft.of(run, hw, scenario))


def with_knobs(draft: Draft) -> Draft:
    """The draft with its scenario's knobs applied and its routing settled."""
    run, hw, scenario = draft.run, draft.hw, draft.scenario
    _check_parallelism(draft)
    if run.meta.device_class == "cpu" != hw.device_class and "fusion" not in scenario.texts():
        draft = KNOBS["fusion"].apply(draft, "runs")
    turned = {s.name: s.value for s in scenario.settings}
    if draft.parallel != draft.ran:
        turned.setdefault("tp", draft.parallel.tp)
    for name, knob in KNOBS.items():
        if name not in turned:
            continue
        if knob.not_recorded and run.meta.kind != "synthesized":
            raise ScenarioError(f"{name}: {knob.not_recorded}")
        if not knob.late:
            draft = knob.apply(draft, turned[name])
    _check_choice(draft)
    draft = settle(draft)
    for name, knob in KNOBS.items():
        if knob.late and name in turned:
            draft = knob.apply(draft, turned[name])
    return draft


def _check_choice(draft: Draft) -> None:
    """Raises ScenarioError where more experts are activated than there are."""
    for op in draft.ops:
        if op.has("experts", "topk") and op["topk"] > op["experts"]:
            raise ScenarioError(
                f"n_a={op['topk']:.0f} of {op['experts']:.0f} experts: set n_a to {op['experts']:.0f} or fewer too"
            )


def _check_parallelism(draft: Draft) -> None:
    """Raises ScenarioError where the parallelism does not fill the machine, or a rank of many would move to a lone device."""
    meta, hw, gpus = draft.run.meta, draft.hw, draft.gpus
    if meta.hardware == hw.name and draft.parallel == draft.ran:
        return
    if max(meta.tp, meta.ep, meta.gpus) > 1 and gpus != meta.gpus:
        raise ScenarioError(
            f"the recording is {_ranks(draft)} of {meta.gpus} GPUs (tp={meta.tp} ep={meta.ep}) and {hw.name} has {gpus}: it "
            f"can be replayed on a machine of {meta.gpus} GPUs"
        )
    if gpus == meta.gpus and draft.parallel == draft.ran:
        return
    if problem := draft.parallel.problem(gpus, hw.name):
        raise ScenarioError(problem)
    if draft.parallel.ep > 1 and not draft.experts:
        raise ScenarioError(
            f"ep={draft.parallel.ep}: the recording holds no expert op with its dims, so there is nothing to share out"
        )


def _ranks(draft: Draft) -> str:
    here = np.unique(draft.run.numpy("rank")).size
    return "one rank" if here < 2 else f"all {here} ranks" if here == draft.run.meta.gpus else f"{here} ranks"


def _source(run: Run, hw: Hardware) -> Hardware | None:
    """The machine whose measurement anchors a prediction on `hw`; None if none does."""
    meta = run.meta
    if meta.kind != "measured" or meta.hardware is None or meta.device_class != hw.device_class:
        return None
    return hw if meta.hardware == hw.name else load_hardware(meta.hardware)


def context_of(draft: Draft, need: memory.Need) -> PriceContext:
    """What the law of the draft's machine must know beside the ops. Raises ScenarioError for a wafer and a model of no size."""
    if draft.hw.device_class != "wafer":
        return PriceContext(engine=str(draft.scenario.get("engine", ANY_ENGINE)))
    if not need.model_bytes:
        raise ScenarioError(
            f"{draft.hw.name}: how many bytes the model takes is not known; parse with --model"
        )
    depth = max(1, draft.layers, draft.model.layers if draft.model else 0)
    return PriceContext(
        need.model_bytes,
        depth,
        str(draft.scenario.get("placement", "spread")),
        token_flops=2.0 * draft.model.active_params(embedding=False) if draft.model else 0.0,
    )


def launch_s(draft: Draft, source: Hardware | None) -> float:
    """Host time per kernel where the replay launches one by one and the recording does not say how; 0 otherwise.

    Raises ScenarioError where a recording's own launches are to be kept and they are those of a graph.
    """
    if draft.scenario.get("graph") != "off":
        return 0.0
    if source is not None and (draft.run.numpy("graph") >= 0).any():
        raise ScenarioError(
            "graph=off: the recording replays a graph, and kernels that a compiler fused into it would not be there in eager "
            "mode; simulate the model"
        )
    return 0.0 if source is not None else schedule.HOST_LAUNCH_S


def crossing_ns(draft: Draft, need: memory.Need) -> list[int]:
    """ns that each step spends between wafers."""
    if draft.hw.device_class != "wafer" or not need.wafers:
        return [0] * len(draft.steps)
    hidden = draft.model.hidden if draft.model else 0
    sent = ((step.tokens or step.batch or 0) * hidden * 2.0 for step in draft.steps)
    return [round(crossings_s(draft.hw, need.wafers, nbytes) * 1e9) for nbytes in sent]


def _timeline(draft: Draft) -> tuple[schedule.Timeline, IntArray]:
    """(the recorded order in time, measured duration of each row of the draft)."""
    base, run = draft.base, draft.run
    stream, launch, graph = (
        run.numpy(n).astype(np.int64)[base.row] for n in ("stream", "launch_ns", "graph")
    )
    line = schedule.measure(base.segment, base.start, base.dur, stream, launch, graph)
    return line, base.dur[draft.rows]


def _first_rows(draft: Draft) -> IntArray:
    """The first base row of each segment."""
    return np.flatnonzero(np.diff(draft.base.segment, prepend=-1))


def _per_step(draft: Draft, spans: IntArray) -> IntArray:
    """ns of each step: that of its slowest rank; 0 for a step without ops."""
    out = np.zeros(len(draft.steps), dtype=np.int64)
    np.maximum.at(out, draft.base.step[_first_rows(draft)], spans)
    return out


def _begins(draft: Draft, spans: IntArray, gaps: bool, whole: _Whole) -> IntArray:
    """Start of each segment in ns: as recorded, moved by what earlier steps gained or lost; without gaps one after another."""
    base, first = draft.base, _first_rows(draft)
    step, starts = base.step[first], base.start[first]
    gained = _per_step(draft, spans)
    if gaps:
        ends = np.maximum.reduceat(base.start + base.dur, first)
        gained = gained - _per_step(draft, ends - starts)
    elif whole.origin is None:
        whole.origin = int(starts.min())
    moved = whole.gained + np.concatenate([[0], np.cumsum(gained)[:-1]])[step]
    whole.gained += int(gained.sum())
    return np.asarray((starts if gaps else whole.origin) + moved)


def _steps(draft: Draft, begin: IntArray, spans: IntArray) -> tuple[Step, ...]:
    """The edited steps at their new times; a step without ops keeps its own."""
    first = draft.base.step[_first_rows(draft)]
    out = []
    for i, step in enumerate(draft.steps):
        mine = np.flatnonzero(first == i)
        if mine.size:
            low, high = int(begin[mine].min()), int((begin[mine] + spans[mine]).max())
            step = replace(step, start_ns=low, end_ns=high)
        out.append(step)
    return tuple(out)


def _meta(draft: Draft, steps: tuple[Step, ...], assumptions: tuple[str, ...], context: PriceContext) -> Meta:
    meta, hw = draft.run.meta, draft.hw
    facts = {
        **dict(meta.facts),
        "scenario": draft.scenario.texts(),
        "price_context": asdict(context),  # so that attribution prices the run as the replay did
        "measured_on": meta.hardware or meta.device,
    }
    return replace(
        meta,
        kind="predicted",
        steps=steps,
        model=draft.model,
        device=hw.title,
        device_class=hw.device_class,
        hardware=hw.name,
        gpus=draft.gpus,
        tp=draft.parallel.tp,
        ep=draft.parallel.ep,
        pp=draft.parallel.pp,
        dp=draft.parallel.dp,
        notes=assumptions,
        facts=facts,
    )


def _keeps_routing(scenario: Scenario) -> bool:
    """Whether the recorded routing is that of the predicted run too."""
    return not {"n_a", "n_e", "prune_inter", "batch", "layers"} & set(scenario.texts())


def _table(draft: Draft, priced: Priced, start: IntArray, dur: IntArray) -> pa.Table:
    """The predicted op table; launch times and graphs are the recording's and are left out."""
    run, rows = draft.run, draft.base.row[draft.rows]
    kept = ("rank", "device", "stream", "step", "phase", "op_source", "layer_source")
    columns: dict[str, pa.Array] = {n: run.column(n).take(numbers(rows)).combine_chunks() for n in kept}
    layer = np.array([at.layer for at in draft.at], dtype=np.int64)[draft.cell]
    code, kernels = run.codes("kernel")
    kinds = sorted({draft.ops[i].kind for i in np.unique(draft.cell[draft.inserted]).tolist()})
    own = np.array([kinds.index(op.kind) if op.kind in kinds else 0 for op in draft.ops], dtype=np.int64)[
        draft.cell
    ]
    code = np.where(draft.inserted, len(kernels) + own, code[rows])
    distinct = list(dict.fromkeys(draft.ops))
    place = {op: i for i, op in enumerate(distinct)}
    index = np.array([place[op] for op in draft.ops], dtype=np.int64)
    words = list(dict.fromkeys(priced.provenance))
    told = np.array([words.index(p) for p in priced.provenance], dtype=np.int64)[draft.cell]
    error = priced.error[draft.cell]
    return ops_table(
        {
            **columns,
            "layer": nullable(layer, layer < 0, pa.int32()),
            "kernel": text_column(code, [*kernels, *(kind + _ADDED for kind in kinds)]),
            "start_ns": numbers(start),
            "dur_ns": numbers(dur),
            **record_columns(distinct, index[draft.cell], dur),
            "error": nullable(error, np.isnan(error), pa.float64()),
            "provenance": text_column(told, words),
        }
    )
