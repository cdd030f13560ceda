"""Knobs that share the model out over devices: dp, tp, ep, pp, and whether collectives hide behind compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetrace.errors import ScenarioError
from moetrace.replay import edit
from moetrace.replay.grammar import one_of, one_whole
from moetrace.replay.knobs.registry import knob
from moetrace.replay.knobs.shape import check_whole

if TYPE_CHECKING:
    from moetrace.op import Op
    from moetrace.replay.draft import At, Draft

# Prompts go through a pipeline in parts of at least and at most so many tokens, one for each stage in between: what engines
# chunk prompts at (vLLM's and SGLang's defaults). vLLM schedules a prompt's next chunk while the last one is under way
# (v1/core/sched/scheduler.py).
PIPELINE_TOKENS = (2048, 8192)

# What an engine that is asked for two halves leaves whole.
_WHOLE = {
    "vllm": "; vLLM halves no step of fewer than 32 tokens of a dp group (512 with prompts), nor without dp",
    "sglang": "; SGLang halves no step in which some dp groups have prompts and others none",
}


@knob(
    "dp",
    "groups of devices that attend to sequences of their own (attention data parallel)",
    "a whole number",
    one_whole,
)
def dp(draft: Draft, value: int) -> Draft:
    """Each group takes its share of the sequences through attention; the tokens of all meet at the experts.

    A rank's ops are those of the group with most to do, for which the others wait at the experts.
    """
    if value == draft.run.meta.dp:
        return draft
    asked = f"dp={value}"
    check_whole(draft, asked)
    if not draft.experts:
        raise ScenarioError(
            f"{asked}: a dense model has nothing that data-parallel groups share: run {value} of them"
        )
    from moetrace.replay import mixed_step, sharing  # here: they bring numpy

    busiest = mixed_step.busiest_groups(draft, value)
    draft = sharing.dealt_out(draft, asked, value, {i: mixed.share for i, mixed in busiest.items()})
    return sharing.with_exchange(draft, asked, busiest)


@knob("tp", "GPUs that share each weight matrix (tensor parallel)", "a whole number", one_whole)
def tp(draft: Draft, value: int) -> Draft:
    """Cuts projections, heads and expert widths over the GPUs and adds the all-reduces that this takes."""
    if draft.parallel == draft.ran:
        return draft
    check_whole(draft, f"tp={value}")
    expert_tp = draft.parallel.expert_tp

    def change(op: Op, at: At) -> Op:
        return edit.cut(op, value, expert_tp, draft.model)

    from moetrace.replay import sharing

    draft = draft.rewrite(change)
    return sharing.with_all_reduces(draft, value) if value > 1 else draft


@knob("ep", "GPUs that share out whole experts (expert parallel)", "a whole number", one_whole)
def ep(draft: Draft, value: int) -> Draft:
    """Gives each rank experts / ep of the experts, copies (`eplb`) among them; each waits for the rank with most to read."""
    if value == draft.run.meta.ep:
        return draft
    check_whole(draft, f"ep={value}")
    experts = draft.experts
    copies = int(draft.scenario.get("eplb", 0))
    held = f"{experts} experts" + (f" and {copies} copies" if copies else "")
    if (experts + copies) % value:
        raise ScenarioError(
            f"ep={value}: {held} do not divide by {value}; with eplb={-experts % value or value} (redundant experts) they would"
        )
    each = (experts + copies) // value

    def change(op: Op, at: At) -> Op:
        return edit.local_experts(op, experts, each)

    draft = draft.rewrite(change)
    if "tp" not in draft.scenario.texts() and draft.parallel.tp > 1:
        draft = draft.noted(
            f"ep={value} without tp: attention and dense GEMMs are tensor-parallel over {draft.parallel.tp} GPUs"
        )
    if draft.parallel.dp > 1:
        return draft.noted(
            f"ep={value}: every rank holds {each} of {held}, tokens are dispatched to them and their "
            "outputs collected; the step waits for the rank with the most distinct experts"
        )
    return draft.noted(
        f"ep={value}: every rank holds {each} of {held} in whole and has all tokens after the "
        "attention's all-reduce, so no all-to-all is needed and one all-reduce merges the experts' outputs; the step waits "
        "for the rank with the most distinct experts"
    )


@knob(
    "pp",
    "stages that the layers are cut into, one after another (pipeline parallel)",
    "a whole number",
    one_whole,
)
def pp(draft: Draft, value: int) -> Draft:
    """A batch goes through the stages in as many parts; a decode step takes what one part takes through all of them."""
    if value == draft.run.meta.pp:
        return draft
    asked = f"pp={value}"
    check_whole(draft, asked)
    if draft.layers < value:
        raise ScenarioError(f"{asked}: there are {draft.layers} layers to cut into stages")
    from moetrace.replay import sharing  # here: they bring numpy
    from moetrace.replay.lanes import largest, smallest
    from moetrace.replay.prompt_parts import part_of_tokens

    least, most = PIPELINE_TOKENS
    tokens = sharing.prompt_tokens(draft, asked)
    sizes = {i: smallest(n, smallest(most, largest(least, -(-n // value)))) for i, n in tokens.items()}
    parts: dict[int, Any] = {i: tokens[i] / size for i, size in sizes.items()}

    def ways(step: int, batch: int) -> Any:
        parts[step] = -(-batch // -(-batch // smallest(value, batch)))
        return smallest(value, batch)

    others = {i: part_of_tokens(size, tokens[i]) for i, size in sizes.items()}
    draft = sharing.cut(draft, asked, ways, others)
    draft = sharing.with_stages(draft, value, parts)
    return draft.noted(
        f"{asked}: the layers lie in {value} stages; a decode step goes through in {value} parts of the batch (one part idles "
        f"where there are fewer sequences), a step that works on prompts in parts of its tokens ({least} at least, {most} at "
        "most), the pipeline filling and draining once"
    )


@knob(
    "overlap",
    "whether collectives hide behind compute: two_batch lets one half of the batch compute while the other communicates",
    "none or two_batch",
    one_of("none", "two_batch"),
)
def overlap(draft: Draft, value: str) -> Draft:
    """Two-batch overlap: each half of the batch computes while the other's collectives run."""
    if value == "none":
        return draft
    asked = f"overlap={value}"
    if not any(op.kind in edit.COLLECTIVES for op in draft.ops):
        raise ScenarioError(f"{asked}: there is no collective in the step to hide: it needs tp, ep or dp")
    from moetrace.replay import sharing

    return sharing.halved(draft, asked).noted(
        f"{asked}: the batch goes in two halves that take turns at every exchange, in decode with dispatch and collect in five "
        "stages (vLLM: at every exchange); one computes while the other communicates, and loses the processors that "
        "collectives run on; of low-latency exchanges only what crosses the network between nodes hides"
        + _WHOLE.get(str(draft.stated("engine", "")).partition("@")[0], "")
    )
