"""Predictions whose routing nobody knows: what the other end of what is likely would give.

Without a recording a static batch routes uniformly, the most distinct experts that independent tokens touch. Text touches
fewer: 16 tokens of Qwen3-30B-A3B 43 to 54 of 128 experts where uniform routing touches 82 (arXiv 2511.02237, table 4). In
decode that is up to a third of a step, far beyond the law's own error, so no answer stands without the other one.
"""

from __future__ import annotations

from typing import Any

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.model import ModelSpec
from moetrace.replay.engine import replay
from moetrace.replay.outcome import UNIFORM
from moetrace.replay.scenario import Scenario
from moetrace.replay.simulation import simulate
from moetrace.replay.stated_routing import SKEWED
from moetrace.run import Run, main_phase
from moetrace.synthesize import Workload

Facts = dict[str, Any]


def simulated_otherwise(
    summary: Facts, model: ModelSpec, workload: Workload, hw: Hardware, scenario: Scenario
) -> Facts | None:
    """TPOT of a simulation whose routing is not known, had its tokens chosen experts as text does: `routing`, `mean_distinct`,
    `value`, `low` and `high` in seconds. None where routing is known or stated, or nothing is decoded."""
    if not _is_unknown(summary, scenario):
        return None
    other = simulate(model, workload, hw, scenario.adding("routing", SKEWED)).summary
    return _told(other, other["metrics"]["tpot"])


def replayed_otherwise(summary: Facts, run: Run, hw: Hardware, scenario: Scenario) -> Facts | None:
    """The same of the main step of a replay. None also where a measurement stands behind the step, whatever its routing was,
    and for a run so long that it is read in parts."""
    unanchored = summary["anchored"] == "unanchored"
    if not unanchored or not _is_unknown(summary, scenario) or next(iter(run.parts())) is not run:
        return None
    try:
        other = replay(run, hw, scenario.adding("routing", SKEWED)).summary
    except ScenarioError:  # a knob that wants the recording's own routing
        return None
    step = other["phases"][main_phase(other["phases"])]
    return _told(other, {"value": step["step_s"], "low": step["low_s"], "high": step["high_s"]})


def _is_unknown(summary: Facts, scenario: Scenario) -> bool:
    routed = summary["distinct"]
    return bool(routed) and scenario.get("routing") is None and UNIFORM in routed["source"]


def _told(other: Facts, time: Facts) -> Facts | None:
    if time["value"] is None or not other["distinct"]:
        return None
    routed = {"routing": SKEWED, "mean_distinct": other["distinct"]["mean_distinct"]}
    return routed | {name: time[name] for name in ("value", "low", "high")}
