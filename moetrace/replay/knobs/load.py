"""Knobs of the load: how many sequences, how long, and how many tokens each step works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetrace.errors import ScenarioError
from moetrace.replay import edit
from moetrace.replay.grammar import duration, model_name, one_of, one_whole, ranged
from moetrace.replay.knobs.registry import knob
from moetrace.run import GENERATING

if TYPE_CHECKING:
    from moetrace.op import Op
    from moetrace.replay.draft import At, Draft


@knob(
    "input_len",
    "prompt tokens of each sequence (simulate only)",
    "a whole number",
    one_whole,
    where="simulate",
)
def input_len(draft: Draft, value: int) -> Draft:
    """Changes no op: the run was synthesized for it."""
    return draft


@knob(
    "output_len",
    "tokens that each sequence yields (simulate only)",
    "a whole number",
    one_whole,
    where="simulate",
)
def output_len(draft: Draft, value: int) -> Draft:
    """Changes no op: the run was synthesized for it."""
    return draft


@knob(
    "serving",
    "a batch that starts together, or a steady load with prompts worked through beside decoding (simulate only)",
    "static or continuous",
    one_of("static", "continuous"),
    where="simulate",
)
def serving(draft: Draft, value: str) -> Draft:
    """Changes no op: the run was synthesized for it."""
    return draft


@knob(
    "host",
    "what the engine's host adds to each step and no device time hides (simulate only)",
    "a time with its unit, such as 5ms",
    duration,
    where="simulate",
)
def host(draft: Draft, value: float) -> Draft:
    """Changes no op: it is time beside them."""
    return draft


@knob(
    "chunk",
    "most tokens that an engine works on in one step (simulate only)",
    "a whole number",
    one_whole,
    where="simulate",
)
def chunk(draft: Draft, value: int) -> Draft:
    """Changes no op: the run was synthesized for it."""
    return draft


@knob(
    "draft",
    "model that drafts tokens for speculative decoding (simulate only)",
    "a name from 'moetrace models' or a config.json",
    model_name,
    where="simulate",
)
def draft_model(draft: Draft, value: str) -> Draft:
    """Changes no op: the run was synthesized with the tokens to verify."""
    return draft


@knob(
    "draft_tokens",
    "tokens drafted for each step (simulate only)",
    "a whole number",
    one_whole,
    where="simulate",
)
def draft_tokens(draft: Draft, value: int) -> Draft:
    """Changes no op, as `draft`."""
    return draft


@knob(
    "acceptance",
    "probability that a drafted token is accepted (simulate only)",
    "a number from 0 to 1",
    ranged(0.0, 1.0),
    where="simulate",
)
def acceptance(draft: Draft, value: float) -> Draft:
    """Changes no op, as `draft`."""
    return draft


@knob(
    "tokens_per_step",
    "tokens that a step yields of each sequence where a service drafts them in a way that it does not say (simulate only)",
    "a number from 1 to 64",
    ranged(1.0, 64.0),
    where="simulate",
)
def tokens_per_step(draft: Draft, value: float) -> Draft:
    """Changes no op, as `draft`."""
    return draft


@knob("batch", "sequences decoded together", "a whole number", one_whole)
def batch(draft: Draft, value: int) -> Draft:
    """Scales tokens, rows and KV of every step by new over recorded batch; ops of a fixed size keep it."""
    was = {i: draft.batch_of(i) for i in range(len(draft.steps))}
    lacking = next((i for i, n in was.items() if n is None), None)
    if lacking is not None:
        raise ScenarioError(
            f"batch={value}: the recording does not say the batch of step {draft.steps[lacking].name!r}"
        )

    def change(op: Op, at: At) -> Op:
        return edit.scaled(op, value, was[at.step] or value)

    fixed = sorted(
        (op for op in set(draft.ops) if op.get("fixed")), key=lambda op: -(op.get("elements") or 0)
    )
    if fixed and any(n != value for n in was.values()):
        draft = draft.noted(
            f"batch={value}: ops whose shapes hold neither tokens nor sequences keep their size, the largest is {fixed[0]}"
        )
    return draft.rewrite(change).with_steps(lambda i, step: edit.scaled_step(step, value, was[i] or value))


@knob("context", "KV tokens per sequence that a decode step attends to", "a whole number", one_whole)
def context(draft: Draft, value: int) -> Draft:
    """Sets what attention reads in decode steps; a sliding window still caps its layers. Prefill steps stay."""
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
