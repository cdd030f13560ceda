"""The drafting model of speculative decoding: what it takes on the machine, beside the model that verifies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.machines.wafer import part_of
from moetrace.model import ModelSpec, load_model
from moetrace.replay import memory
from moetrace.replay.draft import Draft as EditDraft
from moetrace.replay.editing import edited, with_knobs
from moetrace.replay.engine import Prediction, predict
from moetrace.replay.families import Spent, spent_by
from moetrace.replay.lengths import too_long
from moetrace.replay.load import DRAFTING, YIELDED, served_as
from moetrace.replay.measures import Draft, drafting_s
from moetrace.replay.memory import Beside
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
    """What drafting takes: as expected and at both ends of its 80 % interval, by op family, the memory (None: none is said),
    what of it lies beyond the fit, whether it is made for sequences of such lengths, and a sentence on it."""

    ends: tuple[Draft, Draft, Draft]
    families: Mapping[str, Spent]
    beside: Beside | None
    beyond_fit: str
    in_context: bool | None
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
    return Drafting((Draft(0, 0.0, 0.0, 0.0, float(value)),) * 3, {}, None, "", True, text)


def places(hw: Hardware, scenario: Scenario) -> list[tuple[Hardware, Scenario]]:
    """Where a drafting model may run and how, best first: cut over tp where that is all devices, else whole on every one; under
    the same engine, and from graphs as the model is."""
    tp, laid = int(scenario.get("tp", 1)), scenario.get("placement")
    on_gpu = hw.device_class == "gpu"
    like = ["pad=none"] if scenario.get("pad") == "none" and on_gpu else []
    told = {name: scenario.get(name) for name in ("engine", "graph") if on_gpu or name == "engine"}
    like += [f"{name}={value}" for name, value in told.items() if value is not None]
    cut = [(hw, Scenario.of(f"tp={tp}", *like))] if hw.gpus > 1 and tp == hw.gpus else []
    alone = hw if hw.gpus == 1 else replace(hw, name=hw.base or hw.name, gpus=1, base=None)
    return [*cut, (alone, Scenario.of(*([f"placement={laid}"] if laid else []), *like))]


def load_of(load: Workload, scenario: Scenario) -> Workload:
    """The load of a drafting model: one token at a time, of the sequences of its data-parallel group."""
    return replace(
        load, batch=-(-load.batch // int(scenario.get("dp", 1))), verify=1, host_s=None, groups=1, drafts=True
    )


def beside(model: str, draft: str) -> str:
    """What of a model and of the one that drafts for it lies beyond the fit, as one text; "" where nothing does."""
    return "; ".join([*([model] if model else []), *([f"drafting model: {draft}"] if draft else [])])


def drafting(
    model: ModelSpec, tokens: int, acceptance: float, load: Workload, scenario: Scenario, target: EditDraft
) -> Drafting:
    """What the drafting model takes beside the model that verifies, whose draft before its knobs is `target`.

    It runs on the same devices: cut over tp where its widths allow, else whole on every GPU. It drafts one token after
    another, from the same contexts.
    """
    own, hw = load_of(load, scenario), target.hw
    run = synthesize(model, own)
    for machine, how in places(hw, scenario):
        how = served_as(model, own, how)
        try:
            own_draft = edited(run, machine, how)
        except ScenarioError:
            continue
        break
    here, there = beside_each_other(with_knobs(target), own_draft, tokens)
    prediction = predict(run, machine, how, there)
    steps, beyond_fit = prediction.run.meta.steps, prediction.summary["beyond_fit"]
    expected, low, high = (
        Draft(tokens, acceptance, prompt, each, None, middle, others)
        for prompt, each, middle, others in (
            drafting_s(steps, column, own, prediction.step_s[:, 0]) for column in prediction.step_s.T
        )
    )
    text = (
        f"draft={model.name}: {tokens} tokens drafted one after another for each step, {expected.step_s * 1e3:.2f} ms each, "
        f"{_where(hw, machine, prediction)}; each accepted with probability {acceptance:g}, independently, so a step yields "
        f"{expected.yielded:.2f} tokens; the drafted tokens of a sequence choose experts as independently as those of others, "
        "which overstates the distinct ones"
    )
    long = too_long(model, steps)
    text += f"; its {long}" if long else ""
    within = prediction.summary["context"]["within"]
    return Drafting((expected, low, high), spent_by(prediction), here, beyond_fit, within, text)


def beside_each_other(target: EditDraft, drafter: EditDraft, tokens: int) -> tuple[Beside, Beside]:
    """(the drafting model as it lies beside the target, the target as it lies beside the drafting model); drafts with knobs.

    Cores of a wafer are shared out so that `tokens` sweeps of the one and one of the other take least together, a sweep taking
    its FLOPs over its cores: in proportion to the roots of what each sweeps through in a round.
    """
    work = [
        draft.run.meta.model.active_params(embedding=False) if draft.run.meta.model else 0
        for draft in (target, drafter)
    ]
    one, two = math.sqrt(work[0]), math.sqrt(tokens * work[1])
    share = one / (one + two)
    return Beside(memory.need(drafter), share), Beside(memory.need(target), 1 - share)


def _where(hw: Hardware, machine: Hardware, prediction: Prediction) -> str:
    """Where a drafting model runs, in words."""
    if hw.law == "wafer":
        said = prediction.run.meta.facts["price_context"]
        if said["placement"] == "whole":
            return "every matrix of both models over all of the wafers' cores"
        part = part_of(hw, said["model_bytes"], said["beside_bytes"], said["share"])
        return (
            f"on {100 * float(part):.3g} % of the wafers' cores, the rest being the model's (an assumption)"
        )
    if machine.gpus > 1:
        return f"cut over {machine.gpus} GPUs"
    return "whole on every device" if hw.gpus > 1 else "beside the model"
