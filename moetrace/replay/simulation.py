"""simulate: a synthesized run replayed on a machine, and its steps put together as a serving benchmark would see them.

A static batch: all prompts start together, their prefill is one step, then every sequence decodes to its end. Between
the decode steps that were synthesized the others are interpolated in a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware, load_hardware
from moetrace.model import ModelSpec
from moetrace.replay.engine import AS_RECORDED, Prediction, replay
from moetrace.replay.load import workload_of
from moetrace.replay.scenario import Scenario, machine_of
from moetrace.run import Run, Step
from moetrace.synthesize import Workload, synthesize

FloatArray = npt.NDArray[np.float64]
SCHEMA = "moetrace.simulation/1"
# The GPU profiles' experts and GEMMs were fitted on measurements of at most so many tokens (benchmarks/fit_gpu_profile.py).
FITTED_TOKENS = 512

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
_ASSUMED = (
    "a static batch: all sequences start together and have the same lengths, no other request's prefill comes between "
    "decode steps, and no scheduler, tokenizer or network adds time"
)


@dataclass(frozen=True, slots=True)
class Simulation:
    """A workload on a machine: the predicted run of its steps, and a JSON-able summary (schema ``moetrace.simulation/1``)."""

    prediction: Prediction
    summary: dict[str, Any]

    @property
    def run(self) -> Run:
        """The predicted run: the prefill step and the decode steps that were synthesized."""
        return self.prediction.run


def simulate(
    model: ModelSpec, workload: Workload, hw: Hardware | str, scenario: Scenario = AS_RECORDED
) -> Simulation:
    """The workload on `hw` with the scenario's knobs turned: TTFT, TPOT, ITL, throughput, memory, time by op family.

    The scenario's `batch`, `input_len` and `output_len` stand for the workload's. Raises ScenarioError if a knob cannot apply,
    or sets what follows from the workload (`context`).
    """
    if "context" in scenario.texts():
        raise ScenarioError("context: a simulation's context follows from its input and output lengths")
    hw = machine_of(load_hardware(hw), scenario)
    workload, turned = workload_of(workload, scenario)
    run = synthesize(model, workload)
    prediction = replay(run, hw, turned)
    prediction.summary.update(scenario=scenario.texts(), label=scenario.label)
    return Simulation(replace(prediction, scenario=scenario), _summary(run, prediction, workload, hw))


def _summary(run: Run, prediction: Prediction, workload: Workload, hw: Hardware) -> dict[str, Any]:
    meta, base = prediction.run.meta, prediction.summary
    seconds, low, high = prediction.step_s.T
    families = _families_by_step(prediction)
    weights = step_weights(meta.steps)
    prefill = weights == 0
    batch = meta.steps[0].batch or workload.batch
    # (TTFT, all decode steps), as expected and at both ends of the interval
    times = [(float(t[prefill].sum()), float((t * weights).sum())) for t in (seconds, low, high)]
    return {
        "schema": SCHEMA,
        "model": run.meta.model.name if run.meta.model else "",
        "hardware": hw.name,
        "gpus": meta.gpus,
        "scenario": base["scenario"],
        "label": base["label"],
        "workload": {"batch": batch, "input_len": workload.input_len, "output_len": workload.output_len},
        "metrics": _metrics(times, batch, workload),
        "steps": [_step(*row) for row in zip(meta.steps, seconds, low, high, weights, strict=True)],
        "families": _families(families, prefill, weights / max(1.0, weights.sum()), base),
        "distinct": base["distinct"],
        "memory": base["memory"],
        "wafers": base["wafers"],
        "anchored": base["anchored"],
        "assumptions": [_ASSUMED, *run.meta.notes, *base["assumptions"], *_beyond_fit(hw, meta.steps)],
    }


def step_weights(steps: tuple[Step, ...]) -> FloatArray:
    """How many decode steps each synthesized one stands for, shape [steps]; 0 for prefill.

    Their product with the steps' times is the sum over all decode steps if time is linear in the context between two
    neighbouring synthesized steps: a trapezoid over whole numbers.
    """
    out = np.zeros(len(steps))
    decode = [i for i, step in enumerate(steps) if step.phase == "decode"]
    context = [_context(steps[i]) for i in decode]
    out[decode[:1]] = 1.0
    for (i, a), (j, b) in zip(
        zip(decode, context, strict=True), zip(decode[1:], context[1:], strict=True), strict=False
    ):
        out[i] += (b - a + 1) / 2 - 1  # the earlier segment, or the line above, has counted step i once
        out[j] += (b - a + 1) / 2
    return out


def _context(step: Step) -> int:
    return (step.kv_tokens or 0) // (step.batch or 1)


def _families_by_step(prediction: Prediction) -> dict[str, FloatArray]:
    """Seconds of each step by op family, which add up to the step.

    Where a rank's ops are a part of the step's work (pipelines, halves), the families of its ops take the step's time in
    proportion, and collectives what is left of it after the rest has been computed.
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
    halves, factor = _halves(prediction), np.ones(len(steps))
    factor = np.where(
        halves, np.minimum(2.0, span / np.maximum(rest, 1e-12)), span / np.maximum(rest + sent, 1e-12)
    )
    out = {name: seconds * factor for name, seconds in found.items()}
    if sent.any():
        out["communication"] = np.maximum(span - rest * factor, 0.0)
    return out


def _halves(prediction: Prediction) -> npt.NDArray[np.bool_]:
    two = prediction.scenario.get("overlap", "none") != "none"
    return np.array([two and (step.batch or 0) > 1 for step in prediction.run.meta.steps])


def _metrics(times: list[tuple[float, float]], batch: int, w: Workload) -> dict[str, dict[str, Any]]:
    """Each measure with its 80 % interval, unit and formula; None where only one token is asked for."""
    value, low, high = (_measures(ttft, rest, batch, w) for ttft, rest in times)
    out = {}
    for name, (unit, formula) in MEASURES.items():
        ends = [end for end in (low[name], high[name]) if end is not None]
        out[name] = {
            "value": value[name],
            "low": min(ends, default=None),
            "high": max(ends, default=None),
            "unit": unit,
            "formula": formula,
        }
    return out


def _measures(ttft: float, rest: float, batch: int, w: Workload) -> dict[str, float | None]:
    e2e, later = ttft + rest, w.output_len - 1
    tpot = rest / later if later else None
    return {
        "ttft": ttft,
        "tpot": tpot,
        "itl": rest / (batch * w.output_len - 1) if later else None,
        "e2e": e2e,
        "throughput": batch * (w.input_len + w.output_len) / e2e if e2e else None,
        "output_throughput": batch * w.output_len / e2e if e2e else None,
        "user_speed": 1 / tpot if tpot else None,
    }


def _step(step: Step, seconds: float, low: float, high: float, weight: float) -> dict[str, Any]:
    return {
        "name": step.name,
        "phase": step.phase,
        "context": _context(step),
        "step_s": float(seconds),
        "low_s": float(low),
        "high_s": float(high),
        "stands_for": float(weight),
    }


def _families(
    seconds: Mapping[str, FloatArray],
    prefill: npt.NDArray[np.bool_],
    weight: FloatArray,
    base: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Seconds of the mean decode step and of the prefill step by family, largest in decode first."""
    bound = {row["family"]: row["bound"] for row in base["families"]}
    decode = {family: float((s * weight).sum()) for family, s in seconds.items()}
    first = {family: float(s[prefill].sum()) for family, s in seconds.items()}
    decode_s, prefill_s = sum(decode.values()), sum(first.values())
    return [
        {
            "family": family,
            "bound": bound.get(family) if decode[family] else None,
            "decode_s": decode[family],
            "decode_share": decode[family] / (decode_s or 1.0),
            "prefill_s": first[family],
            "prefill_share": first[family] / (prefill_s or 1.0),
        }
        for family in sorted(seconds, key=lambda f: (-decode[f], -first[f]))
    ]


def _beyond_fit(hw: Hardware, steps: tuple[Step, ...]) -> list[str]:
    """What lies outside of what the machine's coefficients were fitted on."""
    if hw.law != "gpu":
        return []
    beyond = [step for step in steps if (step.tokens or 0) > FITTED_TOKENS]
    phases = sorted({step.phase or "" for step in beyond})
    most = max((step.tokens or 0 for step in beyond), default=0)
    return [
        f"{' and '.join(phases)} steps of up to {most} tokens: the machine's coefficients were fitted on at most "
        f"{FITTED_TOKENS} tokens and on attention in decode, so their times and intervals are extrapolated"
    ] if beyond else []  # fmt: skip


__all__ = ["MEASURES", "Simulation", "simulate", "step_weights"]
