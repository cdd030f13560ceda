"""Replay: a run predicted on another machine and with knobs turned. Names load what they need when first used.

scenario (knobs at values), sets (scenarios from ``--set`` and machines), parallel (tp, ep, pp, dp), grammar, knobs (the
what-ifs), edit (of one op), unfused, sharing, beside (prompts of one data-parallel group), draft (a run while it is edited),
editing (all knobs on a draft),
distinct and stated (routing after the edits), anchor (durations), schedule (start times), setting (what the law asks beside
ops), shares (pipelines, halves), memory, outcome (of one part of a run) and summary, predicted (the run made of it) and shown
(in a notebook), engine (`replay`); load, measures, families, speculate, economics and simulation (a synthesized run replayed,
and its steps put together).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetrace.replay.engine import Prediction as Prediction
    from moetrace.replay.engine import replay as replay
    from moetrace.replay.knobs import knob_table as knob_table
    from moetrace.replay.scenario import Scenario as Scenario
    from moetrace.replay.sets import scenarios as scenarios
    from moetrace.replay.simulation import Simulation as Simulation
    from moetrace.replay.simulation import simulate as simulate

_WHERE = {
    "Prediction": "engine",
    "Scenario": "scenario",
    "Simulation": "simulation",
    "knob_table": "knobs",
    "replay": "engine",
    "scenarios": "sets",
    "simulate": "simulation",
}

__all__ = ["Prediction", "Scenario", "Simulation", "knob_table", "replay", "scenarios", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
