"""What steps take where a rank's ops are a part of the step's work: pipelines that fill and drain, halves that overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.hardware import Hardware
from moetrace.op import Op
from moetrace.replay.draft import Draft
from moetrace.replay.edit import COLLECTIVES, EXCHANGES

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
# Processors that a collective of NCCL runs on: a thread block for each channel (its user guide, NCCL_MAX_CTAS), of which eight
# H100s or A100s on NVLink have 24 for rings (16 in the switch, 32 between peers: the "coll channels" of its own log). Small
# messages use fewer, links without NVLink have 2 to 4, and engines' own all-reduces up to 36 blocks (vLLM's
# custom_all_reduce.cuh): one figure stands for all of them.
NCCL_SMS = 24.0
# Of the time that two halves hide from each other, the share that the upper end of an interval takes as not hidden. The one
# report at hand (LMSYS blog, 2025-05-05, DeepSeek on 96 H100) has gains of 1.27 to 1.35 in prefill and 1.26 in decoding
# where all of it would give 1.47 to 1.51 and 1.46: it informed this half.
UNHIDDEN = 0.5


def stretched(draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], spans: IntArray) -> IntArray:
    """ns of each segment (step and rank) from those of its ops laid out once, `spans`; `dur` ns by row.

    Two halves that overlap take ``max(2 (C + s N), 2 N, C + N)``, C what is not communication and N what is: each half's
    collectives run beside the other half's compute, and take it the share s of the processors that they run on: `processors`.
    A pipeline's parts multiply the time.
    """
    if not draft.shares:
        return spans
    halves, times, _ = _columns(draft)
    both = _both(draft, segment, dur, spans)
    return np.asarray(np.rint(np.where(halves, both, spans) * times), dtype=np.int64)


def unhidden(draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], spans: IntArray) -> IntArray:
    """ns by which each segment may take longer, as halves hide less of each other than all that they could (`UNHIDDEN`)."""
    if not draft.shares:
        return np.zeros_like(spans)
    halves, times, _ = _columns(draft)
    more = UNHIDDEN * (2 * spans - _both(draft, segment, dur, spans))
    return np.asarray(np.rint(np.where(halves, more, 0.0) * times), dtype=np.int64)


def with_unhidden(
    span: IntArray | FloatArray, high: IntArray | FloatArray, more: IntArray | FloatArray
) -> FloatArray:
    """The upper end of each interval in ns, whole ones: what ops and what overlap may take longer are independent."""
    return np.asarray(span + np.rint(np.hypot(high - span, more)), dtype=np.float64)


def _both(draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], spans: IntArray) -> FloatArray:
    """ns of two halves that overlap, of each segment."""
    sent = communication(draft, segment, dur, spans.size)
    kept = processors(draft.ops, draft.hw)[draft.cell]
    taken = communication(draft, segment, dur.astype(np.float64) * kept, spans.size)
    return overlapped(spans - sent, sent, taken)


def worked(draft: Draft, busy: FloatArray, spans: IntArray, stretched_spans: IntArray) -> IntArray:
    """ns that a rank works in each segment, from that in its ops laid out once."""
    if not draft.shares:
        return np.asarray(busy, dtype=np.int64)
    _, _, share = _columns(draft)
    return np.asarray(np.rint(busy / np.maximum(spans, 1) * stretched_spans * share), dtype=np.int64)


def processors(ops: Sequence[Op], hw: Hardware) -> FloatArray:
    """Share of the GPU's processors that each collective keeps from what runs beside it; 0 for other ops.

    DeepEP's normal kernels, which prefills take, name theirs (dim `sms`); its low-latency ones need none (its README).
    """
    sms = np.array([_sms(op) for op in ops], dtype=np.float64)
    return np.minimum(1.0, sms / hw.multiprocessors)


def _sms(op: Op) -> float:
    if op.has("sms"):
        return op["sms"]
    return NCCL_SMS if op.kind in COLLECTIVES - EXCHANGES else 0.0


def overlapped(rest: FloatArray, sent: FloatArray, taken: FloatArray) -> FloatArray:
    """ns of two halves that overlap: of computing, of communicating, and of computing that the latter's processors cost."""
    return np.asarray(np.maximum(np.maximum(2 * (rest + taken), 2 * sent), rest + sent), dtype=np.float64)


def communication(draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], size: int) -> FloatArray:
    """ns of collectives in each segment."""
    sends = np.array([work_of.family(op.kind) == "communication" for op in draft.ops])[draft.cell]
    return np.asarray(np.bincount(segment, np.where(sends, dur, 0), size), dtype=np.float64)


def _columns(draft: Draft) -> tuple[npt.NDArray[np.bool_], FloatArray, FloatArray]:
    """(halves, times, busy) of each segment."""
    step = draft.base.step[np.flatnonzero(np.diff(draft.base.segment, prepend=-1))]
    of = [draft.shares[i] for i in step.tolist()]
    return (
        np.array([s.halves for s in of]),
        np.array([s.times for s in of]),
        np.array([s.busy for s in of]),
    )
