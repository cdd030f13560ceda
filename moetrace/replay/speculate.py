"""The drafting model of speculative decoding: what it takes on the machine, beside the model that verifies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.model import ModelSpec, load_model
from moetrace.replay.engine import replay
from moetrace.replay.load import DRAFTING, YIELDED
from moetrace.replay.measures import Draft, first_and_rest
from moetrace.replay.scenario import Scenario
from moetrace.synthesize import Workload, synthesize

if TYPE_CHECKING:
    from collections.abc import Mapping


def asked(scenario: Scenario) -> tuple[ModelSpec, int, float] | None:
    """(drafting model, tokens it drafts, acceptance) of a scenario; None without. Raises ScenarioError if one is missing."""
    said = {name: scenario.get(name) for name in DRAFTING}
    if all(value is None for value in said.values()):
        return None
    lacking = [name for name, value in said.items() if value is None]
    if lacking:
        raise ScenarioError(
            f"speculative decoding needs {', '.join(DRAFTING)}: add --set {lacking[0]}=... (there is no default acceptance: it "
            "depends on model and text)"
        )
    return load_model(str(said["draft"])), int(said["draft_tokens"]), float(said["acceptance"])


def stated(scenario: Scenario) -> tuple[Draft, dict[str, float], str] | None:
    """What `drafting` gives, of the tokens that a step is said to yield; None without. Raises ScenarioError beside a draft."""
    value = scenario.get(YIELDED)
    if value is None:
        return None
    if any(scenario.get(name) is not None for name in DRAFTING):
        raise ScenarioError(
            f"{YIELDED} says what a step yields, and so do {', '.join(DRAFTING)}: leave one out"
        )
    text = (
        f"{YIELDED}={value:g}: an assumption, not a prediction. How tokens are drafted is not said, so what drafts them "
        "takes no time and no memory here, and as many tokens are verified as are accepted"
    )
    return Draft(0, 0.0, 0.0, 0.0, float(value)), {}, text


def places(hw: Hardware, scenario: Scenario) -> list[tuple[Hardware, Scenario]]:
    """Where a drafting model may run, best first: cut over tp where that is all devices, else whole on every one."""
    tp = int(scenario.get("tp", 1))
    cut = [(hw, Scenario.of(f"tp={tp}"))] if hw.gpus > 1 and tp == hw.gpus else []
    alone = hw if hw.gpus == 1 else replace(hw, name=hw.base or hw.name, gpus=1, base=None)
    return [*cut, (alone, Scenario())]


def held_bytes(rank: Mapping[str, Any], weights: Any, kv: Any) -> Any:
    """Bytes that a drafting model takes of each device beside the model; of a wafer, which has no ranks, all of it."""
    if not rank:
        return (weights or 0.0) + (kv or 0.0)
    return sum(rank.get(part, 0.0) for part in ("experts", "attention", "other", "kv"))


def drafting(
    model: ModelSpec, tokens: int, acceptance: float, load: Workload, hw: Hardware, scenario: Scenario
) -> tuple[Draft, Mapping[str, float], str]:
    """(what the drafting model takes, bytes of it on each device by part, a sentence on it).

    It runs on the same devices: cut over tp where its widths allow, else whole on every GPU. It drafts one token after
    another, from the same contexts.
    """
    run = synthesize(model, replace(load, served=False, verify=1, host_s=None))
    for machine, how in places(hw, scenario):
        try:
            prediction = replay(run, machine, how)
        except ScenarioError:
            continue
        break
    steps, memory = prediction.run.meta.steps, prediction.summary["memory"]
    own = replace(load, served=False, verify=1, host_s=None)
    ttft, rest = first_and_rest(steps, prediction.step_s[:, 0], own)
    step = rest / max(1, load.output_len - 1)
    where = (
        f"cut over {machine.gpus} GPUs"
        if machine.gpus > 1
        else "whole on every device"
        if hw.gpus > 1
        else "beside the model"
    )
    held = {"weights and cache": held_bytes(memory["rank"], memory["weight_bytes"], memory["kv_bytes"])}
    draft = Draft(tokens, acceptance, ttft, step)
    text = (
        f"draft={model.name}: {tokens} tokens drafted one after another for each step, {step * 1e3:.2f} ms each, {where}; each "
        f"accepted with probability {acceptance:g}, independently, so a step yields {draft.yielded:.2f} tokens; the drafted "
        "tokens of a sequence choose experts as independently as those of others, which overstates the distinct ones"
    )
    return draft, held, text
