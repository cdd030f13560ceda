"""Why a recording has no expert ops to edit, and what to record or run in its place."""

from __future__ import annotations

from moetrace.errors import ScenarioError
from moetrace.model.catalogue import model_names
from moetrace.replay.draft import Draft
from moetrace.run import GENERATING, Step, main_steps

ONE_BY_ONE = frozenset({"expert_up", "expert_down"})


def runs_one_by_one(draft: Draft) -> bool:
    """Whether the recording's experts run one by one, each GEMM on the rows of one expert."""
    return any(op.kind in ONE_BY_ONE for op in draft.ops)


def no_experts(draft: Draft, asked: str) -> ScenarioError:
    """The error for a knob of experts on a recording without an op that says how many experts there are."""
    if runs_one_by_one(draft):
        why = "runs experts one by one, and what each of them does says nothing of another choice of experts"
        return ScenarioError(f"{asked}: the recording {why}; {_instead(draft, asked)}")
    if draft.model is not None and not draft.model.experts:
        return ScenarioError(f"{asked}: {draft.model.name} is a dense model, it has no experts")
    lacks = (
        "give --model to parse"
        if draft.model is None
        else "'moetrace doctor TRACE' says what the trace lacks"
    )
    return ScenarioError(
        f"{asked}: the recording holds no expert op with its dims, so there are no experts to speak of; {lacks}"
    )


def _instead(draft: Draft, asked: str) -> str:
    """What gives the answer: the same load recorded with fused experts, in a script too, or a simulation."""
    name = draft.model.name if draft.model is not None else ""
    model = name if name in model_names() else "MODEL"
    steps = main_steps(draft.run.meta.steps)
    batch, context = _load(steps[0])
    layers = int(draft.base.layer.max()) + 1
    recorded = f"--model {model}" + (f" --layers {layers}" if layers else "")
    recorded += f" --batch {batch} --context {context} --steps {len(steps)} --experts fused"
    lengths = f"--batch {batch} --input-len {context} --output-len {len(steps) + 1}"
    knob = "" if asked == "experts=fused" else f" --set {asked}"
    return (
        f"record it with fused experts ('moetrace record {recorded} -o DIR', or in a script "
        f'from_pretrained(..., experts_implementation="grouped_mm")) and replay that, or do without a recording: '
        f"'moetrace simulate --model {model} --hw {draft.hw.name} {lengths}{knob}'"
    )


def _load(step: Step) -> tuple[int | str, int | str]:
    """(sequences, prompt tokens of each) as the first step tells, else the word to put in their place."""
    batch, kv = step.batch or "N", step.kv_tokens
    if not step.batch or not kv:
        return batch, "N"
    return batch, max(1, kv // step.batch - (step.phase in GENERATING))
