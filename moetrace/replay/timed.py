"""The ops of a draft in time: what each takes on the draft's machine, and what the steps take that they make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moetrace.cost import PriceContext
from moetrace.hardware import Hardware
from moetrace.parse.nesting import exposed_by
from moetrace.replay import schedule, shares
from moetrace.replay.anchor import Held, Priced, price_cells
from moetrace.replay.draft import Draft
from moetrace.replay.intervals import beside_ops, narrowed
from moetrace.replay.launching import HOST_LAUNCH_FACTOR, ahead_ns, launch_s
from moetrace.replay.predicted import first_rows, per_step
from moetrace.replay.setting import keeps_gaps
from moetrace.replay.waits import Waits, waits_of

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timed:
    """What a draft takes, in ns.

    By row: `measured` as recorded without waiting, `start` from its segment's begin, `dur` with the `wait` for other ranks in
    it, `was` what that was as recorded. By segment (step and rank): `spans` and both ends of its 80 % interval. By step:
    `busy`, in which some op runs, `crossing`, spent between wafers, and `ahead`, which its launch began before it.
    """

    priced: Priced
    measured: IntArray
    start: IntArray
    dur: IntArray
    wait: IntArray
    was: IntArray
    spans: IntArray
    low: IntArray
    high: IntArray
    busy: IntArray
    crossing: IntArray
    ahead: FloatArray


def timed(
    draft: Draft,
    source: Hardware | None,
    context: PriceContext,
    crossing: IntArray,
    copies: FloatArray,
    held: Held | None = None,
) -> Timed:
    """The draft in time. `source` is the machine whose measurement anchors it, `crossing` [steps] ns between wafers, `copies`
    the error of each cell that repeats another layer, `held` as of `price_cells`."""
    priced = price_cells(draft, source, PriceContext(engine=context.engine), context, copies, held)
    layout, measured = Layout.of(draft, source, context, crossing)
    measured = measured - layout.was
    dur = priced.durations(draft.cell, np.where(draft.inserted, 0, measured))
    error = np.nan_to_num(priced.error)[draft.cell]
    ends = [np.rint(d).astype(np.int64) for d in (dur, dur / (1 + error), dur * (1 + error))]
    layout = layout.with_host_ahead(ends[0])
    laid = layout.laid_out(ends[0])
    spans, low, high = layout.interval(ends, laid)
    return Timed(
        priced, measured, laid.start, laid.dur, laid.dur - ends[0], layout.was, spans, low, high, layout.busy(laid, spans),
        crossing, layout.ahead,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Laid:
    """Rows in time: `start` from their segment's begin and `dur` with waiting, ns by row; `spans` of their segments, ns."""

    start: IntArray
    spans: IntArray
    dur: IntArray


@dataclass(frozen=True, slots=True)
class Layout:
    """How a draft's rows lie in time, whatever each takes.

    By row: `segment`, and `was`, the recorded waiting for other ranks. By segment: `of_step`, its step; `pace`, host seconds
    per op; `halved`, whether it goes in two halves. By step, in ns: `crossing`, between wafers, and `ahead`, by which the host
    is. `moved`: the recording's host launches for another chip.
    """

    draft: Draft
    line: schedule.Timeline
    waits: Waits
    turns: shares.Turns | None
    gaps: bool
    moved: bool
    was: IntArray
    segment: IntArray
    of_step: IntArray
    pace: FloatArray
    halved: npt.NDArray[np.bool_]
    crossing: IntArray
    ahead: FloatArray

    @classmethod
    def of(
        cls, draft: Draft, source: Hardware | None, context: PriceContext, crossing: IntArray
    ) -> tuple[Layout, IntArray]:
        """(the layout, the host not ahead; measured duration of each row). Raises ScenarioError as `launch_s`."""
        gaps, of_step = keeps_gaps(draft, source), draft.base.step[first_rows(draft)]
        line, measured = _timeline(draft)
        waits = waits_of(draft, gaps)
        moved = gaps and source is not None and source.chip != draft.hw.chip and bool(line.launched.any())
        made = cls(
            draft, line, waits, shares.turns_of(draft, context), gaps, moved, waits.recorded(draft.rows.size),
            line.segment[draft.rows], of_step, launch_s(draft, source)[of_step], shares.halved(draft), crossing,
            np.zeros(len(draft.steps)),
        )  # fmt: skip
        return made, measured

    def with_host_ahead(self, dur: IntArray) -> Layout:
        """The layout with the host ahead as steps of rows that take `dur` ns let it."""
        if not self.pace.any():
            return self
        pace = np.zeros(len(self.draft.steps))
        pace[self.of_step] = self.pace
        spans = per_step(self.draft, self.spans(self.laid_out(dur)))
        return replace(self, ahead=ahead_ns(self.draft, pace, spans))

    def laid_out(self, dur: IntArray, host: float = 1.0) -> Laid:
        """Rows that take `dur` ns without waiting, and a host `host` times its time."""
        launch = np.where(self.halved, 0.0, self.pace) * host
        draft, ahead = self.draft, self.ahead[self.of_step]
        start, spans, whole = self.waits.laid_out(
            dur,
            lambda d, w: schedule.lay_out(
                self.line, draft.rows, draft.inserted, d, self.gaps, launch, (self.was, w), host, ahead
            ),
        )
        return Laid(start, spans, whole)

    def spans(self, laid: Laid, host: float = 1.0) -> IntArray:
        """ns of each segment: with both halves, all parts of a pipeline, and between wafers."""
        return self._shared_out(laid, self._launched(host))[0] + self.crossing[self.of_step]

    def interval(self, ends: Sequence[IntArray], laid: Laid) -> tuple[IntArray, IntArray, IntArray]:
        """ns of each segment as expected, `laid`, and at both ends of its 80 % interval; `ends` are those of rows."""
        others = [self.spans(self.laid_out(dur)) for dur in ends[1:]]
        spans, low, high = narrowed(
            self.draft, self.segment, list(ends), (self.spans(laid), others[0], others[1])
        )
        more = self._shared_out(laid, self._launched())[1]
        high = shares.with_unhidden(spans, high, more).astype(np.int64)
        waits_for_host = (self.pace > 0) | self.moved
        if not waits_for_host.any():
            return spans, low, high
        factors = (1 / HOST_LAUNCH_FACTOR, HOST_LAUNCH_FACTOR)
        fast, slow = (self.spans(self.laid_out(ends[0], factor), factor) for factor in factors)
        both = beside_ops(spans, (low, high), (fast, slow))
        low, high = (
            np.where(waits_for_host, *pair).astype(np.int64) for pair in zip(both, (low, high), strict=True)
        )
        return spans, low, high

    def busy(self, laid: Laid, spans: IntArray) -> IntArray:
        """ns of each step in which some op runs, or between wafers."""
        alone = exposed_by(self.segment, laid.start, laid.start + laid.dur)[0]
        worked = np.bincount(self.segment, alone, spans.size).astype(np.float64)
        bare = np.where(self.halved, self._shared_out(laid)[0], spans - self.crossing[self.of_step])
        return per_step(self.draft, shares.worked(self.draft, worked, laid.spans, bare)) + self.crossing

    def _shared_out(self, laid: Laid, launched: FloatArray | float = 0.0) -> tuple[IntArray, IntArray]:
        return shares.shared_out(self.draft, self.segment, laid.dur, laid.spans, self.turns, launched)

    def _launched(self, host: float = 1.0) -> FloatArray:
        """ns until the host has launched both halves of a segment."""
        rows = np.bincount(self.segment, minlength=self.halved.size)
        ns = np.rint(2 * rows * self.pace * 1e9 * host) - self.ahead[self.of_step]
        return np.where(self.halved & (self.pace > 0), ns, 0.0)


def _timeline(draft: Draft) -> tuple[schedule.Timeline, IntArray]:
    """(the recorded order in time, measured duration of each row of the draft)."""
    base, run = draft.base, draft.run
    stream, launch, graph = (
        run.numpy(n).astype(np.int64)[base.row] for n in ("stream", "launch_ns", "graph")
    )
    line = schedule.measure(base.segment, base.start, base.dur, stream, launch, graph)
    return line, base.dur[draft.rows]
