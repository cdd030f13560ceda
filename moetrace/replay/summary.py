"""The JSON-able summary of a prediction, schema ``moetrace.replay/1``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.hardware import Hardware
from moetrace.model.accuracy import edited_accuracy
from moetrace.op import BOUNDS, Op
from moetrace.replay.anchor import ANCHORED, KEPT, Priced, chip
from moetrace.replay.draft import Draft
from moetrace.replay.memory import Need
from moetrace.replay.parallel import NAMES

IntArray = npt.NDArray[np.int64]
SCHEMA = "moetrace.replay/1"
# Above this share of the predicted time, a prediction is called anchored without more words.
_WHOLLY = 0.9995


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a summary is made of. `dur` is ns by row; `span`, `low`, `high`, `busy` ns by step."""

    draft: Draft
    priced: Priced
    source: Hardware | None
    dur: IntArray
    span: IntArray
    low: IntArray
    high: IntArray
    busy: IntArray
    need: Need
    assumptions: tuple[str, ...]


def summarise(o: Outcome, crossing_ns: IntArray) -> dict[str, Any]:
    """The summary. Times in seconds; `low_s` and `high_s` bound the 80 % interval, all ops' errors taken together.

    `crossing_ns` [steps] is what each step spends between wafers.
    """
    share = _anchored_share(o)
    word = "unanchored" if o.source is None else "anchored" if share > _WHOLLY else "partly"
    return {
        "schema": SCHEMA,
        "hardware": o.draft.hw.name,
        "scenario": o.draft.scenario.texts(),
        "label": o.draft.scenario.label,
        "phases": _phases(o),
        "parallel": {name: getattr(o.draft.parallel, name) for name in NAMES},
        "anchored_share": share,
        "anchored": word,
        "families": _families(o, crossing_ns),
        "distinct": _distinct(o),
        "memory": {
            "weight_bytes": o.need.weight_bytes,
            "kv_bytes": o.need.kv_bytes,
            "framework_bytes": o.need.framework_bytes,
            "needed_bytes": o.need.needed_bytes,
            "capacity_bytes": o.need.capacity_bytes,
            "fits": o.need.fits,
            "rank": dict(o.need.rank),
            "rank_capacity_bytes": o.draft.hw.memory.capacity_bytes,
            "largest_batch": o.need.largest_batch,
        },
        "wafers": o.need.wafers,
        "accuracy": _accuracy(o.draft),
        "assumptions": list(o.assumptions),
    }


def _accuracy(draft: Draft) -> list[dict[str, float | str]]:
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


def _phases(o: Outcome) -> dict[str, Any]:
    """By phase (``unknown`` where the trace does not say): medians over its steps."""
    measured = _measured(o.draft)
    phases: dict[str, list[int]] = {}
    for i, step in enumerate(o.draft.steps):
        if measured[i] >= 0:
            phases.setdefault(step.phase or "unknown", []).append(i)
    out: dict[str, Any] = {}
    for phase, steps in phases.items():
        step_s, low_s, high_s, was_s = (_median_s(x[steps]) for x in (o.span, o.low, o.high, measured))
        idle = np.clip(1.0 - o.busy[steps] / np.maximum(o.span[steps], 1), 0.0, 1.0)
        tokens = [_produced(o.draft, i) for i in steps]
        known = [t for t in tokens if t]
        rate = float(np.median(known)) / step_s if len(known) == len(tokens) and step_s > 0 else None
        out[phase] = {
            "steps": len(steps),
            "step_s": step_s,
            "low_s": low_s,
            "high_s": high_s,
            "idle_share": float(np.median(idle)),
            "measured_s": was_s if o.draft.run.meta.kind == "measured" else None,
            "tokens_per_s": rate,
            "tpot_s": step_s if phase == "decode" else None,
        }
    return out


def _produced(draft: Draft, step: int) -> int | None:
    """Tokens that a step yields: one per sequence in decode, the prompt tokens it works through otherwise."""
    said = draft.steps[step]
    return draft.batch_of(step) if said.phase == "decode" else said.tokens


def _median_s(ns: IntArray) -> float:
    return float(np.median(ns)) / 1e9


def _measured(draft: Draft) -> IntArray:
    """ns of each recorded step, first start to last end of its ops; -1 for a step without ops."""
    base, size = draft.base, len(draft.steps)
    first, last = np.full(size, np.iinfo(np.int64).max), np.full(size, -1, dtype=np.int64)
    np.minimum.at(first, base.step, base.start)
    np.maximum.at(last, base.step, base.start + base.dur)
    seen = np.bincount(base.step, minlength=size) > 0
    return np.where(seen, last - np.where(seen, first, 0), -1)


def _anchored_share(o: Outcome) -> float:
    """Share of the predicted busy time whose ops rest on their own measurement."""
    if o.source is None:
        return 0.0
    fine = np.isin(o.priced.how, ANCHORED)
    if chip(o.source) == chip(o.draft.hw):
        fine |= o.priced.how == KEPT
    total = int(o.dur.sum())
    return float(o.dur[fine[o.draft.cell]].sum()) / total if total else 1.0


def _in_focus(draft: Draft) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """(rows of decode steps, else of all; which steps they are)."""
    steps = np.unique(draft.base.step)
    decode = [i for i in steps.tolist() if draft.steps[i].phase == "decode"] or steps.tolist()
    return np.isin(draft.base.step[draft.rows], decode), decode


def _families(o: Outcome, crossing_ns: IntArray) -> list[dict[str, Any]]:
    """Busy seconds of a mean decode step by family, largest first, each with what bounds most of its time."""
    rows, steps = _in_focus(o.draft)
    busy = np.bincount(o.draft.cell[rows], o.dur[rows], len(o.draft.ops)) / 1e9 / len(steps)
    found: dict[str, dict[str, float]] = {}
    for op, bound, seconds in zip(o.draft.ops, o.priced.bound.tolist(), busy.tolist(), strict=True):
        word = BOUNDS[bound] if bound >= 0 else "unknown"
        by_bound = found.setdefault(work_of.family(op.kind), {})
        by_bound[word] = by_bound.get(word, 0.0) + seconds
    if crossing_ns.any():
        by_bound = found.setdefault("communication", {})
        by_bound["network"] = by_bound.get("network", 0.0) + float(crossing_ns[steps].mean()) / 1e9
    total = sum(sum(parts.values()) for parts in found.values()) or 1.0
    table: list[dict[str, Any]] = []
    for family, parts in found.items():
        seconds, bound = sum(parts.values()), max(parts.items(), key=lambda part: part[1])[0]
        if seconds > 0:
            table.append({"family": family, "step_s": seconds, "share": seconds / total, "bound": bound})
    return sorted(table, key=lambda row: -float(row["step_s"]))


def _distinct(o: Outcome) -> dict[str, Any] | None:
    """Experts, n_a and mean distinct experts per MoE layer and decode step on one rank, and their source; None if dense."""
    rows, _ = _in_focus(o.draft)
    count = np.bincount(o.draft.cell[rows], minlength=len(o.draft.ops))
    ops = [
        (op, int(n))
        for op, n in zip(o.draft.ops, count.tolist(), strict=True)
        if n and op.has("experts", "topk", "tokens")
    ]
    for kinds in (("moe_gate_up", "moe_experts"), ("moe_down",)):
        chosen = [(op, n) for op, n in ops if op.kind in kinds and op.has("hidden")]
        if chosen:
            break
    else:
        return None
    total = sum(n for _, n in chosen)
    return {
        "experts": max(int(op["experts"]) for op, _ in chosen),
        "topk": sum(op["topk"] * n for op, n in chosen) / total,
        "mean_distinct": sum(work_of.distinct_experts(op)[0] * n for op, n in chosen) / total,
        "source": " and ".join(sorted({_source(op, o.draft) for op, _ in chosen})),
    }


def _source(op: Op, draft: Draft) -> str:
    if op.get("distinct") is not None:
        return "counted"
    stated = draft.scenario.get("routing")
    if stated not in (None, "recorded"):
        return f"routing={stated}"
    if op.get("distinct_est") is None:
        return "uniform formula"
    return "estimate from the recording" if draft.run.routing is not None else "uniform formula, worst rank"
