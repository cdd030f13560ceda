"""Where the steps of a load go: seconds by op family, a drafting model's beside those of the model that verifies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.replay.engine import Prediction
from moetrace.replay.measures import step_weights
from moetrace.replay.parallel import Share

FloatArray = npt.NDArray[np.float64]
IDLE = "idle"  # beside op families: the device waits for the host


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one op family: in the mean decode step and in the step with prompts, and what bounds it in decode."""

    decode_s: float
    prefill_s: float
    bound: str | None


def spent_by(prediction: Prediction) -> dict[str, Spent]:
    """What each op family takes of a mean decode step and of the prefill (or mixed) step; both add up to the step."""
    weights = step_weights(prediction.run.meta.steps)
    share, first = weights / max(1.0, weights.sum()), weights == 0
    bound = {row["family"]: row["bound"] for row in prediction.summary["families"]}
    found = {}
    for family, seconds in _by_step(prediction).items():
        decode = float((seconds * share).sum())
        found[family] = Spent(decode, float(seconds[first].sum()), bound.get(family) if decode else None)
    if IDLE in found and found[IDLE].decode_s:
        found[IDLE] = replace(found[IDLE], bound="host")
    return found


def rows_of(own: Mapping[str, Spent], drafted: Mapping[str, Spent], tokens: int) -> list[dict[str, Any]]:
    """Families of the mean decode step (drafting `tokens` and verifying them) and of the prefill step, largest in decode first.

    `drafting_s` is the drafting model's part of `decode_s`.
    """
    none = Spent(0.0, 0.0, None)
    both = {family: (own.get(family, none), drafted.get(family, none)) for family in {**own, **drafted}}
    decode = {family: one.decode_s + tokens * two.decode_s for family, (one, two) in both.items()}
    first = {family: one.prefill_s + two.prefill_s for family, (one, two) in both.items()}
    decode_s, prefill_s = sum(decode.values()) or 1.0, sum(first.values()) or 1.0
    return [
        {
            "family": family,
            "bound": (one if one.decode_s >= tokens * two.decode_s else two).bound,
            "decode_s": decode[family],
            "drafting_s": tokens * two.decode_s,
            "decode_share": decode[family] / decode_s,
            "prefill_s": first[family],
            "prefill_share": first[family] / prefill_s,
        }
        for family, (one, two) in sorted(both.items(), key=lambda item: (-decode[item[0]], -first[item[0]]))
    ]


def _by_step(prediction: Prediction) -> dict[str, FloatArray]:
    """Seconds of each step by op family, which add up to the step.

    Where a rank's ops are a part of the step's work (pipelines, halves), the families of its ops take the step's time in
    proportion, and collectives what is left of it after the rest has been computed. In steps that wait for the host's launches
    `IDLE` is the time in which no op runs, of two halves what is beyond all ops of both.
    """
    run = prediction.run
    steps, span = run.meta.steps, prediction.step_s[:, 0]
    step, dur = run.numpy("step").astype(np.int64), run.numpy("dur_ns").astype(np.float64)
    code, names = run.codes("family")
    found = {
        name: np.bincount(step, np.where(code == i, dur, 0.0), len(steps)) / 1e9
        for i, name in enumerate(names)
    }
    sent = found.pop("communication", np.zeros(len(steps)))
    rest = np.sum(list(found.values()), axis=0)
    if run.meta.device_class == "wafer":  # ops follow one another, and what is left is between wafers
        return {**found, "communication": span - rest}
    shares = prediction.shares or (Share(1),) * len(steps)
    halves, times = np.array([s.halves for s in shares]), np.array([s.times for s in shares])
    both = times * np.minimum(2.0, span / times / np.maximum(rest, 1e-12))
    launched = np.array(prediction.launched or (False,) * len(steps))
    alone = (1 + halves) * (rest + sent)
    waited = np.where(launched, np.maximum(np.round(span / times - alone, 9), 0.0), 0.0)
    factor = np.where(halves, both, span / np.maximum(rest + sent + waited, 1e-12))
    out = {name: seconds * factor for name, seconds in found.items()}
    idle = waited * np.where(halves, times, factor)
    if idle.any():
        out[IDLE] = idle
    if sent.any():
        out["communication"] = np.maximum(span - rest * factor - idle, 0.0)
    return out
