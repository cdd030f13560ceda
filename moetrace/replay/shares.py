"""What steps take where a rank's ops are a part of the step's work: pipelines that fill and drain, halves that overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moetrace import ops as work_of
from moetrace.hardware import Hardware
from moetrace.op import Op
from moetrace.replay.draft import Draft

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def stretched(draft: Draft, segment: IntArray, dur: npt.NDArray[np.generic], spans: IntArray) -> IntArray:
    """ns of each segment (step and rank) from those of its ops laid out once, `spans`; `dur` ns by row.

    Two halves that overlap take ``max(2 (C + s N), 2 N, C + N)``, C what is not communication and N what is: each half's
    collectives run beside the other half's compute, and take it the share s of the processors that they run on. DeepEP's
    normal kernels, which prefills take, name theirs; its low-latency ones need none (its README). A pipeline's parts multiply
    the time.
    """
    if not draft.shares:
        return spans
    halves, times, _ = _columns(draft)
    sent = communication(draft, segment, dur, spans.size)
    rest = spans - sent
    kept = processors(draft.ops, draft.hw)[draft.cell]
    taken = communication(draft, segment, dur.astype(np.float64) * kept, spans.size)
    return np.asarray(np.rint(np.where(halves, overlapped(rest, sent, taken), spans) * times), dtype=np.int64)


def worked(draft: Draft, busy: FloatArray, spans: IntArray, stretched_spans: IntArray) -> IntArray:
    """ns that a rank works in each segment, from that in its ops laid out once."""
    if not draft.shares:
        return np.asarray(busy, dtype=np.int64)
    _, _, share = _columns(draft)
    return np.asarray(np.rint(busy / np.maximum(spans, 1) * stretched_spans * share), dtype=np.int64)


def processors(ops: Sequence[Op], hw: Hardware) -> FloatArray:
    """Share of the GPU's processors that each op keeps from what runs beside it, as far as it names them."""
    sms = np.array([op["sms"] if op.has("sms") else 0.0 for op in ops], dtype=np.float64)
    return np.minimum(1.0, sms / hw.multiprocessors)


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
