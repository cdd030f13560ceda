"""The steps of scenarios that go the same way: what their ops take, summed on each axis first and spread at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.cost.beyond import with_phase
from moetrace.replay import halves, memory
from moetrace.replay.anchor import LONGEST_NS
from moetrace.replay.columns import column, works_on
from moetrace.replay.families import IDLE
from moetrace.replay.grid.eager import OPS_AT, spans
from moetrace.replay.grid.load import spread
from moetrace.replay.grid.shape import Shape
from moetrace.replay.grid.times import Pricing, Times
from moetrace.replay.intervals import beside_ops, errs_by_family, together
from moetrace.replay.lanes import Axis
from moetrace.replay.launching import ahead_ns, launch_s
from moetrace.replay.setting import context_of, crossing_ns
from moetrace.replay.shares import UNHIDDEN, in_five, with_unhidden

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_SENT = "communication"


class Steps:
    """What the ops of a shape take, summed by step."""

    def __init__(self, shape: Shape, pricing: Any, beside: memory.Beside | None = None) -> None:
        draft, counted = shape.draft, shape.counted
        self.shape, self.space, self.count = shape, shape.space, counted.count
        self.need = memory.need(draft)
        context = context_of(draft, self.need, beside)
        held = (context.model_bytes, context.beside_bytes) if draft.hw.law == "wafer" else None
        if beside is not None:
            self.need = memory.joined(self.need, beside.need, draft.hw, draft.gpus)
        self.context = replace(context, model_bytes=0.0, beside_bytes=0.0)
        self.pricing: Pricing = pricing(draft.hw.law, self.context)
        self.placed = self.pricing.add(counted, held)
        self.family = np.array(counted.families)
        self.times = Times(np.zeros((3, 0)), np.zeros(0, dtype=np.int64), ())
        self.ahead_s = np.zeros((len(draft.steps), self.space.size))  # as of a `Prediction`
        self.both_launched = np.zeros((len(draft.steps), 5, self.space.size))
        self.too_long = np.zeros(0, dtype=np.bool_)  # scenarios of which no whole ns hold the times

    def price(self) -> None:
        """Takes the times of the ops, once all are gathered."""
        self.times = self.pricing.on(self.shape.draft.hw, self.context)
        names = sorted(set(self.family.tolist()))
        place = np.array([names.index(name) for name in self.family.tolist()])
        by_family = self._summed(place, len(names), self.count)
        self.of_family = {name: by_family[:, i].transpose(1, 0, 2) for i, name in enumerate(names)}
        self.ns = np.ascontiguousarray(by_family.sum(axis=1).transpose(1, 0, 2))
        self.alone = self.ns[:, 0]
        self.too_long = self.ns[:, 2].sum(axis=0) > LONGEST_NS
        shares = self.shape.draft.shares
        if shares:
            self.times_of = np.stack([spread(share.times, self.space) for share in shares])
            self.halves = np.stack([spread(share.halves, self.space) > 0 for share in shares])
        if self.shape.launched:
            self.ns = self._launched()
        if shares:
            self.ns, self.unhidden = self._shared_out(self.ns)
        if errs_by_family(self.shape.draft):
            self._narrow()
        if shares:
            self.ns[:, 2] = with_unhidden(self.ns[:, 0], self.ns[:, 2], self.unhidden)
        for step in (launched.step for launched in self.shape.launched):
            span, low, high, *host = self.ns[step]
            self.ns[step, 1:3] = beside_ops(span, (low, high), (host[0], host[1]))
        self.ns = self.ns[:, :3]
        crossing = crossing_ns(self.shape.draft, self.need)
        self.ns = self.ns + np.stack([spread(ns, self.space) for ns in crossing])[:, None]

    def _flying(self) -> FloatArray:
        """The times of all rows [3, rows], of low-latency exchanges those that may run beside compute."""
        out, ops = self.times.ns.copy(), self.shape.counted.ops
        for axis, members in self.placed.axes.values():
            for i in members.tolist():
                if halves.low_latency(ops[i]):
                    rows = int(self.placed.begin[i]) + np.arange(1 if axis is None else axis.size)
                    works = works_on(ops[i], axis)
                    out[:, rows] *= halves.flying_share(works, self.shape.draft.hw, self.context)
        return out

    def _summed(
        self, place: IntArray, size: int, count: FloatArray, ns: FloatArray | None = None
    ) -> FloatArray:
        """ns of ops in each of `size` places, each op as often as `count` [steps, ops] says; [3, places, steps, scenarios].

        `ns` [3, rows] stands for the ops' times.
        """
        ns = self.times.ns if ns is None else ns
        steps = count.shape[0]
        out = np.zeros((3, size, steps, self.space.size))
        for axis, members in self.placed.axes.values():
            at = members[count[:, members].any(axis=0)]
            if not at.size:
                continue
            rows = self.placed.begin[at][:, None] + np.arange(1 if axis is None else axis.size)
            here, own = np.unique(place[at], return_inverse=True)
            counts = np.zeros((here.size, steps, at.size))
            counts[own, :, np.arange(at.size)] = count[:, at].T
            summed = np.matmul(counts.reshape(-1, at.size), self._repeated(at, axis, ns[:, rows]))
            summed = summed.reshape(3, here.size, steps, -1)
            out[:, here] += summed if axis is None else summed[..., axis.index]
        return out

    def _repeated(self, at: IntArray, axis: Axis | None, ns: FloatArray) -> FloatArray:
        """What ops take in all of the times that a loop runs them, [3, ops, values of their axis]."""
        times = [self.shape.counted.times[i] for i in at.tolist()]
        if all(isinstance(n, int) and n == 1 for n in times):
            return ns
        return ns * np.stack([column(n, axis, ns.shape[2]) for n in times])

    def _launched(self) -> FloatArray:
        """ns of each step as expected, with its ops at both ends and with its host at both, [steps, 5, scenarios]."""
        of_op: dict[int, Axis | None] = {}
        for axis, members in self.placed.axes.values():
            of_op |= dict.fromkeys(members.tolist(), axis)

        def ns(op: int) -> FloatArray:
            axis, begin = of_op[op], int(self.placed.begin[op])
            return self.times.ns[:, [begin] if axis is None else begin + axis.index]

        out, draft = self.ns[:, OPS_AT], self.shape.draft
        whole = self._shared_out(self.ns)[0] if draft.shares else self.ns
        ahead = ahead_ns(draft, launch_s(draft, None), whole[:, 0])
        self.ahead_s = ahead / 1e9
        self.both_launched = np.zeros(out.shape)
        for launched in self.shape.launched:
            step = launched.step
            found, both = spans(launched, ns, ahead[step], self.space)
            out[step] = np.where(self.halves[step], out[step], found) if draft.shares else found
            self.both_launched[step] = both
        return out

    def _shared_out(self, ns: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What pipelines and halves make of the steps and what these do not hide: `shares.shared_out`, for every scenario."""
        if not self.halves.any():
            return np.rint(ns * self.times_of[:, None]), np.zeros_like(self.times_of)
        draft, flying = self.shape.draft, self._flying()

        def total(ns: FloatArray) -> halves.Summed:
            place = np.zeros(self.family.size, dtype=np.int64)
            return lambda weight: self._summed(place, 1, self.count * weight, ns)[:, 0]

        weights = halves.weights(self.shape.counted.ops, draft.hw)
        ends = OPS_AT[: ns.shape[1]]
        sums = halves.sums(weights, total(self.times.ns), total(flying))
        sums = {name: by_end[ends] for name, by_end in sums.items()}
        sent = self.of_family.get(_SENT, np.zeros((1, 3, 1))).transpose(1, 0, 2)[ends]
        computing = ns.transpose(1, 0, 2) - sent
        both = halves.together(sums, computing, in_five(draft)[:, None], draft.hw).transpose(1, 0, 2)
        both = np.maximum(both, self.both_launched[:, : ns.shape[1]])
        more = np.where(self.halves, UNHIDDEN * np.maximum(2 * ns - both, 0.0)[:, 0], 0.0)
        whole = np.rint(np.where(self.halves[:, None], both, ns) * self.times_of[:, None])
        return whole, np.rint(more * self.times_of)

    def _narrow(self) -> None:
        """The ends of the interval with families' errors independent: `intervals.narrowed`, for every scenario."""
        span = self.ns[:, 0]
        for end in (1, 2):
            off = np.stack([np.abs(ns[:, end] - ns[:, 0]) for ns in self.of_family.values()])
            self.ns[:, end] = span + np.rint((self.ns[:, end] - span) * together(off))

    @property
    def seconds(self) -> FloatArray:
        """[steps, 3, scenarios]: expected, and both ends of the interval."""
        return self.ns / 1e9

    def families(self) -> dict[str, FloatArray]:
        """Expected seconds of each family, [steps, scenarios], which add up to the step: `simulation.families_by_step`."""
        span = self.ns[:, 0]
        expected = {name: ns[:, 0] for name, ns in self.of_family.items()}
        out = {name: ns for name, ns in expected.items() if name != _SENT}
        rest = self.alone - expected.get(_SENT, 0.0)
        if self.shape.draft.hw.device_class == "wafer":
            out[_SENT] = span - rest
        else:
            shares, waited = bool(self.shape.draft.shares), np.zeros_like(span)
            times = self.times_of if shares else np.ones_like(span)
            alone = self.alone * (1 + self.halves) if shares else self.alone
            for step in (launched.step for launched in self.shape.launched):
                waited[step] = np.maximum(np.rint(span[step] / times[step] - alone[step]), 0.0)
            factor, idle = np.ones_like(span), waited
            if shares:
                one = span / np.maximum(self.alone + waited, 1e-3)
                both = times * np.minimum(2.0, span / times / np.maximum(rest, 1e-3))
                factor = np.where(self.halves, both, one)
                idle = waited * np.where(self.halves, times, factor)
            out = {name: ns * factor for name, ns in out.items()}
            if idle.any():
                out[IDLE] = idle
            if _SENT in expected:
                out[_SENT] = np.maximum(span - rest * factor - idle, 0.0)
        return {name: ns / 1e9 for name, ns in out.items()}

    def spent(self, weights: FloatArray) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Seconds of each family in the mean decode step and in the first step, [scenarios] each; `weights` of steps."""
        whole = np.maximum(weights.sum(axis=0), 1.0)
        return {
            family: ((weights * by_step).sum(axis=0) / whole, by_step[0])
            for family, by_step in self.families().items()
        }

    def beyond(self) -> tuple[list[str], IntArray]:
        """(texts of what lies beyond the fit, which of them holds for each scenario)."""
        steps = self.shape.draft.steps
        phases = sorted({step.phase or "" for step in steps})
        which = np.zeros(self.space.size, dtype=np.int64)
        texts = [""]
        for phase in phases:
            mine = [i for i, step in enumerate(steps) if (step.phase or "") == phase]
            code = np.zeros(self.space.size, dtype=np.int64)
            for axis, members in self.placed.axes.values():
                at = members[(self.count[mine][:, members] > 0).any(axis=0)]
                rows = self.placed.begin[at][:, None] + np.arange(1 if axis is None else axis.size)
                marks = np.bitwise_or.reduce(self.times.mark[rows], axis=0)
                if marks.any():
                    code |= marks if axis is None else marks[axis.index]
            seen, index = np.unique(code, return_inverse=True)
            which = which * seen.size + index
            texts = [with_phase(text, phase, self._reasons(mark)) for text in texts for mark in seen.tolist()]
        return texts, which

    def _reasons(self, mark: int) -> list[str]:
        return [reason for bit, reason in enumerate(self.times.reasons) if mark >> bit & 1]
