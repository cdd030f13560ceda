"""The JSON-able summary of a prediction, schema ``moetrace.replay/1``."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost.beyond import beyond, said
from moetrace.errors import ScenarioError
from moetrace.op import BOUNDS, Op
from moetrace.replay.anchor import ADDED, MODEL, SCALED
from moetrace.replay.draft import Draft
from moetrace.replay.lengths import context_facts, too_long
from moetrace.replay.memory import Need
from moetrace.replay.outcome import (
    Outcome,
    accuracy_of,
    anchored_share,
    focus_of,
    measured_ns,
    produced,
    routing_source,
)
from moetrace.replay.parallel import NAMES
from moetrace.run import Run

IntArray = npt.NDArray[np.int64]
SCHEMA = "moetrace.replay/1"
EXTRAPOLATED = "extrapolated beyond the fit, times and intervals alike: "
# Above this share of the predicted time, a prediction is called anchored without more words.
_WHOLLY = 0.9995
_NUMBER = re.compile(r"[\d.,]+")


class Tally:
    """All that a summary says, added up part by part; a part holds whole steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._focus = focus_of(run)
        self._first: Outcome | None = None
        self._need: Need | None = None
        self._said: dict[str, str] = {}  # by the text without its numbers
        self._anchored = self._total = 0.0
        # By phase, in ns: span, low, high, measured; idle, tokens.
        self._steps: dict[str, list[tuple[float, ...]]] = {}
        self._busy: dict[str, dict[str, float]] = {}
        self._in_focus = 0  # steps, each as often as it has ranks
        # Steps, ns of ops, of waiting, of waiting as recorded.
        self._ranks: dict[int, npt.NDArray[np.float64]] = {}
        self._experts: Counter[tuple[Op, str]] = Counter()
        self._beyond: dict[str, dict[str, None]] = {}  # by phase: reasons

    def add(self, o: Outcome, crossing_ns: IntArray) -> None:
        """A part. `crossing_ns` [steps] is what each step spends between wafers."""
        self._first = self._first or o
        if self._need is None or (o.need.needed_bytes or 0) > (self._need.needed_bytes or 0):
            self._need = o.need
        for text in o.assumptions:
            self._said.setdefault(_NUMBER.sub("", text), text)
        total = float(o.dur.sum())
        self._anchored, self._total = self._anchored + anchored_share(o) * total, self._total + total
        self._add_steps(o)
        self._add_families(o, crossing_ns)
        self._add_ranks(o)
        self._add_distinct(o)
        self._add_beyond(o)

    @property
    def beyond_fit(self) -> str:
        """What lies beyond what the machine's coefficients were calibrated on, by phase, as text."""
        return said({phase: list(reasons) for phase, reasons in self._beyond.items()})

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the prediction takes for granted; of sentences that differ between parts only in numbers, the first."""
        beyond_fit = self.beyond_fit
        more = (EXTRAPOLATED + beyond_fit,) if beyond_fit else ()
        draft = self._first.draft if self._first else None
        long = too_long(draft.model, draft.steps) if draft else ""
        return (*self._said.values(), *((long,) if long else ()), *more)

    def summary(self) -> dict[str, Any]:
        """The summary. Times in seconds; `low_s` and `high_s` bound the 80 % interval, all ops' errors taken together."""
        o, need = self._first, self._need
        if o is None or need is None:
            raise ScenarioError("the run has no op inside a step, so there is nothing to replay")
        share = self._anchored / self._total if self._total else anchored_share(o)
        word = "unanchored" if o.source is None else "anchored" if share > _WHOLLY else "partly"
        return {
            "schema": SCHEMA,
            "hardware": o.draft.hw.name,
            "scenario": o.draft.scenario.texts(),
            "label": o.draft.scenario.label,
            "phases": self._phases(),
            "parallel": {name: getattr(o.draft.parallel, name) for name in NAMES},
            "anchored_share": share,
            "anchored": word,
            "families": self._families(),
            "distinct": self._distinct(),
            "ranks": self._rank_rows(),
            "memory": {
                "weight_bytes": need.weight_bytes,
                "kv_bytes": need.kv_bytes,
                "framework_bytes": need.framework_bytes,
                "needed_bytes": need.needed_bytes,
                "capacity_bytes": need.capacity_bytes,
                "fits": need.fits,
                "rank": dict(need.rank),
                "rank_capacity_bytes": o.draft.hw.memory.capacity_bytes,
                "largest_batch": need.largest_batch,
            },
            "wafers": need.wafers,
            "context": context_facts(o.draft.model, o.draft.steps),
            "accuracy": accuracy_of(o.draft),
            "beyond_fit": self.beyond_fit,
            "assumptions": list(self.assumptions),
        }

    def _add_steps(self, o: Outcome) -> None:
        measured = measured_ns(o.draft)
        idle = np.clip(1.0 - o.busy / np.maximum(o.span, 1), 0.0, 1.0)
        for i in np.flatnonzero(measured >= 0).tolist():
            ns = (o.span[i], o.low[i], o.high[i], measured[i], idle[i], produced(o.draft, i) or 0)
            self._steps.setdefault(o.draft.steps[i].phase or "unknown", []).append(ns)

    def _phases(self) -> dict[str, Any]:
        """By phase (``unknown`` where the trace does not say): medians over its steps."""
        out: dict[str, Any] = {}
        for phase, steps in self._steps.items():
            columns = np.array(steps, dtype=np.float64).T
            step_s, low_s, high_s, was_s = (float(np.median(column)) / 1e9 for column in columns[:4])
            tokens = columns[5]
            told = phase != "decode" or self._run.meta.step_is_token
            rate = float(np.median(tokens)) / step_s if told and tokens.all() and step_s > 0 else None
            out[phase] = {
                "steps": len(steps),
                "step_s": step_s,
                "low_s": low_s,
                "high_s": high_s,
                "idle_share": float(np.median(columns[4])),
                "measured_s": was_s if self._run.meta.kind == "measured" else None,
                "tokens_per_s": rate,
                "tpot_s": step_s if phase == "decode" and told else None,
            }
        return out

    def _rows(self, draft: Draft) -> tuple[npt.NDArray[np.bool_], list[int]]:
        """(rows of decode steps, else of verifying ones, else of all; which steps they are)."""
        steps = np.unique(draft.base.step).tolist()
        if self._focus:
            steps = [i for i in steps if draft.steps[i].phase == self._focus]
        return np.isin(draft.base.step[draft.rows], steps), steps

    def _add_families(self, o: Outcome, crossing_ns: IntArray) -> None:
        rows, steps = self._rows(o.draft)
        busy = np.bincount(o.draft.cell[rows], o.dur[rows], len(o.draft.ops)) / 1e9
        self._in_focus += np.unique(o.draft.base.segment[o.draft.rows[rows]]).size
        for op, bound, seconds in zip(o.draft.ops, o.priced.bound.tolist(), busy.tolist(), strict=True):
            word = BOUNDS[bound] if bound >= 0 else "unknown"
            by_bound = self._busy.setdefault(work_of.family(op.kind), {})
            by_bound[word] = by_bound.get(word, 0.0) + seconds
        if crossing_ns.any():
            by_bound = self._busy.setdefault("communication", {})
            by_bound["network"] = by_bound.get("network", 0.0) + float(crossing_ns[steps].sum()) / 1e9

    def _add_ranks(self, o: Outcome) -> None:
        at, base = np.flatnonzero(self._rows(o.draft)[0]), o.draft.base
        rank = o.draft.run.numpy("rank").astype(np.int64)[base.row[o.draft.rows[at]]]
        for number in np.unique(rank).tolist():
            mine = at[rank == number]
            steps = np.unique(base.segment[o.draft.rows[mine]]).size
            sums = [steps, *(float(x[mine].sum()) for x in (o.dur - o.wait, o.wait, o.was))]
            self._ranks[number] = self._ranks.get(number, np.zeros(4)) + np.array(sums)

    def _rank_rows(self) -> list[dict[str, Any]]:
        """By rank, of a mean step: seconds of its ops without waiting, of waiting for others, and of that as recorded; none for
        one rank."""
        if len(self._ranks) < 2:
            return []
        rows = []
        for rank, sums in sorted(self._ranks.items()):
            work, wait, was = (sums[1:] / max(1.0, sums[0]) / 1e9).tolist()
            rows.append({"rank": rank, "work_s": work, "wait_s": wait, "recorded_wait_s": was})
        return rows

    def _families(self) -> list[dict[str, Any]]:
        """Busy seconds of a mean decode step by family, largest first, each with what bounds most of its time."""
        total = sum(sum(parts.values()) for parts in self._busy.values()) or 1.0
        table: list[dict[str, Any]] = []
        for family, parts in self._busy.items():
            seconds, bound = sum(parts.values()), max(parts.items(), key=lambda part: part[1])[0]
            if seconds > 0:
                mean = seconds / max(1, self._in_focus)
                table.append({"family": family, "step_s": mean, "share": seconds / total, "bound": bound})
        return sorted(table, key=lambda row: -float(row["step_s"]))

    def _add_distinct(self, o: Outcome) -> None:
        rows, _ = self._rows(o.draft)
        count = np.bincount(o.draft.cell[rows], minlength=len(o.draft.ops)).tolist()
        for op, n in zip(o.draft.ops, count, strict=True):
            if n and op.has("experts", "topk", "tokens", "hidden"):
                self._experts[op, routing_source(op, o.draft)] += n

    def _add_beyond(self, o: Outcome) -> None:
        """Of the ops that the law prices, in each phase."""
        priced = np.isin(o.priced.how, (SCALED, ADDED, MODEL))[o.draft.cell]
        phases = [step.phase or "unknown" for step in o.draft.steps]
        names = sorted(set(phases))
        phase = np.array([names.index(name) for name in phases], dtype=np.int64)[
            o.draft.base.step[o.draft.rows]
        ]
        pairs = np.unique(phase[priced] * len(o.draft.ops) + o.draft.cell[priced])
        cells: dict[Op, set[str]] = {}
        for place, cell in zip(*(part.tolist() for part in np.divmod(pairs, len(o.draft.ops))), strict=True):
            cells.setdefault(o.draft.ops[cell], set()).add(names[place])
        works = work_of.works(list(cells))
        for reason, which in beyond(works, o.draft.hw, o.context):
            for own, inside in zip(cells.values(), which.tolist(), strict=True):
                for name in own if inside else ():
                    self._beyond.setdefault(name, {})[reason] = None

    def _distinct(self) -> dict[str, Any] | None:
        """Experts, n_a and mean distinct experts per MoE layer and decode step on one rank, and their source; None if dense."""
        for kinds in (("moe_gate_up", "moe_experts"), ("moe_down",)):
            chosen = [(op, source, n) for (op, source), n in self._experts.items() if op.kind in kinds]
            if chosen:
                break
        else:
            return None
        total = sum(n for _, _, n in chosen)
        return {
            "experts": max(int(op["experts"]) for op, _, _ in chosen),
            "topk": sum(op["topk"] * n for op, _, n in chosen) / total,
            "mean_distinct": sum(work_of.distinct_experts(op)[0] * n for op, _, n in chosen) / total,
            "source": " and ".join(sorted({source for _, source, _ in chosen})),
        }
