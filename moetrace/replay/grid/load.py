"""The measures of a load for many scenarios at once: `replay/measures`, on [scenarios] in the place of one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.replay.lanes import Lanes, Space
from moetrace.replay.measures import context_of, overhead_s
from moetrace.run import Step
from moetrace.synthesize import Workload

FloatArray = npt.NDArray[np.float64]
Drafted = tuple[FloatArray, FloatArray, FloatArray]


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
) -> tuple[FloatArray, FloatArray]:
    """(TTFT, all later tokens), [ends, scenarios] each: `measures.first_and_rest`. `seconds` are [steps, ends, scenarios].

    `drafted` is what a step yields [scenarios], and what drafting adds to TTFT and to each step, [ends, scenarios].
    """
    later, batch = spread(load.output_len, space) - 1, spread(load.batch, space)
    overhead = overhead_s(load)
    first = seconds[0]
    yielded, more_first, more_step = drafted or (
        np.ones(space.size),
        np.zeros(space.size),
        np.zeros(space.size),
    )
    each = np.einsum("ws,wes->es", weights, seconds) / np.maximum(1.0, later) + overhead + more_step
    rest = later / yielded * each
    if not load.served:
        return first + overhead + more_first, rest
    target = spread(load.input_len, space) + spread(load.output_len, space) // 2
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    at = [spread(context_of(steps[i]), space) for i in decode]
    alone = _between(target, at, [seconds[i] for i in decode], first)
    parts, prompts = spread(load.parts, space), spread(load.beside[0], space)
    if decode:
        rest = rest + (batch - 1) * parts * np.maximum(0.0, first - alone) / prompts
    return parts * (first + overhead) + (alone + overhead) / 2 + more_first, rest


def _between(
    target: FloatArray, at: Sequence[FloatArray], values: Sequence[FloatArray], like: FloatArray
) -> FloatArray:
    """Values interpolated in straight lines between ascending points, the outermost beyond them; 0 without points."""
    if not at:
        return np.zeros_like(like)
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
