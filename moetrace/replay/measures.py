"""What a user of a served model sees (TTFT, TPOT, ITL, throughput), from the times of the steps that were priced.

Static: all sequences start together. Continuous: a steady load, in which the prompts of other sequences are worked through
beside decoding. Speculative: a small model drafts tokens, which the model verifies in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.run import Step
from moetrace.synthesize import Workload

FloatArray = npt.NDArray[np.float64]

# name -> (unit, formula). TTFT, TPOT: arXiv 2505.03531 and most harnesses; ITL and throughput: MoE-Inference-Bench,
# arXiv 2508.17467, whose ITL divides by all tokens of the batch and whose throughput counts the prompts.
MEASURES: dict[str, tuple[str, str]] = {
    "ttft": ("s", "all prompts computed in one step: end of the prefill step"),
    "tpot": ("s", "(E2E - TTFT) / (output_len - 1), per sequence"),
    "itl": ("s", "(E2E - TTFT) / (batch x output_len - 1), over all sequences"),
    "e2e": ("s", "TTFT and all decode steps"),
    "throughput": ("tokens/s", "batch x (input_len + output_len) / E2E"),
    "output_throughput": ("tokens/s", "batch x output_len / E2E"),
    "user_speed": ("tokens/s", "1 / TPOT"),
}
_SERVED = {
    "ttft": "half of the step that is under way, then the steps that work on its own prompt; no queue",
    "e2e": "TTFT, its own decode steps, and what other sequences' prompts add to them",
}
# What a serving engine's host adds to each step beside the device's work (scheduling, sampling, handing out tokens). The same
# for all engines and models: of 0, 0.3, 0.6, 0.9 ... ms the one with the least median error over 323 served runs of two models
# on H100 and H200 (vLLM and TensorRT-LLM, 2025-26) was 0.6; Qwen3-235B alone would have 0.3, gpt-oss under TensorRT-LLM 1.2.
STEP_OVERHEAD_S = 0.5e-3


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafting model: tokens it drafts for each step, how likely each is accepted, and what it takes in seconds: its own work
    on the prompt, each drafted token, and under a steady load each drafted token in the middle of a sequence's life (0 in a
    static batch) and others' prompts over the whole of one sequence.

    `said` is what a step yields where that is stated instead.
    """

    tokens: int
    acceptance: float
    prompt_s: float
    step_s: float
    said: float | None = None
    middle_s: float = 0.0
    others_s: float = 0.0

    @property
    def yielded(self) -> float:
        """Tokens that one verified step yields on average: (1 - a^(g+1)) / (1 - a) (arXiv 2211.17192, eq. 1)."""
        if self.said is not None:
            return self.said
        a, g = self.acceptance, self.tokens
        return g + 1.0 if a >= 1 else (1 - a ** (g + 1)) / (1 - a)


def overhead_s(load: Workload) -> float:
    """Seconds that the host adds to each step: as stated, else `STEP_OVERHEAD_S` where a service is simulated."""
    if load.host_s is not None:
        return load.host_s
    return STEP_OVERHEAD_S if load.served else 0.0


def context_of(step: Step) -> int:
    """KV tokens of each sequence."""
    return (step.kv_tokens or 0) // (step.batch or 1)


def step_weights(steps: tuple[Step, ...]) -> FloatArray:
    """How many decode steps each synthesized one stands for, shape [steps]; 0 for prefill.

    Their product with the steps' times is the sum over all decode steps if time is linear in the context between two
    neighbouring synthesized steps: a trapezoid over whole numbers.
    """
    out = np.zeros(len(steps))
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    context = [context_of(steps[i]) for i in decode]
    out[decode[:1]] = 1.0
    for (i, a), (j, b) in zip(
        zip(decode, context, strict=True), zip(decode[1:], context[1:], strict=True), strict=False
    ):
        out[i] += (b - a + 1) / 2 - 1  # the earlier segment, or the line above, has counted step i once
        out[j] += (b - a + 1) / 2
    return out


def prompt_steps(load: Workload) -> Any:
    """Steps of a steady load that the prompts of all of its sequences take, while each decodes `output_len` tokens in its
    `steps`; of many scenarios, where the load's numbers are Lanes."""
    return load.batch * load.chunks / load.beside[0]


def outrun(prompts: Any, steps: Any) -> Any:
    """Whether `prompt_steps` are more than the steps that a sequence decodes in."""
    return prompts > steps * (1 + 1e-9)


def first_and_rest(
    steps: tuple[Step, ...],
    seconds: FloatArray,
    load: Workload,
    draft: Draft | None = None,
    expected: FloatArray | None = None,
    ahead_s: float = 0.0,
) -> tuple[float, float]:
    """(TTFT, all later tokens of one sequence) in seconds, from those of the synthesized steps; `expected` are these steps' as
    expected where `seconds` are an end of their interval. The launch of a step with prompts begins `ahead_s` before it."""
    weights, later = step_weights(steps), load.output_len - 1
    first, all_decode = float(seconds[weights == 0].sum()), float((seconds * weights).sum())
    overhead = overhead_s(load)
    rounds = later / draft.yielded if draft else float(later)
    rest = rounds * (all_decode / max(1, later) + overhead + (draft.tokens * draft.step_s if draft else 0.0))
    if load.served:
        alone, work, others = middle_and_others(steps, seconds, load, expected)
        rest += others + (draft.others_s if draft else 0.0)
        more = overhead + (draft.tokens * draft.middle_s if draft else 0.0)
        theirs = (load.batch - 1) * load.chunks / load.beside[0]
        if load.decodes_on:
            first = max(first, alone)
            rest -= load.on_beside * (all_decode / later + overhead)
        # There are no fewer steps than work on others' prompts; where these are steps of their own, the host adds to them too.
        rest += theirs * overhead if load.apart else max(0.0, theirs - rounds) * (alone + more)
        # Nothing decodes, or is drafted, in the prompt's own steps where these are apart.
        between = load.parts * overhead if load.apart else (load.parts - 1) * alone + load.parts * more
        first += between + (load.chunks - 1) * work + load.chunks * ahead_s + (alone + more) / 2
    else:
        first += overhead
    return first + (draft.prompt_s if draft else 0.0), rest


def middle_and_others(
    steps: tuple[Step, ...], seconds: FloatArray, load: Workload, expected: FloatArray | None = None
) -> tuple[float, float, float]:
    """(a decode step in the middle of a sequence's life, what a step that works on prompts takes beyond it, what others'
    prompts add to the whole of one sequence): seconds of a steady load. `expected` as of `first_and_rest`."""
    alone, more = _middle_and_more(steps, seconds, load, expected)
    return alone, more, (load.batch - 1) * load.chunks * more / load.beside[0]


def _middle_and_more(
    steps: tuple[Step, ...], seconds: FloatArray, load: Workload, expected: FloatArray | None
) -> tuple[float, float]:
    """Seconds of a decode step in the middle of a sequence's life, and what a step that works on prompts takes beyond it."""
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    at = [context_of(steps[i]) for i in decode]

    def both(column: FloatArray) -> tuple[float, float]:
        middle = np.interp(load.input_len + load.output_len // 2, at, column[decode])
        return float(middle), float(column[step_weights(steps) == 0].sum())

    alone, mixed = both(seconds)
    if load.apart:
        return alone, max(alone, mixed) if load.decodes_on else mixed
    usual = (alone, mixed) if expected is None else both(expected)
    return alone, float(beyond(mixed, usual[1], usual[0]))


def beyond(mixed: float | FloatArray, expected: float | FloatArray, alone: float | FloatArray) -> FloatArray:
    """What a step that works on prompts takes beyond one that only decodes, at an end of its interval, `mixed`.

    `expected` and `alone` are both steps' seconds as expected: what is beyond errs as the whole does. The difference of two
    ends would not hold that of what is expected, nor rise from the one end to the other.
    """
    whole = np.where(np.asarray(expected) > 0, expected, 1.0)
    return np.asarray(np.maximum(0.0, np.subtract(expected, alone)) * (mixed / whole), dtype=np.float64)


def drafting_s(
    steps: tuple[Step, ...], seconds: FloatArray, load: Workload, expected: FloatArray
) -> tuple[float, float, float, float]:
    """`prompt_s`, `step_s`, `middle_s` and `others_s` of a drafting model, from the times of the steps of its own load."""
    weights = step_weights(steps)
    first = float(seconds[weights == 0].sum())
    each = float((seconds * weights).sum()) / max(1, load.output_len - 1)
    if not load.served:
        return first, each, 0.0, 0.0
    middle, more, others = middle_and_others(steps, seconds, load, expected)
    return load.chunks * more, each, middle, others


def metrics(times: list[tuple[float, float]], load: Workload) -> dict[str, dict[str, Any]]:
    """Each measure with its 80 % interval, unit and formula; None where only one token is asked for.

    `times` are (TTFT, all later tokens) as expected and at both ends of the interval.
    """
    value, low, high = (_measures(ttft, rest, load) for ttft, rest in times)
    out = {}
    for name, (unit, formula) in MEASURES.items():
        ends = [end for end in (low[name], high[name]) if end is not None]
        out[name] = {
            "value": value[name],
            "low": min(ends, default=None),
            "high": max(ends, default=None),
            "unit": unit,
            "formula": _SERVED.get(name, formula) if load.served else formula,
        }
    return out


def _measures(ttft: float, rest: float, load: Workload) -> dict[str, float | None]:
    batch, e2e, later = load.batch, ttft + rest, load.output_len - 1
    tpot = rest / later if later else None
    return {
        "ttft": ttft,
        "tpot": tpot,
        "itl": rest / (batch * load.output_len - 1) if later else None,
        "e2e": e2e,
        "throughput": batch * (load.input_len + load.output_len) / e2e if e2e else None,
        "output_throughput": batch * load.output_len / e2e if e2e else None,
        "user_speed": 1 / tpot if tpot else None,
    }
