"""The load of a simulation: its knobs (batch, input_len, output_len) as a Workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moetrace.errors import ScenarioError
from moetrace.model import ModelSpec
from moetrace.replay.knobs import knob_name
from moetrace.replay.scenario import Scenario
from moetrace.replay.sets import read_sets
from moetrace.replay.stated_routing import SKEWED
from moetrace.synthesize import Workload

LOAD = ("batch", "input_len", "output_len")
DRAFTING = ("draft", "draft_tokens", "acceptance")
YIELDED = "tokens_per_step"
# Engines whose steps work on prompts or decode, never both, unless asked (SGLang's srt/server_args.py: enable_mixed_chunk).
APART = frozenset({"sglang"})


def read_load(sets: Sequence[str]) -> tuple[Workload, list[str]]:
    """(the workload of each load knob's first value, the sets without those that have one value).

    Raises ScenarioError naming a knob of the load that is missing.
    """
    chosen = read_sets(sets)
    lacking = next((name for name in LOAD if name not in chosen), None)
    if lacking is not None:
        raise ScenarioError(f"a simulation needs {', '.join(LOAD)}: add --{lacking.replace('_', '-')} N")
    once = {name for name in LOAD if len(chosen[name]) == 1}
    rest = [text for text in sets if knob_name(text.partition("=")[0]) not in once]
    return Workload(*(chosen[name][0].value for name in LOAD)), rest


def workload_of(workload: Workload, scenario: Scenario) -> tuple[Workload, Scenario]:
    """(the workload with what the scenario says of it, the scenario without that). Raises ScenarioError for `context`."""
    if "context" in scenario.texts():
        raise ScenarioError("context: a simulation's context follows from its input and output lengths")
    said = {name: scenario.get(name) for name in (*LOAD, "chunk") if scenario.get(name) is not None}
    serving = scenario.get("serving")
    if serving is not None:
        said["served"] = serving == "continuous"
    if scenario.get("chunk") is not None and not said.get("served", workload.served):
        raise ScenarioError(
            f"chunk={scenario.get('chunk')}: a static batch works on all prompts in one step: add --set serving=continuous"
        )
    if scenario.get("host") is not None:
        said["host_s"] = scenario.get("host")
    said["groups"] = scenario.get("dp", 1)
    if scenario.get("engine") is not None:
        said["apart"] = str(scenario.get("engine")).partition("@")[0] in APART
    rest = tuple(s for s in scenario.settings if s.name not in (*said, "serving", "host", *DRAFTING, YIELDED))
    return replace(workload, **said), replace(scenario, settings=rest)


def served_as(model: ModelSpec, load: Workload, turned: Scenario) -> Scenario:
    """The scenario with the routing that a served model is taken to have where none is stated."""
    if load.served and model.experts and turned.get("routing") is None:
        return turned.adding("routing", SKEWED)
    return turned
