"""The measures of a load for many scenarios at once: `replay/measures`, on [scenarios] in the place of one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.replay.lanes import Lanes, Space
from moetrace.replay.measures import beyond, context_of, overhead_s
from moetrace.run import Step
from moetrace.synthesize import Workload

FloatArray = npt.NDArray[np.float64]
Seconds = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class Drafted:
    """Tokens that a step yields [scenarios] and are drafted for it, and what drafting takes: `measures.drafting_s`,
    [ends, scenarios] each."""

    yielded: FloatArray
    tokens: int
    seconds: Seconds


def spread(value: Any, space: Space) -> FloatArray:
    """A figure of every scenario, nan where it is not known."""
    if isinstance(value, Lanes):
        return value.spread().astype(np.float64)
    return np.full(space.size, np.nan if value is None else float(value))


def weights_of(steps: Sequence[Step], space: Space) -> FloatArray:
    """How many decode steps each synthesized one stands for, [steps, scenarios]: `measures.step_weights`."""
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    at = [spread(context_of(steps[i]), space) for i in decode]
    out = np.zeros((len(steps), space.size))
    for i in decode[:1]:
        out[i] += 1.0
    for (i, a), (j, b) in zip(
        zip(decode, at, strict=True), zip(decode[1:], at[1:], strict=True), strict=False
    ):
        out[i] += (b - a + 1) / 2 - 1
        out[j] += (b - a + 1) / 2
    return out


def first_and_rest(
    steps: Sequence[Step],
    seconds: FloatArray,
    weights: FloatArray,
    load: Workload,
    space: Space,
    drafted: Drafted | None,
    ahead_s: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """(TTFT, all later tokens), [ends, scenarios] each: `measures.first_and_rest`. `seconds` are [steps, ends, scenarios],
    `ahead_s` [scenarios]."""
    later = spread(load.output_len, space) - 1
    none = np.zeros(space.size)
    prompt, step, middle, others = drafted.seconds if drafted else (none, none, none, none)
    tokens, yielded = (drafted.tokens, drafted.yielded) if drafted else (0, none + 1.0)
    each = np.einsum("ws,wes->es", weights, seconds) / np.maximum(1.0, later)
    rest = later / yielded * (each + overhead_s(load) + tokens * step)
    if not load.served:
        return seconds[0] + overhead_s(load) + prompt, rest
    more = overhead_s(load) + tokens * middle
    alone, work, own = middle_and_others(steps, seconds, load, space)
    parts, chunks = spread(load.parts, space), spread(load.chunks, space)
    waited = (chunks - 1) * work + chunks * ahead_s + (alone + more) / 2
    theirs = (spread(load.batch, space) - 1) * chunks / spread(load.beside[0], space)
    if load.apart:
        waited = waited + parts * overhead_s(load)
        first = seconds[0]
        if load.decodes_on:
            first = np.maximum(first, alone)
            rest = rest - spread(load.on_beside, space) * (each + overhead_s(load))
        return first + waited + prompt, rest + own + others + theirs * overhead_s(load)
    waited = waited + (parts - 1) * alone + parts * more
    held = np.maximum(0.0, theirs - later / yielded)
    return seconds[0] + waited + prompt, rest + own + others + held * (alone + more)


def middle_and_others(
    steps: Sequence[Step], seconds: FloatArray, load: Workload, space: Space
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`measures.middle_and_others` for every scenario, [ends, scenarios] each."""
    first = seconds[0]
    target = spread(load.input_len, space) + spread(load.output_len, space) // 2
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    at = [spread(context_of(steps[i]), space) for i in decode]
    alone = _between(target, at, [seconds[i] for i in decode])
    if load.decodes_on:
        first = np.maximum(first, alone)  # groups decode meanwhile
    more = first if load.apart else beyond(first, first[:1], alone[:1])
    prompts = spread(load.chunks, space) / spread(load.beside[0], space)
    others = (spread(load.batch, space) - 1) * prompts * more
    return alone, more, others


def drafting_s(
    steps: Sequence[Step], seconds: FloatArray, weights: FloatArray, load: Workload, space: Space
) -> Seconds:
    """`measures.drafting_s` for every scenario, [ends, scenarios] each."""
    first = seconds[0]
    each = np.einsum("ws,wes->es", weights, seconds) / np.maximum(1.0, spread(load.output_len, space) - 1)
    if not load.served:
        return first, each, np.zeros_like(first), np.zeros_like(first)
    middle, more, others = middle_and_others(steps, seconds, load, space)
    return spread(load.chunks, space) * more, each, middle, others


def _between(target: FloatArray, at: Sequence[FloatArray], values: Sequence[FloatArray]) -> FloatArray:
    """Values interpolated in straight lines between ascending points, the outermost beyond them."""
    out = np.array(values[0])
    for low, high, left, right in zip(at, at[1:], values, values[1:], strict=False):
        share = np.clip((target - low) / np.maximum(high - low, 1e-300), 0.0, 1.0)
        out = np.where(target > low, left + share * (right - left), out)
    return out


def measures(first: FloatArray, rest: FloatArray, load: Workload, space: Space) -> dict[str, FloatArray]:
    """`measures.metrics` for every scenario: [3, scenarios] each, the value and both ends of its interval."""
    batch, new = spread(load.batch, space), spread(load.output_len, space)
    e2e, later = first + rest, np.where(new > 1, new - 1, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "ttft": first,
            "tpot": rest / later,
            "itl": np.where(new > 1, rest / (batch * new - 1), np.nan),
            "e2e": e2e,
            "throughput": batch * (spread(load.input_len, space) + new) / e2e,
            "output_throughput": batch * new / e2e,
            "user_speed": later / rest,
        }
    return {
        name: np.stack([v[0], np.minimum(v[1], v[2]), np.maximum(v[1], v[2])]) for name, v in found.items()
    }
