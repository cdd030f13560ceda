"""The knobs: each is one function from a draft of the run to an edited draft. A new what-if is one function here.

They apply in the order of this file. A knob changes ops (what is computed), never durations; what the changed ops cost is
the engine's business, and how many distinct experts they touch is settled after the last knob. A knob that cannot apply
raises ScenarioError with one line. Light: no numpy here, for the command line's help lists the knobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from moetrace.errors import ScenarioError, unknown
from moetrace.replay import edit
from moetrace.replay.grammar import NATIVE, Parse, by_layer, dtype_name, one_of, one_whole, whole_or_native

if TYPE_CHECKING:
    from moetrace.op import Op
    from moetrace.replay.draft import At, Draft

Apply: TypeAlias = "Callable[[Draft, Any], Draft]"


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob: its name, what it sets, how its value is written and read, and the edit itself."""

    name: str
    meaning: str
    grammar: str
    parse: Parse
    apply: Apply


KNOBS: dict[str, Knob] = {}


def knob(name: str, meaning: str, how: str, parse: Parse) -> Callable[[Apply], Apply]:
    """Registers a function as a knob."""

    def register(apply: Apply) -> Apply:
        KNOBS[name] = Knob(name, meaning, how, parse, apply)
        return apply

    return register


def knob_table() -> tuple[tuple[str, str, str], ...]:
    """(name, meaning, grammar of one value) of every knob, for help texts and docs."""
    return tuple((k.name, k.meaning, k.grammar) for k in KNOBS.values())


def knob_name(given: str) -> str:
    """The knob that a name means; ``n-a`` is ``n_a``. Raises ScenarioError listing the knobs."""
    name = given.strip().replace("-", "_")
    if name not in KNOBS:
        raise ScenarioError(unknown("knob", given, KNOBS))
    return name


@knob(
    "fusion",
    "small operators: each a kernel as recorded, or runs of them as one",
    "recorded or runs",
    one_of("recorded", "runs"),
)
def fusion(draft: Draft, value: str) -> Draft:
    """Fuses runs of small ops. The default is runs for a CPU recording replayed on another class of machine."""
    from moetrace.replay.fuse import fuse

    if value == "recorded":
        return draft
    if draft.run.meta.device_class == draft.hw.device_class:
        raise ScenarioError(
            f"fusion=runs: times measured op by op on a {draft.hw.device_class} cannot say what a fused op would take"
        )
    return fuse(draft)


@knob("layers", "decoder layers; recorded ones repeat by kind", "a whole number, or native", whole_or_native)
def layers(draft: Draft, value: int | str) -> Draft:
    """Repeats the recorded layers, dense to dense, MoE to MoE, sliding window to sliding window."""
    recorded = draft.layers
    if not recorded:
        raise ScenarioError(f"layers={value}: the recording does not say which ops belong to which layer")
    if value == NATIVE:
        depth = draft.run.meta.native_layers or (draft.model.layers if draft.model else None)
        if not depth:
            raise ScenarioError(
                "layers=native: the model's depth is not known, give it with --model or as a number"
            )
        value = depth
    if value == recorded:
        return draft
    origin = draft.layer_origins(int(value))
    more = (
        "the later ones are left out"
        if int(value) < recorded
        else f"layer {recorded} repeats a recorded one"
        if int(value) == recorded + 1
        else f"layers {recorded} to {int(value) - 1} repeat recorded ones"
    )
    return draft.with_layers(origin).noted(f"layers={value}: {recorded} layers were recorded; {more}")


@knob(
    "dtype",
    "element type of the weights of experts and dense GEMMs",
    "a dtype such as fp8 or int4",
    dtype_name,
)
def dtype(draft: Draft, value: str) -> Draft:
    """Weights in another type; lm_head, router and norms keep theirs. The kernel is taken to be as good as the present one."""
    act = edit.activation_dtype(value)

    def change(op: Op, at: At) -> Op:
        return edit.retyped(op, value, act, at.layer >= 0)

    note = (
        f"dtype={value}: weights of experts and dense GEMMs in {value}, their activations in {act}; lm_head, router, norms and "
        "the KV cache keep their type, and the kernel for it is taken to be as efficient as the law says for its family"
    )
    return draft.rewrite(change).with_model(dtype=value, expert_dtype=value).noted(note)


@knob(
    "n_a",
    "experts activated per token (top-k)",
    "a whole number, one per MoE layer (6:6:4, 6x13:4x13), or native",
    by_layer,
)
def n_a(draft: Draft, value: int | str | tuple[int, ...]) -> Draft:
    """Another top-k in each MoE layer; the distinct experts follow when the draft is settled."""
    experts = draft.experts
    if not experts:
        raise ScenarioError(
            f"n_a={_text(value)}: the recording holds no expert op with its dims, so there is nothing to activate"
        )
    if value == NATIVE:
        return draft
    wanted = _by_moe_layer(draft, value)
    most = max(wanted.values())
    if most > experts:
        raise ScenarioError(
            f"n_a={_text(value)}: there are {experts} experts per layer, so n_a is at most {experts}"
        )

    def change(op: Op, at: At) -> Op:
        if not op.has("topk") or wanted.get(at.layer, op["topk"]) == op["topk"]:
            return op
        copies = {"copies": wanted[at.layer]} if op.has("copies") else {}
        return op.with_dims(topk=wanted[at.layer], rows=None, **copies)

    draft = draft.rewrite(change)
    if most > draft.topk:
        draft = draft.noted(
            f"n_a={_text(value)}: above the {draft.topk} experts recorded per token, so routing there is taken as uniform and "
            "independent"
        )
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
    if not any(step.phase == "decode" for step in draft.steps):
        raise ScenarioError(f"context={value}: the recording has no decode step")
    kinds = {op.kind for op in draft.ops if op.has("kv", "batch")}
    if not kinds:
        raise ScenarioError(
            f"context={value}: no attention op says how much KV it reads; parse with --model or --kv-len"
        )

    def change(op: Op, at: At) -> Op:
        decode = draft.steps[at.step].phase == "decode"
        return edit.with_context(op, value, draft.window(at.source_layer, op)) if decode else op

    draft = draft.rewrite(change).with_steps(
        lambda i, step: edit.step_context(step, value, draft.batch_of(i)) if step.phase == "decode" else step
    )
    others = sorted({step.phase or "unknown" for step in draft.steps} - {"decode"})
    return (
        draft.noted(f"context={value}: {' and '.join(others)} steps are left as recorded")
        if others
        else draft
    )


@knob("tp", "GPUs that share each weight matrix (tensor parallel)", "a whole number", one_whole)
def tp(draft: Draft, value: int) -> Draft:
    """Cuts projections, heads and expert widths over the GPUs and adds the all-reduces that this takes."""
    if value == draft.run.meta.tp:
        return draft
    _check_whole(draft, f"tp={value}")
    expert_tp = value // int(draft.scenario.get("ep", 1))

    def change(op: Op, at: At) -> Op:
        return edit.cut(op, value, expert_tp, draft.model)

    return draft.rewrite(change).with_all_reduces(value)


@knob("ep", "GPUs that share out whole experts (expert parallel)", "a whole number", one_whole)
def ep(draft: Draft, value: int) -> Draft:
    """Gives each rank experts / ep of the experts; each waits for the rank that has the most distinct ones to read."""
    if value == draft.run.meta.ep:
        return draft
    _check_whole(draft, f"ep={value}")
    experts = draft.experts
    if not experts:
        raise ScenarioError(
            f"ep={value}: the recording holds no expert op with its dims, so there is nothing to share out"
        )
    if experts % value:
        raise ScenarioError(f"ep={value}: {experts} experts do not divide by {value}")

    if "tp" not in draft.scenario.texts():
        draft = tp(draft, draft.gpus).noted(
            f"ep={value} alone: attention and dense GEMMs are tensor-parallel over the same {draft.gpus} GPUs"
        )

    def change(op: Op, at: At) -> Op:
        return edit.local_experts(op, experts, value)

    return draft.rewrite(change).noted(
        f"ep={value}: every rank holds {experts // value} of {experts} experts in whole and has all tokens after the "
        "attention's all-reduce, so no all-to-all is needed and one all-reduce merges the experts' outputs; the step waits "
        "for the rank with the most distinct experts"
    )


@knob(
    "placement",
    "where a wafer keeps experts: over all cores, or each on its own",
    "spread or own",
    one_of("spread", "own"),
)
def placement(draft: Draft, value: str) -> Draft:
    """Changes no op: the wafer's law reads it."""
    if draft.hw.device_class != "wafer":
        raise ScenarioError(f"placement={value}: {draft.hw.name} is not a wafer")
    return draft


def _check_whole(draft: Draft, asked: str) -> None:
    """Raises ScenarioError if the recording is one rank of several that share the model."""
    meta = draft.run.meta
    if meta.tp > 1 or meta.ep > 1:
        raise ScenarioError(
            f"{asked}: the recording is one rank of tp={meta.tp} ep={meta.ep}; only a tp=1 ep=1 one can be cut anew so far"
        )


def _by_moe_layer(draft: Draft, value: int | str | tuple[int, ...]) -> dict[int, int]:
    """The n_a of each MoE layer (key -1: expert ops whose layer is not known)."""
    moe = draft.moe_layers
    if not isinstance(value, tuple):
        return dict.fromkeys(moe, int(value))
    if -1 in moe:
        raise ScenarioError(
            f"n_a={_text(value)}: the recording does not say the layer of every expert op, so n_a must be one number"
        )
    if len(value) != len(moe):
        raise ScenarioError(f"n_a={_text(value)}: {len(value)} values for {len(moe)} MoE layers")
    return dict(zip(moe, value, strict=True))


def _text(value: int | str | tuple[int, ...]) -> str:
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
