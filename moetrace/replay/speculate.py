"""The drafting model of speculative decoding: what it takes on the machine, beside the model that verifies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.model import ModelSpec, load_model
from moetrace.replay.engine import replay
from moetrace.replay.load import DRAFTING, YIELDED
from moetrace.replay.measures import Draft, first_and_rest
from moetrace.replay.scenario import Scenario
from moetrace.synthesize import Workload, synthesize


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


@dataclass(frozen=True, slots=True)
class Drafting:
    """What drafting takes: as expected and at both ends of its 80 % interval, the bytes of the drafting model on each device
    (on a wafer in all; 0: none is said), what of it lies beyond the fit, and a sentence on it."""

    ends: tuple[Draft, Draft, Draft]
    held_bytes: float
    beyond_fit: str
    said: str


def stated(scenario: Scenario) -> Drafting | None:
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
    return Drafting((Draft(0, 0.0, 0.0, 0.0, float(value)),) * 3, 0.0, "", text)


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


def beside(model: str, draft: str) -> str:
    """What of a model and of the one that drafts for it lies beyond the fit, as one text; "" where nothing does."""
    return "; ".join([*([model] if model else []), *([f"drafting model: {draft}"] if draft else [])])


def drafting(
    model: ModelSpec, tokens: int, acceptance: float, load: Workload, hw: Hardware, scenario: Scenario
) -> Drafting:
    """What the drafting model takes.

    It runs on the same devices: cut over tp where its widths allow, else whole on every GPU. It drafts one token after
    another, from the same contexts.
    """
    own = replace(load, served=False, verify=1, host_s=None)
    run = synthesize(model, own)
    for machine, how in places(hw, scenario):
        try:
            prediction = replay(run, machine, how)
        except ScenarioError:
            continue
        break
    summary, memory = prediction.summary, prediction.summary["memory"]
    times = [first_and_rest(prediction.run.meta.steps, column, own) for column in prediction.step_s.T]
    expected, low, high = (
        Draft(tokens, acceptance, ttft, rest / max(1, load.output_len - 1)) for ttft, rest in times
    )
    where = (
        f"cut over {machine.gpus} GPUs"
        if machine.gpus > 1
        else "whole on every device"
        if hw.gpus > 1
        else "beside the model"
    )
    alone = "; each is timed as if the wafers' cores were all its own" if hw.device_class == "wafer" else ""
    text = (
        f"draft={model.name}: {tokens} tokens drafted one after another for each step, {expected.step_s * 1e3:.2f} ms each, "
        f"{where}{alone}; each accepted with probability {acceptance:g}, independently, so a step yields "
        f"{expected.yielded:.2f} tokens; the drafted tokens of a sequence choose experts as independently as those of others, "
        "which overstates the distinct ones"
    )
    held = held_bytes(memory["rank"], memory["weight_bytes"], memory["kv_bytes"])
    return Drafting((expected, low, high), held, summary["beyond_fit"], text)
