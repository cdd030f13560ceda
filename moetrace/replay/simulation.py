"""simulate: a synthesized run replayed on a machine, and its steps put together as a serving benchmark would see them.

A static batch: all prompts start together, their prefill is one step, then every sequence decodes to its end. Between
the decode steps that were synthesized the others are interpolated in a straight line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.hardware import Hardware, load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.replay import measures, speculate
from moetrace.replay.draft import Draft
from moetrace.replay.economics import economics
from moetrace.replay.engine import AS_RECORDED, Prediction, predict
from moetrace.replay.families import rows_of, spent_by
from moetrace.replay.lengths import all_within
from moetrace.replay.load import served_as, workload_of
from moetrace.replay.measures import (
    MEASURES,
    context_of,
    first_and_rest,
    metrics,
    outrun,
    overhead_s,
    prompt_steps,
    step_weights,
)
from moetrace.replay.scenario import Scenario, machine_of
from moetrace.replay.speculate import Drafting, beside
from moetrace.replay.summary import EXTRAPOLATED
from moetrace.run import TPOT, Run, Step
from moetrace.synthesize import Workload, check_workload, synthesize
from moetrace.units import seconds

FloatArray = npt.NDArray[np.float64]
SCHEMA = "moetrace.simulation/1"


_ASSUMED = (
    "a static batch: all sequences start together and have the same lengths, no other request's prefill comes between "
    "decode steps, and {overhead}"
)


_SERVED = (
    "a steady load: the batch is full at any time, with sequences of equal lengths, each at a different point; the next starts "
    "as one ends; prompts are processed {where}, and the host adds {overhead} to each step"
)
_QUEUED = (
    "more prompts arrive than are processed: those of {batch} sequences take {steps:,.0f} steps while one decodes {output_len} "
    "tokens{own}; it is assumed to wait for them between its tokens, where an engine lets it queue before the first: TPOT is "
    "too long and TTFT too short; E2E and throughput include the wait"
)


@dataclass(frozen=True, slots=True)
class Simulation:
    """A workload on a machine: the predicted run of its steps, and a JSON-able summary (schema ``moetrace.simulation/1``)."""

    prediction: Prediction
    summary: dict[str, Any]

    def __repr__(self) -> str:
        found = self.summary["metrics"]
        said = ", ".join(
            f"{m.upper()} {seconds(found[m]['value'])}" for m in ("ttft", "tpot") if found[m]["value"]
        )
        return f"<Simulation {self.summary['model']} on {self.summary['hardware']}: {said}; .summary, .run>"

    @property
    def run(self) -> Run:
        """The predicted run: the prefill step and the decode steps that were synthesized."""
        return self.prediction.run


def simulate(
    model: ModelSpec | str,
    workload: Workload,
    hw: Hardware | str,
    scenario: Scenario = AS_RECORDED,
    *,
    price_per_hour: float | None = None,
) -> Simulation:
    """The workload on `hw` with the scenario's knobs turned: TTFT, TPOT, ITL, throughput, memory, time by op family.

    `model` is a ModelSpec, the name of one in the catalogue or the path of a config.json.
    The scenario's `batch`, `input_len` and `output_len` stand for the workload's. Raises ScenarioError if a knob cannot apply,
    or sets what follows from the workload (`context`). `price_per_hour` is a user's for one device.
    """
    check_workload(workload)
    hw, model = machine_of(load_hardware(hw), scenario), load_model(model)
    load, turned = workload_of(workload, scenario)
    speculation = speculate.asked(scenario)
    drafting = speculate.stated(scenario)
    if drafting:
        load = replace(load, verify=ceil(drafting.ends[0].yielded), yielded=drafting.ends[0].yielded)
    if speculation:
        yielded = measures.Draft(*speculation[1:], 0.0, 0.0).yielded
        load = replace(load, verify=speculation[1] + 1, yielded=yielded)
    turned = served_as(model, load, turned)
    run = synthesize(model, load)
    if speculation:
        drafting = speculate.drafting(*speculation, load, scenario, Draft.of(run, hw, turned))
    prediction = predict(run, hw, turned, drafting.beside if drafting else None)
    prediction.summary.update(scenario=scenario.texts(), label=scenario.label)
    prediction = replace(prediction, scenario=scenario)
    summary = _summary(run, prediction, load, hw, drafting, price_per_hour)
    of_steps = not (drafting or load.served or overhead_s(load))
    made = _with_tpot(prediction.run, summary["metrics"]["tpot"], of_steps)
    return Simulation(replace(prediction, run=made), summary)


def _with_tpot(run: Run, found: dict[str, Any], of_steps: bool) -> Run:
    """The run with its TPOT, and whether that is of its decode steps alone."""
    if found["value"] is None:
        return run
    ends = {"low_s": found["low"], "high_s": found["high"]}
    said = {"expected_s": found["value"], **ends, "of_steps": of_steps}
    return run.with_meta(facts={**run.meta.facts, TPOT: said})


def _summary(
    run: Run,
    prediction: Prediction,
    load: Workload,
    hw: Hardware,
    drafting: Drafting | None,
    price_per_hour: float | None,
) -> dict[str, Any]:
    meta, base = prediction.run.meta, prediction.summary
    weights = step_weights(meta.steps)
    ends = drafting.ends if drafting else (None, None, None)
    # Both models' errors are one machine's: they err together.
    columns = zip(prediction.step_s.T, ends, strict=True)
    usual = prediction.step_s[:, 0]
    ahead_s = float(prediction.ahead_s[0])  # of the step with prompts, which is the first
    found = metrics(
        [first_and_rest(meta.steps, column, load, draft, usual, ahead_s) for column, draft in columns], load
    )
    drafted = (drafting.families, drafting.ends[0].tokens) if drafting else ({}, 0)
    beyond_fit = beside(base["beyond_fit"], drafting.beyond_fit if drafting else "")
    said = [
        _load_said(load),
        *_queued(load),
        *run.meta.notes,
        *([drafting.said] if drafting else []),
    ]
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
        "queued": _is_queued(load),
        "parallel": base["parallel"],
        "metrics": found,
        "steps": [
            _step(step, times.tolist(), weight, load)
            for step, times, weight in zip(meta.steps, prediction.step_s, weights, strict=True)
        ],
        "families": rows_of(spent_by(prediction), *drafted),
        "distinct": base["distinct"],
        "memory": base["memory"],
        "wafers": base["wafers"],
        "economics": economics(hw, found["output_throughput"]["value"], base["wafers"], price_per_hour),
        "context": {
            **base["context"],
            "within": all_within((base["context"]["within"], *((drafting.in_context,) if drafting else ()))),
        },
        "accuracy": base["accuracy"],
        "anchored": base["anchored"],
        "beyond_fit": beyond_fit,
        "assumptions": [*said, *base["assumptions"]],
    }


def _load_said(load: Workload) -> str:
    """What the load and its host are taken to be, in words."""
    stated = f"{overhead_s(load) * 1e3:g} ms"
    if load.served:
        where = "in steps of their own" if load.apart else "beside decoding"
        where += ", beside which data-parallel groups that have none decode" if load.decodes_on else ""
        return _SERVED.format(overhead=stated, where=where)
    if load.host_s is None:
        return _ASSUMED.format(overhead="no scheduler, tokenizer or network adds time")
    return _ASSUMED.format(overhead=f"the host adds {stated} to each step, as stated")


def _queued(load: Workload) -> list[str]:
    """What is said of a steady load whose prompts take more steps than a sequence decodes in."""
    if not _is_queued(load):
        return []
    own = f" in {load.steps:,.0f} steps" if load.yielded > 1 else ""
    return [_QUEUED.format(batch=load.batch, steps=prompt_steps(load), output_len=load.output_len, own=own)]


def _is_queued(load: Workload) -> bool:
    """Whether prompts are more than the steps work on; where they have steps of their own, decoding waits for these."""
    return load.served and not load.apart and bool(outrun(prompt_steps(load), load.steps))


def _step(step: Step, times: list[float], weight: float, load: Workload) -> dict[str, Any]:
    seconds, low, high = times
    prompts = step.phase == "prefill" and load.apart
    return {
        "name": step.name,
        "phase": step.phase,
        "context": load.beside[2] if prompts else context_of(step),
        "step_s": seconds,
        "low_s": low,
        "high_s": high,
        "stands_for": float(weight),
    }


__all__ = ["MEASURES", "Simulation", "simulate", "step_weights"]
