"""The ops of a draft in time: what each takes on the draft's machine, and what the steps take that they make up."""

from __future__ import annotations

from dataclasses import dataclass

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
from moetrace.replay.waits import waits_of

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
    gaps = keeps_gaps(draft, source)
    priced = price_cells(draft, source, PriceContext(engine=context.engine), context, copies, held)
    line, measured = _timeline(draft)
    waits = waits_of(draft, gaps)
    was = waits.recorded(draft.rows.size)
    measured = measured - was
    dur = priced.durations(draft.cell, np.where(draft.inserted, 0, measured))
    error = np.nan_to_num(priced.error)[draft.cell]
    of_step = draft.base.step[first_rows(draft)]
    pace = launch_s(draft, source)
    in_halves = shares.halved(draft)
    launch, ahead = np.where(in_halves, 0.0, pace[of_step]), np.zeros(len(draft.steps))
    segment = line.segment[draft.rows]
    turns = shares.turns_of(draft, context)
    both_launched = 2 * np.bincount(segment, minlength=in_halves.size) * np.where(in_halves, pace[of_step], 0)

    def lay_out(durations: IntArray, host: float = 1.0) -> tuple[IntArray, IntArray, IntArray]:
        return waits.laid_out(
            durations,
            lambda d, w: schedule.lay_out(
                line, draft.rows, draft.inserted, d, gaps, launch * host, (was, w), host, ahead[of_step]
            ),
        )

    def launched(host: float = 1.0) -> FloatArray:
        """ns until the host has launched both halves of a segment."""
        return np.where(
            in_halves & (pace[of_step] > 0), np.rint(both_launched * 1e9 * host) - ahead[of_step], 0.0
        )

    def spans_of(laid: tuple[IntArray, IntArray, IntArray], host: float = 1.0) -> IntArray:
        _, span, d = laid
        return shares.stretched(draft, segment, d, span, turns, launched(host)) + crossing[of_step]

    ends = [np.rint(d).astype(np.int64) for d in (dur, dur / (1 + error), dur * (1 + error))]
    if pace.any():
        ahead = ahead_ns(draft, pace, per_step(draft, spans_of(lay_out(ends[0]))))
    laid = [lay_out(d) for d in ends]
    start, _, dur = laid[0]
    alone = exposed_by(segment, start, start + dur)[0]
    spans, low, high = narrowed(
        draft, segment, ends, (spans_of(laid[0]), spans_of(laid[1]), spans_of(laid[2]))
    )
    more = shares.unhidden(draft, segment, laid[0][2], laid[0][1], turns, launched())
    high = shares.with_unhidden(spans, high, more).astype(np.int64)
    moved = gaps and source is not None and source.chip != draft.hw.chip and line.launched.any()
    if moved or pace.any():
        fast, slow = (
            spans_of(lay_out(ends[0], factor), factor)
            for factor in (1 / HOST_LAUNCH_FACTOR, HOST_LAUNCH_FACTOR)
        )
        both = beside_ops(spans, (low, high), (fast, slow))
        low, high = (
            np.where(moved | (pace[of_step] > 0), *pair).astype(np.int64)
            for pair in zip(both, (low, high), strict=True)
        )
    worked = np.bincount(segment, alone, spans.size).astype(np.float64)
    bare = np.where(
        in_halves, shares.stretched(draft, segment, laid[0][2], laid[0][1], turns), spans - crossing[of_step]
    )
    busy = per_step(draft, shares.worked(draft, worked, laid[0][1], bare)) + crossing
    return Timed(priced, measured, start, dur, dur - ends[0], was, spans, low, high, busy, crossing, ahead)


def _timeline(draft: Draft) -> tuple[schedule.Timeline, IntArray]:
    """(the recorded order in time, measured duration of each row of the draft)."""
    base, run = draft.base, draft.run
    stream, launch, graph = (
        run.numpy(n).astype(np.int64)[base.row] for n in ("stream", "launch_ns", "graph")
    )
    line = schedule.measure(base.segment, base.start, base.dur, stream, launch, graph)
    return line, base.dur[draft.rows]
