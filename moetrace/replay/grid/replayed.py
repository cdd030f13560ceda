"""Replays of one run, many together: their drafts are edited one by one and then priced, laid out and summed up as one.

A draft of many scenarios is their rows behind one another, each scenario's steps and ranks its own: whatever `replay` does
with arrays of rows is done once for all of them. Together are those of one machine whose ops are priced and laid out alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost import PriceContext
from moetrace.cost.beyond import beyond, said
from moetrace.errors import MoetraceError, ScenarioError
from moetrace.hardware import Hardware
from moetrace.op import BOUNDS, Op
from moetrace.replay import memory
from moetrace.replay.anchor import ADDED, MODEL, SCALED, Held
from moetrace.replay.base import Base
from moetrace.replay.copies import copy_error
from moetrace.replay.draft import Draft
from moetrace.replay.edited_again import check_again
from moetrace.replay.editing import check_parallelism, fused, turned
from moetrace.replay.engine import replay
from moetrace.replay.launching import launch_s
from moetrace.replay.lengths import context_facts
from moetrace.replay.outcome import focus_of, measured_ns, produced, rests_on_measurement, routing_said
from moetrace.replay.parallel import Share
from moetrace.replay.predicted import per_step
from moetrace.replay.scenario import Scenario, machine_of
from moetrace.replay.setting import context_of, crossing_ns, source_of
from moetrace.replay.timed import Timed, timed
from moetrace.replay.unfused import unrolled
from moetrace.run import Run

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
NEEDED = ("needed_bytes", "largest_batch", "fits", "wafers")
_MOST_ROWS = 1 << 20  # of a run times scenarios, worked out at once


@dataclass(frozen=True, slots=True)
class Edited:
    """A scenario's draft, and what its machine must know of it."""

    draft: Draft
    need: memory.Need
    context: PriceContext
    crossing: IntArray


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay says of a scenario: its memory, a step of the phase that is asked after (figures by their column),
    whether the model is made for such sequences, where its distinct experts come from, what lies beyond the fit, and (family,
    bound, busy seconds of a step) of each op family, largest first."""

    memory: Mapping[str, Any]
    gpus: int
    phase: str
    step: Mapping[str, float | None]
    in_context: bool | None
    routing_source: str | None
    beyond_fit: str
    families: tuple[tuple[str, str, float], ...]


class Replayer:
    """Replays of a run. What all scenarios begin with is made once for each kind of machine.

    A run so long that it is read in parts is replayed for each scenario apart.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.begun: dict[tuple[str, Any], Draft] = {}

    def of(self, pairs: Sequence[tuple[Hardware, Scenario]]) -> list[Replayed | str]:
        """The replay of each pair, or why it cannot be."""
        if next(iter(self.run.parts())) is not self.run:
            return [_alone(self.run, hw, scenario) for hw, scenario in pairs]
        out: list[Replayed | str] = [""] * len(pairs)
        alike: dict[tuple[Any, ...], list[tuple[int, Edited]]] = {}
        for place, (hw, scenario) in enumerate(pairs):
            try:
                made = self._edited(machine_of(hw, scenario), scenario)
            except MoetraceError as error:
                out[place] = str(error)
                continue
            draft = made.draft
            alike_context = replace(made.context, model_bytes=0.0, beside_bytes=0.0)
            pace = launch_s(draft, source_of(self.run, draft.hw))
            launched = (draft.parallel, *pace.tolist()) if pace.any() else ()
            key = (draft.hw.name, alike_context, launched, bool(draft.shares))
            alike.setdefault(key, []).append((place, made))
        for group in alike.values():
            for some in _cut(group):
                found = _answered([made for _, made in some])
                for (place, _), one in zip(some, found, strict=True):
                    out[place] = one
        return out

    def _edited(self, hw: Hardware, scenario: Scenario) -> Edited:
        key = hw.device_class, scenario.get("fusion")
        begun = self.begun.get(key)
        draft = Draft.of(self.run, hw, scenario) if begun is None else begun
        draft = replace(draft, hw=hw, scenario=scenario)
        check_parallelism(draft)
        check_again(draft)
        if begun is None:
            draft = self.begun[key] = fused(draft)
        draft = unrolled(turned(draft))
        need = memory.need(draft)
        context = context_of(draft, need)
        launch_s(draft, source_of(self.run, hw))  # which says why a recording cannot be launched so
        return Edited(draft, need, context, np.array(crossing_ns(draft, need), dtype=np.int64))


def _alone(run: Run, hw: Hardware, scenario: Scenario) -> Replayed | str:
    """The replay of a run that is read in parts."""
    try:
        found = replay(run, hw, scenario)
    except MoetraceError as error:
        return str(error)
    said, phases = found.summary, found.summary["phases"]
    phase = "decode" if "decode" in phases else next(iter(phases))
    step = {
        f"step_{name}" if name in ("low_s", "high_s") else name: phases[phase][name] for name in phases[phase]
    }
    families = tuple((part["family"], part["bound"], part["step_s"]) for part in said["families"])
    step["anchored_share"] = said["anchored_share"]
    return Replayed(
        {name: {**said["memory"], "wafers": said["wafers"]}[name] for name in NEEDED},
        found.run.meta.gpus, phase, step, said["context"]["within"],
        said["distinct"]["source"] if said["distinct"] else None, said["beyond_fit"], families,
    )  # fmt: skip


def _cut(group: Sequence[tuple[int, Edited]]) -> Iterator[Sequence[tuple[int, Edited]]]:
    """The group in parts of bounded rows."""
    rows = max(made.draft.rows.size + made.draft.base.row.size for _, made in group)
    size = max(1, _MOST_ROWS // rows)
    for start in range(0, len(group), size):
        yield group[start : start + size]


def _answered(made: Sequence[Edited]) -> list[Replayed | str]:
    """The replays of drafts that are priced alike, or why one cannot be; that one is found by halves."""
    try:
        return list(_together(made))
    except ScenarioError as error:
        if len(made) == 1:
            return [str(error)]
    return [*_answered(made[: len(made) // 2]), *_answered(made[len(made) // 2 :])]


def _together(made: Sequence[Edited]) -> list[Replayed]:
    """The replays of drafts that are priced and laid out alike."""
    draft = _behind_one_another([one.draft for one in made])
    source, context = source_of(draft.run, draft.hw), made[0].context
    copies = np.concatenate([copy_error(one.draft)[0] for one in made])
    crossing = np.concatenate([one.crossing for one in made])
    found = timed(draft, source, context, crossing, copies, _held(made) if draft.hw.law == "wafer" else None)
    seconds = _by_family(made, draft, found)
    texts = _beyond(made, draft, found, context)
    steps = _steps(made, draft, found)
    anchored = _anchored(made, draft, found, source)
    out = []
    for one, (phase, step), share, text, families in zip(made, steps, anchored, texts, seconds, strict=True):
        held = {name: getattr(one.need, name) for name in NEEDED}
        within = context_facts(one.draft.model, one.draft.steps)["within"]
        step["anchored_share"] = share
        routed = routing_said(_in_focus(one.draft), one.draft)
        out.append(Replayed(held, one.draft.gpus, phase, step, within, routed, text, families))
    return out


def _in_focus(draft: Draft) -> Iterator[Op]:
    """The ops of the run's main phase of generation, or of all steps; each once."""
    focus = focus_of(draft.run)
    step = draft.base.step[draft.rows]
    here = np.array([focus is None or s.phase == focus for s in draft.steps])[step]
    return (draft.ops[cell] for cell in np.unique(draft.cell[here]).tolist())


def _held(made: Sequence[Edited]) -> Held:
    """Bytes of the model, and of one beside it, in each cell's scenario."""
    sizes = [len(one.draft.ops) for one in made]
    own, other = ([getattr(one.context, name) for one in made] for name in ("model_bytes", "beside_bytes"))
    return np.repeat(own, sizes), np.repeat(other, sizes)


def _behind_one_another(drafts: Sequence[Draft]) -> Draft:
    """One draft of the rows of all: of one run and machine, with steps and ranks of their own."""
    first, count = drafts[0], len(drafts)
    base, steps = first.base, len(first.steps)
    rows, segments = base.row.size, int(base.segment[-1]) + 1

    def tiled(values: IntArray, stride: int = 0) -> IntArray:
        return (values + stride * np.arange(count)[:, None]).reshape(-1)

    whole = Base(
        tiled(base.row), tiled(base.step, steps), tiled(base.segment, segments), tiled(base.layer), tiled(base.op),
        tiled(base.start), tiled(base.dur), base.ops, base.outside * count,
    )  # fmt: skip
    cells = np.cumsum([0, *(len(draft.ops) for draft in drafts)])
    shares = [draft.shares or (Share(1),) * steps for draft in drafts] if first.shares else []
    return replace(
        first,
        base=whole,
        ops=tuple(op for draft in drafts for op in draft.ops),
        origin=tuple(op for draft in drafts for op in draft.origin),
        at=tuple(at for draft in drafts for at in draft.at),
        rows=np.concatenate([draft.rows + i * rows for i, draft in enumerate(drafts)]),
        cell=np.concatenate([draft.cell + first_of for draft, first_of in zip(drafts, cells, strict=False)]),
        inserted=np.concatenate([draft.inserted for draft in drafts]),
        steps=tuple(step for draft in drafts for step in draft.steps),
        shares=tuple(share for own in shares for share in own),
    )


def _steps(
    made: Sequence[Edited], draft: Draft, found: Timed
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """(phase, figures of a step) of each scenario: medians over its steps, decode where there is any."""
    run, steps = draft.run, made[0].draft.steps
    span, low, high = (per_step(draft, ns) for ns in (found.spans, found.low, found.high))
    idle = np.clip(1.0 - found.busy / np.maximum(span, 1), 0.0, 1.0)
    measured = measured_ns(made[0].draft)
    phases = [step.phase or "unknown" for step in steps]
    seen = np.flatnonzero(measured >= 0).tolist()
    phase = "decode" if "decode" in (phases[i] for i in seen) else phases[seen[0]]
    mine = [i for i in seen if phases[i] == phase]
    columns = (span / 1e9, low / 1e9, high / 1e9, idle)
    medians = np.array([np.median(column.reshape(len(made), -1)[:, mine], axis=1) for column in columns])
    was = float(np.median(measured[mine])) / 1e9 if run.meta.kind == "measured" else None
    told = phase != "decode" or run.meta.step_is_token
    for one, (step_s, low_s, high_s, idle_share) in zip(made, medians.T.tolist(), strict=True):
        tokens = [produced(one.draft, i) or 0 for i in mine]
        rate = float(np.median(tokens)) / step_s if told and all(tokens) and step_s > 0 else None
        yield phase, {
            "step_s": step_s, "step_low_s": low_s, "step_high_s": high_s, "measured_s": was, "idle_share": idle_share,
            "tpot_s": step_s if phase == "decode" and told else None, "tokens_per_s": rate,
        }  # fmt: skip


def _of_scenario(made: Sequence[Edited], by_cell: bool = False) -> IntArray:
    """Which scenario each row (or cell) of the draft of all belongs to."""
    sizes = [len(one.draft.ops) if by_cell else one.draft.rows.size for one in made]
    return np.repeat(np.arange(len(made)), sizes)


def _anchored(made: Sequence[Edited], draft: Draft, found: Timed, source: Hardware | None) -> list[float]:
    """Share of each scenario's busy time whose ops rest on their own measurement."""
    fine = rests_on_measurement(found.priced, source, draft.hw)[draft.cell]
    scenario, count = _of_scenario(made), len(made)
    total = np.bincount(scenario, found.dur, count)
    own = np.bincount(scenario, np.where(fine, found.dur, 0), count)
    none = 1.0 if source is not None else 0.0
    return [a / b if b else none for a, b in zip(own.tolist(), total.tolist(), strict=True)]


def _by_family(
    made: Sequence[Edited], draft: Draft, found: Timed
) -> Iterator[tuple[tuple[str, str, float], ...]]:
    """(family, what bounds most of it, busy seconds of a mean step) of each scenario, largest first; in the run's main
    phase of generation, or in all steps."""
    steps = made[0].draft.steps
    focus = focus_of(draft.run)
    in_focus = np.array([focus is None or step.phase == focus for step in steps])
    here = in_focus[draft.base.step[draft.rows] % len(steps)]
    names = list(dict.fromkeys(work_of.family(op.kind) for op in draft.ops))
    family = np.array([names.index(work_of.family(op.kind)) for op in draft.ops], dtype=np.int64)
    code = (
        (_of_scenario(made, by_cell=True) * len(names) + family) * (len(BOUNDS) + 1) + found.priced.bound + 1
    )
    size = len(made) * len(names) * (len(BOUNDS) + 1)
    busy = np.bincount(code[draft.cell[here]], found.dur[here], size) / 1e9
    table = busy.reshape(len(made), len(names), -1)
    segments = np.unique(draft.base.segment[draft.rows[here]]).size / len(made)
    words = ("unknown", *BOUNDS)
    for one, sums in zip(made, table, strict=True):
        by_bound = {
            name: dict(zip(words, own, strict=True)) for name, own in zip(names, sums.tolist(), strict=True)
        }
        if one.crossing.any():
            sent = by_bound.setdefault("communication", dict.fromkeys(words, 0.0))
            sent["network"] += float(one.crossing[in_focus].sum()) / 1e9
        rows = [
            (name, max(own.items(), key=lambda part: part[1])[0], sum(own.values()) / max(1.0, segments))
            for name, own in by_bound.items()
        ]
        yield tuple(sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2]))


def _beyond(made: Sequence[Edited], draft: Draft, found: Timed, context: PriceContext) -> list[str]:
    """What of each scenario's priced ops lies beyond the fit, by phase."""
    cells = len(draft.ops)
    priced = np.isin(found.priced.how, (SCALED, ADDED, MODEL))[draft.cell]
    phases = [step.phase or "unknown" for step in draft.steps]
    names = sorted(set(phases))
    phase = np.array([names.index(name) for name in phases], dtype=np.int64)[draft.base.step[draft.rows]]
    occurs = np.unique(phase[priced] * cells + draft.cell[priced])
    distinct = list(dict.fromkeys(draft.ops))
    place = {op: i for i, op in enumerate(distinct)}
    of_cell = np.array([place[op] for op in draft.ops], dtype=np.int64)
    at_phase, cell = np.divmod(occurs, cells)
    scenario = _of_scenario(made, by_cell=True)[cell]
    reasons: list[dict[str, list[str]]] = [{} for _ in made]
    for reason, which in beyond(work_of.works(distinct), draft.hw, context):
        hit = which[of_cell[cell]]
        for one, at in np.unique(np.stack([scenario[hit], at_phase[hit]]), axis=1).T.tolist():
            told = reasons[one].setdefault(names[at], [])
            if reason not in told:
                told.append(reason)
    return [said(own) for own in reasons]
