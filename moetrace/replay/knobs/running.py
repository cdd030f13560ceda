"""Knobs of how a model is run: routing, fused experts, CUDA graph, placement on a wafer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moetrace.errors import ScenarioError
from moetrace.hardware import OTHER_VERSION
from moetrace.replay import edit
from moetrace.replay.grammar import engine_name, one_of, one_whole, routing_name
from moetrace.replay.knobs.registry import knob

if TYPE_CHECKING:
    from moetrace.replay.draft import Draft


@knob(
    "routing",
    "which experts tokens choose, instead of what was recorded or, without a recording, uniformly",
    "uniform, balanced, power_law:ALPHA, skewed, skewed:SIGMA, popularity or recorded",
    routing_name,
)
def routing(draft: Draft, value: str) -> Draft:
    """Changes no op here: the distinct experts and rows are settled after the last knob."""
    if not draft.experts:
        from moetrace.replay.no_experts import no_experts

        raise no_experts(draft, f"routing={value}")
    if value == "recorded" and draft.run.routing is None and not any(op.has("distinct") for op in draft.ops):
        raise ScenarioError("routing=recorded: no routing was recorded")
    if value == "popularity" and draft.run.routing is None:
        raise ScenarioError("routing=popularity: no routing was recorded, so no expert's popularity is known")
    return draft


@knob("eplb", "redundant experts per layer that even out the ranks' load (EPLB)", "a whole number", one_whole)
def eplb(draft: Draft, value: int) -> Draft:
    """Copies of busy experts; they take memory, and rows spread evenly over the ranks."""
    ranks, experts = draft.parallel.ep, draft.experts
    if ranks == 1 or not experts:
        raise ScenarioError(
            f"eplb={value}: copies even out expert-parallel ranks, and there are none: add ep"
        )
    if (experts + value) % ranks:
        raise ScenarioError(f"eplb={value}: {experts} + {value} experts do not divide by ep={ranks}")
    if draft.scenario.get("routing") in (None, "recorded", "popularity"):
        raise ScenarioError(
            f"eplb={value}: say what it evens out: add routing=uniform, skewed or power_law:ALPHA"
        )
    return draft


@knob(
    "engine",
    "serving engine whose kernels are priced, where a profile has coefficients of its own for it",
    "any, vllm, sglang or trtllm; sglang@0.4.4 says its version",
    engine_name,
)
def engine(draft: Draft, value: str) -> Draft:
    """Changes no op: the law's coefficients are chosen by it, and how sure they are."""
    if draft.hw.device_class != "gpu":
        raise ScenarioError(f"engine={value}: {draft.hw.name} is not a GPU, and its law knows no engines")
    fitted = {key.partition("@")[2] for key in draft.hw.families if "@" in key}
    name = value.partition("@")[0]
    if name != "any" and name not in fitted:
        raise ScenarioError(
            f"engine={value}: {draft.hw.name} has no coefficients of that engine (it has {', '.join(sorted(fitted)) or 'none'})"
        )
    draft = draft.noted(*_prompts_stay(draft, value))
    if draft.hw.is_other_version(value):
        measured = draft.hw.engines.get(name, "a version that its profile does not tell")
        return draft.noted(
            f"engine={value}: the coefficients of {draft.hw.name} are of {measured}; what another version changes is not "
            f"known, so they may err by {100 * OTHER_VERSION:.0f} % more, the most that was seen between versions on two chips"
        )
    return draft


def _prompts_stay(draft: Draft, value: str) -> list[str]:
    """What is said where a steady load's run has its prompts elsewhere than this engine would."""
    from moetrace.replay.load import APART  # here: it reads the knobs

    load = draft.run.meta.facts.get("workload")
    if not isinstance(load, Mapping) or "beside" not in load:
        return []
    apart = bool(load.get("apart"))
    if apart == (value.partition("@")[0] in APART):
        return []
    stay, would = ("in steps of their own", "beside decoding")[:: 1 if apart else -1]
    return [
        f"engine={value}: the run's prompts stay {stay}; that engine works on them {would}: simulate the model under it"
    ]


@knob(
    "pad",
    "whether decode steps have the rows of graphs that an engine captures (a simulation's do, a recording's are as they ran); "
    "routed: padded rows choose experts as further tokens would",
    "engine, routed or none",
    one_of("engine", "routed", "none"),
)
def pad(draft: Draft, value: str) -> Draft:
    """A batch that was not captured runs in the next larger graph."""
    if value == "none":
        return draft
    from moetrace.replay.padding import padded  # here: it brings numpy

    return padded(draft, f"pad={value}", routed=value == "routed")


@knob(
    "experts",
    "expert GEMMs: grouped in a fused kernel, or one by one",
    "fused or unfused",
    one_of("fused", "unfused"),
    late=True,
)
def experts(draft: Draft, value: str) -> Draft:
    """One by one, every distinct expert gathers its rows, runs three GEMMs' worth in two kernels, and scatters them back."""
    from moetrace.replay.no_experts import no_experts, runs_one_by_one
    from moetrace.replay.unfused import unfused

    if value == "fused":
        if runs_one_by_one(draft):
            raise no_experts(draft, "experts=fused")
        return draft
    if runs_one_by_one(draft):
        raise ScenarioError("experts=unfused: the recording runs them one by one already")
    if not any(op.kind in edit.EXPERT_GEMMS for op in draft.ops):
        raise no_experts(draft, "experts=unfused")
    return unfused(draft)


@knob(
    "graph",
    "kernels launched by a CUDA graph, or one by one by the host (eager)",
    "on or off",
    one_of("on", "off"),
)
def graph(draft: Draft, value: str) -> Draft:
    """Changes no op: the schedule reads it."""
    if draft.hw.device_class != "gpu":
        raise ScenarioError(f"graph={value}: {draft.hw.name} is not a GPU, and its launches are not modelled")
    return draft


@knob(
    "placement",
    "where a wafer keeps experts: over the cores of their layer, or each on its own; whole: all weights over all cores",
    "spread, own or whole",
    one_of("spread", "own", "whole"),
)
def placement(draft: Draft, value: str) -> Draft:
    """Changes no op: the wafer's law reads it."""
    if draft.hw.device_class != "wafer":
        raise ScenarioError(f"placement={value}: {draft.hw.name} is not a wafer")
    return draft
