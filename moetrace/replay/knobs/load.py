"""Knobs of the load: how many sequences, how long, and how many tokens each step works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetrace.errors import ScenarioError
from moetrace.replay import edit
from moetrace.replay.grammar import Parse, duration, model_name, one_of, one_whole, ranged
from moetrace.replay.knobs.registry import knob

if TYPE_CHECKING:
    from moetrace.op import Op
    from moetrace.replay.draft import At, Draft


_RAN = "a recording's lengths are what ran; set context, or simulate the model"
_SERVED = "a recording is one load's steps, and says nothing of another's; simulate the model"
_VERIFIED = (
    "a recording's decode steps have one token of each sequence, and what a step takes that verifies several drafted ones at "
    "once, over the same cache, does not follow from its ops; simulate the model"
)
# Knobs that a simulation is synthesized for, or that add to its measures: name, meaning, how a value is written, its parser,
# why a recording cannot be replayed with it.
_SYNTHESIZED: tuple[tuple[str, str, str, Parse, str], ...] = (
    ("input_len", "prompt tokens of each sequence", "a whole number", one_whole, _RAN),
    ("output_len", "tokens that each sequence yields", "a whole number", one_whole, _RAN),
    (
        "serving",
        "a batch that starts together, or a steady load with prompts processed beside decoding",
        "static or continuous",
        one_of("static", "continuous"),
        _SERVED,
    ),
    (
        "host",
        "time of the engine's host per step that no device time hides",
        "a time with its unit, such as 5ms",
        duration,
        "a recording has its own host's time between ops; simulate the model",
    ),
    ("chunk", "most tokens that an engine works on in one step", "a whole number", one_whole, _SERVED),
    (
        "draft",
        "model that drafts tokens for speculative decoding",
        "a name from 'moetrace models' or a config.json",
        model_name,
        _VERIFIED,
    ),
    ("draft_tokens", "tokens drafted for each step", "a whole number", one_whole, _VERIFIED),
    (
        "acceptance",
        "probability that a drafted token is accepted",
        "a number from 0 to 1",
        ranged(0.0, 1.0),
        _VERIFIED,
    ),
    (
        "tokens_per_step",
        "tokens that a step yields of each sequence where a service drafts them in a way that it does not say",
        "a number from 1 to 64",
        ranged(1.0, 64.0),
        _VERIFIED,
    ),
)


def _unchanged(draft: Draft, value: object) -> Draft:
    """The run was synthesized with it, or its measures hold it: no op changes."""
    return draft


for _name, _meaning, _how, _parse, _why in _SYNTHESIZED:
    knob(_name, f"{_meaning} (simulate only)", _how, _parse, not_recorded=_why)(_unchanged)


@knob("batch", "sequences decoded together", "a whole number", one_whole)
def batch(draft: Draft, value: int) -> Draft:
    """Scales tokens, rows and KV of every step by new over recorded batch; ops of a fixed size keep it."""
    was = {i: draft.batch_of(i) for i in range(len(draft.steps))}
    lacking = next((i for i, n in was.items() if n is None), None)
    if lacking is not None:
        raise ScenarioError(
            f"batch={value}: the recording does not say the batch of step {draft.steps[lacking].name!r}"
        )
    groups = draft.parallel.dp if draft.made_with else 1
    if groups > 1 and (any((n or 0) % groups for n in (*was.values(), value)) or _steady(draft)):
        raise ScenarioError(
            f"batch={value}: the run is a prediction whose ops are those of the fullest of dp={groups} groups, which another "
            "batch would fill otherwise: edit what it was made from, with all edits at once"
        )

    def change(op: Op, at: At) -> Op:
        return edit.scaled(op, value, was[at.step] or value)

    fixed = sorted(
        (op for op in dict.fromkeys(draft.ops) if op.get("fixed")), key=lambda op: -(op.get("elements") or 0)
    )
    if fixed and any(n != value for n in was.values()):
        draft = draft.noted(
            f"batch={value}: ops whose shapes hold neither tokens nor sequences keep their size, the largest is {fixed[0]}"
        )
    if _of_steady_load(draft) and any(n != value for n in was.values()):
        draft = draft.noted(
            f"batch={value}: prompts grow and shrink with the sequences, while a steady load of another batch works on one "
            "whole prompt, or a chunk of it, at least: simulate the model with it"
        )
    return draft.rewrite(change).with_steps(lambda i, step: edit.scaled_step(step, value, was[i] or value))


def _of_steady_load(draft: Draft) -> bool:
    """Whether the run is a synthesized steady load's."""
    return "beside" in draft.run.meta.facts.get("workload", {})


def _steady(draft: Draft) -> bool:
    """Whether a step of a steady load works on prompts, of which a group has one at least."""
    own = "prefill" if _of_steady_load(draft) else None
    return any(step.phase in ("mixed", own) for step in draft.steps)


@knob("context", "KV tokens per sequence that a decode step attends to", "a whole number", one_whole)
def context(draft: Draft, value: int) -> Draft:
    """Sets what attention reads in decode steps; a sliding window still caps its layers. Prefill steps stay."""
    from moetrace.run import GENERATING  # here: it brings numpy and pyarrow

    if not any(step.phase in GENERATING for step in draft.steps):
        raise ScenarioError(f"context={value}: the recording has no decode step")
    kinds = {op.kind for op in draft.ops if op.has("kv", "batch")}
    if not kinds:
        raise ScenarioError(
            f"context={value}: no attention op says how much KV it reads; parse with --model or --kv-len"
        )

    def change(op: Op, at: At) -> Op:
        decode = draft.steps[at.step].phase in GENERATING
        return edit.with_context(op, value, draft.window(at.source_layer, op)) if decode else op

    draft = draft.rewrite(change).with_steps(
        lambda i, step: (
            edit.step_context(step, value, draft.batch_of(i)) if step.phase in GENERATING else step
        )
    )
    others = sorted({step.phase or "unknown" for step in draft.steps} - set(GENERATING))
    return (
        draft.noted(f"context={value}: {' and '.join(others)} steps are left as recorded")
        if others
        else draft
    )
