"""What became of one part of a run that is replayed, and what can be said of it alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.cost import PriceContext
from moetrace.hardware import Hardware
from moetrace.model.accuracy import edited_accuracy
from moetrace.op import Op
from moetrace.replay.anchor import ANCHORED, KEPT, Priced
from moetrace.replay.distinct import stated_before
from moetrace.replay.draft import EXPERTS, Draft
from moetrace.replay.memory import Need
from moetrace.run import GENERATING, Run, main_phase

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
UNIFORM = "uniform formula"  # in the words for where distinct experts come from, where no routing was known


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a summary is made of. `dur` is ns by row, of which `wait` is waiting for other ranks and `was` what that was as
    recorded; `span`, `low`, `high`, `busy` and `ahead` (of `Timed`) ns by step."""

    draft: Draft
    priced: Priced
    source: Hardware | None
    dur: IntArray
    wait: IntArray
    was: IntArray
    span: IntArray
    low: IntArray
    high: IntArray
    busy: IntArray
    ahead: FloatArray
    need: Need
    context: PriceContext
    assumptions: tuple[str, ...]


def accuracy_of(draft: Draft) -> list[dict[str, float | str]]:
    """What was published of the accuracy that each edit of the scenario costs, edits taken one by one."""
    model = draft.run.meta.model
    texts = draft.scenario.texts()
    if "prune_inter" in texts and model is not None:
        texts["n_e"] = str(draft.experts)
    found = (
        edited_accuracy(model.name if model else None, knob, texts[knob])
        for knob in ("n_a", "n_e")
        if knob in texts
    )
    return [point for point in found if point is not None]


def produced(draft: Draft, step: int) -> int | None:
    """Tokens that a step yields: one per sequence in decode, the prompt tokens it works through otherwise.

    None where drafts are made or verified: how many are accepted is not told.
    """
    said = draft.steps[step]
    if said.phase in ("verify", "draft"):
        return None
    return draft.batch_of(step) if said.phase == "decode" else said.tokens


def measured_ns(draft: Draft) -> IntArray:
    """ns of each recorded step, first start to last end of its ops; -1 for a step without ops."""
    base, size = draft.base, len(draft.steps)
    first, last = np.full(size, np.iinfo(np.int64).max), np.full(size, -1, dtype=np.int64)
    np.minimum.at(first, base.step, base.start)
    np.maximum.at(last, base.step, base.start + base.dur)
    seen = np.bincount(base.step, minlength=size) > 0
    return np.where(seen, last - np.where(seen, first, 0), -1)


def anchored_share(o: Outcome) -> float:
    """Share of the predicted busy time whose ops rest on their own measurement."""
    if o.source is None:
        return 0.0
    fine = rests_on_measurement(o.priced, o.source, o.draft.hw)
    total = int(o.dur.sum())
    return float(o.dur[fine[o.draft.cell]].sum()) / total if total else 1.0


def rests_on_measurement(priced: Priced, source: Hardware | None, hw: Hardware) -> npt.NDArray[np.bool_]:
    """Which cells rest on their own measurement."""
    if source is None:
        return np.zeros(priced.how.size, dtype=bool)
    fine = np.isin(priced.how, ANCHORED)
    return fine | (priced.how == KEPT) if source.chip == hw.chip else fine


def focus_of(run: Run) -> str | None:
    """The phase of generation that most steps are in; None where they do not generate."""
    main = main_phase(s.phase or "unknown" for s in run.meta.steps)
    return main if main in GENERATING else None


def routing_said(ops: Iterable[Op], draft: Draft) -> str | None:
    """Where the distinct experts of these ops come from, in words; None where none has experts."""
    found = {
        routing_source(op, draft) for op in ops if op.kind in EXPERTS and op.has("experts", "topk", "tokens")
    }
    return " and ".join(sorted(found)) or None


def routing_source(op: Op, draft: Draft) -> str:
    """Where the distinct experts of an expert op come from, in words."""
    if op.get("distinct") is not None:
        return "counted"
    stated = draft.scenario.get("routing")
    if stated is None and (before := stated_before(draft)):
        stated = before[0]
    if stated not in (None, "recorded"):
        return f"routing={stated}"
    if op.get("distinct_est") is None:
        return UNIFORM
    if draft.run.routing is not None:
        return "estimate from the recording"
    return "as it was predicted" if draft.run.meta.kind == "predicted" else f"{UNIFORM}, worst rank"
