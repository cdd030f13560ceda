"""simulate: a synthesized run replayed on a machine, and its steps put together as a serving benchmark would see them.

A static batch: all prompts start together, their prefill is one step, then every sequence decodes to its end. Between
the decode steps that were synthesized the others are interpolated in a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.hardware import Hardware, load_hardware
from moetrace.machines.wafer import wafers as wafers_for
from moetrace.model import ModelSpec
from moetrace.replay import speculate
from moetrace.replay.draft import Share
from moetrace.replay.economics import economics
from moetrace.replay.engine import AS_RECORDED, Prediction, replay
from moetrace.replay.load import workload_of
from moetrace.replay.measures import (
    MEASURES,
    context_of,
    first_and_rest,
    metrics,
    overhead_s,
    step_weights,
)
from moetrace.replay.scenario import Scenario, machine_of
from moetrace.replay.speculate import Drafting, beside
from moetrace.replay.stated import SKEWED
from moetrace.replay.summary import EXTRAPOLATED
from moetrace.run import Run, Step
from moetrace.synthesize import Workload, synthesize

FloatArray = npt.NDArray[np.float64]
SCHEMA = "moetrace.simulation/1"


_ASSUMED = (
    "a static batch: all sequences start together and have the same lengths, no other request's prefill comes between "
    "decode steps, and {overhead}"
)


_SERVED = (
    "a steady load: as many sequences as the batch at any time, of equal lengths, the next starting as one ends, at different "
    "points of their lives; prompts are worked through beside decoding, and the host adds {overhead} to each step"
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
    model: ModelSpec,
    workload: Workload,
    hw: Hardware | str,
    scenario: Scenario = AS_RECORDED,
    *,
    price_per_hour: float | None = None,
) -> Simulation:
    """The workload on `hw` with the scenario's knobs turned: TTFT, TPOT, ITL, throughput, memory, time by op family.

    The scenario's `batch`, `input_len` and `output_len` stand for the workload's. Raises ScenarioError if a knob cannot apply,
    or sets what follows from the workload (`context`). `price_per_hour` is a user's for one device.
    """
    hw = machine_of(load_hardware(hw), scenario)
    load, turned = workload_of(workload, scenario)
    speculation = speculate.asked(scenario)
    drafting = speculate.stated(scenario)
    if drafting:
        load = replace(load, verify=ceil(drafting.ends[0].yielded))
    if speculation:
        load = replace(load, verify=speculation[1] + 1)
        drafting = speculate.drafting(*speculation, load, hw, scenario)
    turned = served_as(model, load, turned)
    run = synthesize(model, load)
    prediction = replay(run, hw, turned)
    prediction.summary.update(scenario=scenario.texts(), label=scenario.label)
    prediction = replace(prediction, scenario=scenario)
    return Simulation(prediction, _summary(run, prediction, load, hw, drafting, price_per_hour))


def served_as(model: ModelSpec, load: Workload, turned: Scenario) -> Scenario:
    """The scenario with the routing that a served model is taken to have where none is stated."""
    if load.served and model.experts and turned.get("routing") is None:
        return turned.adding("routing", SKEWED)
    return turned


def _summary(
    run: Run,
    prediction: Prediction,
    load: Workload,
    hw: Hardware,
    drafting: Drafting | None,
    price_per_hour: float | None,
) -> dict[str, Any]:
    meta, base = prediction.run.meta, prediction.summary
    families, weights = _families_by_step(prediction), step_weights(meta.steps)
    ends = drafting.ends if drafting else (None, None, None)
    columns = zip(
        prediction.step_s.T, ends, strict=True
    )  # both models' errors are one machine's: they err together
    found = metrics([first_and_rest(meta.steps, column, load, draft) for column, draft in columns], load)
    memory, wafers, beyond_fit = base["memory"], base["wafers"], base["beyond_fit"]
    if drafting:
        memory = _with_draft(memory, drafting.held_bytes, meta.gpus)
        beyond_fit = beside(beyond_fit, drafting.beyond_fit)
        wafers = wafers and wafers_for(hw, memory["needed_bytes"])
    said = [_load_said(load), *run.meta.notes, *([drafting.said] if drafting else [])]
    said += (
        [f"drafting model: {EXTRAPOLATED}{drafting.beyond_fit}"] if drafting and drafting.beyond_fit else []
    )
    return {
        "schema": SCHEMA,
        "model": run.meta.model.name if run.meta.model else "",
        "hardware": hw.name,
        "gpus": meta.gpus,
        "scenario": base["scenario"],
        "label": base["label"],
        "workload": {"batch": load.batch, "input_len": load.input_len, "output_len": load.output_len},
        "serving": "continuous" if load.served else "static",
        "parallel": base["parallel"],
        "metrics": found,
        "steps": [
            _step(step, times.tolist(), weight)
            for step, times, weight in zip(meta.steps, prediction.step_s, weights, strict=True)
        ],
        "families": _families(families, weights == 0, weights / max(1.0, weights.sum()), base),
        "distinct": base["distinct"],
        "memory": memory,
        "wafers": wafers,
        "economics": economics(hw, found["output_throughput"]["value"], wafers, price_per_hour),
        "accuracy": base["accuracy"],
        "anchored": base["anchored"],
        "beyond_fit": beyond_fit,
        "assumptions": [*said, *base["assumptions"]],
    }


def _load_said(load: Workload) -> str:
    """What the load and its host are taken to be, in words."""
    stated = f"{overhead_s(load) * 1e3:g} ms"
    if load.served:
        return _SERVED.format(overhead=stated)
    if load.host_s is None:
        return _ASSUMED.format(overhead="no scheduler, tokenizer or network adds time")
    return _ASSUMED.format(overhead=f"the host adds {stated} to each step, as stated")


def _with_draft(memory: Mapping[str, Any], held: float, devices: int) -> dict[str, Any]:
    """The memory of a simulation with a drafting model beside; how many sequences would fit is not worked out with it."""
    if memory["needed_bytes"] is None or not held:
        return dict(memory)
    rank, needed = {**memory["rank"], "draft": held}, memory["needed_bytes"] + held * devices
    used = sum(rank.values()) if memory["rank"] else needed  # a wafer has no ranks
    return {
        **memory,
        "needed_bytes": needed,
        "rank": rank,
        "fits": used <= memory["rank_capacity_bytes"] if memory["fits"] is not None else None,
        "largest_batch": None,
    }


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
    shares = prediction.shares or (Share(1),) * len(steps)
    halves, times = np.array([s.halves for s in shares]), np.array([s.times for s in shares])
    both = times * np.minimum(2.0, span / times / np.maximum(rest, 1e-12))
    factor = np.where(halves, both, span / np.maximum(rest + sent, 1e-12))
    out = {name: seconds * factor for name, seconds in found.items()}
    if sent.any():
        out["communication"] = np.maximum(span - rest * factor, 0.0)
    return out


def _step(step: Step, times: list[float], weight: float) -> dict[str, Any]:
    seconds, low, high = times
    return {
        "name": step.name,
        "phase": step.phase,
        "context": context_of(step),
        "step_s": seconds,
        "low_s": low,
        "high_s": high,
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


__all__ = ["MEASURES", "Simulation", "simulate", "step_weights"]
