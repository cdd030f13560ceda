"""What steps take where a rank's ops are a part of the step's work: pipelines that fill and drain, halves that overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.cost import PriceContext
from moetrace.replay import halves
from moetrace.replay.draft import Draft
from moetrace.replay.edit import EXCHANGES
from moetrace.run import GENERATING

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
# Of the time that two halves hide from each other, the share that the upper end of an interval takes as not hidden. The one
# report at hand (LMSYS blog, 2025-05-05, DeepSeek on 96 H100) has gains of 1.27 to 1.35 in prefill and 1.26 in decoding
# where stages in turns give 1.37 to 1.41 and 1.33, and finds kernels slower beside exchanges: it informed this half.
UNHIDDEN = 0.5


@dataclass(frozen=True, slots=True)
class Turns:
    """How two halves take turns: `halves.weights`, by cell, the share of each cell's time that may run beside compute, and of
    each segment whether it goes in five stages."""

    weights: halves.Sums
    flying: FloatArray
    five: npt.NDArray[np.bool_]


def turns_of(draft: Draft, context: PriceContext) -> Turns | None:
    """How the draft's halves take turns; None where none overlap."""
    if not any(share.halves for share in draft.shares):
        return None
    flying = np.ones(len(draft.ops))
    sent = [i for i, op in enumerate(draft.ops) if halves.low_latency(op)]
    if sent:
        works = work_of.works([draft.ops[i] for i in sent])
        flying[sent] = halves.flying_share(works, draft.hw, context)
    return Turns(halves.weights(draft.ops, draft.hw), flying, in_five(draft)[_steps(draft)])


def halved(draft: Draft) -> npt.NDArray[np.bool_]:
    """Of each segment whether it goes in two halves."""
    return _columns(draft)[0] if draft.shares else np.zeros(_steps(draft).size, dtype=np.bool_)


def shared_out(
    draft: Draft,
    segment: IntArray,
    dur: npt.NDArray[np.generic],
    spans: IntArray,
    turns: Turns | None,
    launched: FloatArray | float = 0.0,
) -> tuple[IntArray, IntArray]:
    """(ns of each segment (step and rank) from those of its ops laid out once, `spans`; ns by which each may take longer, as
    halves hide less of each other than all that they could, `UNHIDDEN`). `dur` ns by row.

    Two halves that overlap take turns, and what one sends hides beside a stage of the other: `halves`; they are `launched`
    after so many ns. A pipeline's parts multiply the time.
    """
    if not draft.shares:
        return spans, np.zeros_like(spans)
    halved, times, _ = _columns(draft)
    both = np.maximum(_both(draft, segment, dur, spans, turns), launched)
    more = np.where(halved, UNHIDDEN * np.maximum(2 * spans - both, 0.0), 0.0)
    whole = np.where(halved, both, spans)
    return np.rint(whole * times).astype(np.int64), np.rint(more * times).astype(np.int64)


def with_unhidden(
    span: IntArray | FloatArray, high: IntArray | FloatArray, more: IntArray | FloatArray
) -> FloatArray:
    """The upper end of each interval in ns, whole ones: what ops and what overlap may take longer are independent."""
    return np.asarray(span + np.rint(np.hypot(high - span, more)), dtype=np.float64)


def _both(
    draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], spans: IntArray, turns: Turns | None
) -> FloatArray:
    """ns of two halves that overlap, of each segment."""
    if turns is None:
        return spans.astype(np.float64)
    size, ns = spans.size, dur.astype(np.float64)

    def total(taken: FloatArray) -> halves.Summed:
        return lambda weight: np.bincount(segment, taken * weight[draft.cell], size).astype(np.float64)

    sums = halves.sums(turns.weights, total(ns), total(ns * turns.flying[draft.cell]))
    return halves.together(sums, spans - communication(draft, segment, ns, size), turns.five, draft.hw)


def in_five(draft: Draft) -> npt.NDArray[np.bool_]:
    """Of each step: whether its halves take turns in five stages, as decode steps with dispatch and collect do but in vLLM."""
    sent = any(op.kind in EXCHANGES for op in draft.ops)
    staged = sent and not str(draft.stated("engine", "")).startswith("vllm")
    return np.array([staged and step.phase in GENERATING for step in draft.steps], dtype=np.bool_)


def worked(draft: Draft, busy: FloatArray, spans: IntArray, stretched_spans: IntArray) -> IntArray:
    """ns that a rank works in each segment, from that in its ops laid out once."""
    if not draft.shares:
        return np.asarray(busy, dtype=np.int64)
    _, _, share = _columns(draft)
    return np.asarray(np.rint(busy / np.maximum(spans, 1) * stretched_spans * share), dtype=np.int64)


def communication(draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], size: int) -> FloatArray:
    """ns of collectives in each segment."""
    sends = np.array([work_of.family(op.kind) == "communication" for op in draft.ops])[draft.cell]
    return np.asarray(np.bincount(segment, np.where(sends, dur, 0), size), dtype=np.float64)


def _columns(draft: Draft) -> tuple[npt.NDArray[np.bool_], FloatArray, FloatArray]:
    """(halves, times, busy) of each segment."""
    of = [draft.shares[i] for i in _steps(draft).tolist()]
    return (
        np.array([s.halves for s in of]),
        np.array([s.times for s in of]),
        np.array([s.busy for s in of]),
    )


def _steps(draft: Draft) -> IntArray:
    """The step of each segment."""
    return draft.base.step[np.flatnonzero(np.diff(draft.base.segment, prepend=-1))]
