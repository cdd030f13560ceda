"""Knobs of the model's shape: depth, experts and their widths, element types, fusion of small operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetrace.errors import ScenarioError
from moetrace.replay import edit
from moetrace.replay.grammar import (
    NATIVE,
    Kept,
    Segments,
    by_layer,
    dtype_name,
    kept_experts,
    one_of,
    one_whole,
    percent,
    whole_or_native,
)
from moetrace.replay.knobs.registry import knob

if TYPE_CHECKING:
    from moetrace.op import Op
    from moetrace.replay.draft import At, Draft


@knob(
    "fusion",
    "small operators: each a kernel as recorded, or runs of them as one",
    "recorded or runs",
    one_of("recorded", "runs"),
)
def fusion(draft: Draft, value: str) -> Draft:
    """Fuses runs of small ops. The default is runs for a CPU recording replayed on another class of machine."""
    from moetrace.replay.edited_again import was_fused
    from moetrace.replay.fuse import fuse

    if value == "recorded" or was_fused(draft):
        return draft
    if draft.run.meta.device_class == draft.hw.device_class:
        why = f"times measured op by op on a {draft.hw.device_class} cannot say what a fused op would take"
        if draft.run.meta.kind == "synthesized":
            why = (
                f"the ops of a simulation on a {draft.hw.device_class} are an engine's fused kernels already"
            )
        elif draft.made_with:
            why = "the run is a prediction, which keeps its kernels: replay what it was made from, with all edits at once"
        raise ScenarioError(f"fusion=runs: {why}")
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
    "n_e",
    "experts kept per layer, the others pruned",
    "a whole number; 32@popular keeps those that the recording chose most",
    kept_experts,
)
def n_e(draft: Draft, value: Kept) -> Draft:
    """Fewer experts to choose from; n_a stays, and the tokens of pruned experts go to the kept ones."""
    return _kept(draft, value, f"n_e={value}")


def _kept(draft: Draft, value: Kept, asked: str) -> Draft:
    """The draft with so many experts, as `asked`."""
    experts = _experts(draft, asked)
    if value.count > experts:
        raise ScenarioError(
            f"{asked}: there are {experts} experts per layer, so at most {experts} can be kept"
        )
    if value.popular and draft.run.routing is None:
        raise ScenarioError(
            f"{asked}: no routing was recorded, so which experts are chosen most is not known"
        )
    check_whole(draft, asked)

    def change(op: Op, at: At) -> Op:
        return edit.with_experts(op, experts, value.count)

    how = "those chosen most in the recording" if value.popular else "chosen without regard to their use"
    return (
        draft.rewrite(change)
        .with_model(experts=value.count, topk=min(draft.topk, value.count))
        .noted(
            f"{asked}: {value.count} of {experts} experts are kept, {how}; tokens choose among them as before"
        )
    )


@knob("prune_inter", "per cent of the experts of each layer that are pruned", "0 to 99", percent)
def prune_inter(draft: Draft, value: float) -> Draft:
    """Inter-expert pruning: n_e less this share, without regard to use."""
    experts = _experts(draft, f"prune_inter={value:g}")
    if "n_e" in draft.scenario.texts():
        raise ScenarioError(f"prune_inter={value:g}: n_e says already how many experts are kept")
    return _kept(draft, Kept(max(1, round(experts * (1 - value / 100)))), f"prune_inter={value:g}")


@knob("ffn", "width of each expert (d_e)", "a whole number", one_whole)
def ffn(draft: Draft, value: int) -> Draft:
    """Another expert width; shared experts and dense layers keep theirs."""
    return _narrowed(draft, value, f"ffn={value}")


def _narrowed(draft: Draft, value: int, asked: str) -> Draft:
    """The draft with experts so wide, as `asked`."""
    _experts(draft, asked)
    check_whole(draft, asked)
    was = _width(draft, asked)

    def change(op: Op, at: At) -> Op:
        return edit.with_width(op, was, value)

    return draft.rewrite(change).with_model(expert_inter=value)


@knob("prune_intra", "per cent of each expert's width that is pruned", "0 to 99", percent)
def prune_intra(draft: Draft, value: float) -> Draft:
    """Intra-expert pruning: expert width less this share."""
    asked = f"prune_intra={value:g}"
    if "ffn" in draft.scenario.texts():
        raise ScenarioError(f"{asked}: ffn says already how wide the experts are")
    return _narrowed(draft, max(1, round(_width(draft, asked) * (1 - value / 100))), asked)


@knob(
    "dtype",
    "element type of the weights of experts and dense GEMMs",
    "a dtype such as fp8 or int4",
    dtype_name,
)
def dtype(draft: Draft, value: str) -> Draft:
    """Weights in another type; lm_head, router and norms keep theirs. The kernel is taken to be as good as the present one."""
    act = draft.made_with.get("act") or edit.activation_dtype(value)  # stated before, it stays stated

    was = draft.model.expert_dtype if draft.model is not None else value

    def change(op: Op, at: At) -> Op:
        return edit.redispatched(edit.retyped(op, value, act, at.layer >= 0), was, value)

    note = (
        f"dtype={value}: weights of experts and dense GEMMs in {value}, their activations in {act}; lm_head, router, norms and "
        "the KV cache keep their type, and the kernel for it is taken to be as efficient as the law says for its family"
    )
    return draft.rewrite(change).with_model(dtype=value, expert_dtype=value).noted(note)


@knob(
    "act", "element type of activations in experts and dense GEMMs", "a dtype such as bf16 or fp8", dtype_name
)
def act(draft: Draft, value: str) -> Draft:
    """Activations in another type, weights as they are."""

    def change(op: Op, at: At) -> Op:
        return edit.retyped(op, op.weight_dtype, value, at.layer >= 0)

    return draft.rewrite(change).noted(
        f"act={value}: activations of experts and dense GEMMs in {value}, quantised inside other kernels"
    )


@knob("kv", "element type of the KV cache", "a dtype such as fp8 or bf16", dtype_name)
def kv(draft: Draft, value: str) -> Draft:
    """The cache in another type; queries and outputs of attention keep theirs."""
    if not any(op.kind in edit.CACHED for op in draft.ops):
        raise ScenarioError(
            f"kv={value}: no attention op with its dims, so nothing says what is read from the cache"
        )

    def change(op: Op, at: At) -> Op:
        return edit.with_cache(op, value)

    return draft.rewrite(change)


@knob(
    "n_a",
    "experts activated per token (top-k)",
    "a whole number, one per MoE layer (6:6:4, 6x13:4x13), per part of the depth (8/6/6), or native",
    by_layer,
)
def n_a(draft: Draft, value: int | str | tuple[int, ...] | Segments) -> Draft:
    """Another top-k in each MoE layer; the distinct experts follow when the draft is settled."""
    experts = _experts(draft, f"n_a={_text(value)}")
    if value == NATIVE:
        return draft
    wanted = _by_moe_layer(draft, value)
    most = max(wanted.values())
    if most > experts:
        raise ScenarioError(
            f"n_a={_text(value)}: there are {experts} experts per layer, so n_a is at most {experts}"
        )

    def change(op: Op, at: At) -> Op:
        new = wanted.get(at.layer) if op.has("topk") else None
        if new is None or (type(new) is int and new == op["topk"]):
            return op
        more = {"copies": new} if op.has("copies") else {}
        if op.kind in edit.EXCHANGES and op.has("bytes"):  # a copy of each token for each of its experts
            more["bytes"] = round(op["bytes"] * new / op["topk"])
        return op.with_dims(topk=new, rows=None, **more)

    draft = draft.rewrite(change)
    recorded = max(draft.topk, draft.run.routing.topk if draft.run.routing is not None else 0)
    if most > recorded:
        draft = draft.noted(
            f"n_a={_text(value)}: above the {recorded} experts recorded per token, so what routing there "
            "touches follows from the uniform formula"
        )
    return draft


def _by_moe_layer(draft: Draft, value: int | str | tuple[int, ...] | Segments) -> dict[int, int]:
    """The n_a of each MoE layer (key -1: expert ops whose layer is not known)."""
    moe = draft.moe_layers
    if isinstance(value, Segments):
        value = value.spread(len(moe), f"n_a={_text(value)}")
    if not isinstance(value, tuple):
        return dict.fromkeys(moe, int(value) if isinstance(value, str) else value)
    if -1 in moe:
        raise ScenarioError(
            f"n_a={_text(value)}: the recording does not say the layer of every expert op, so n_a must be one number"
        )
    if len(value) != len(moe):
        raise ScenarioError(f"n_a={_text(value)}: {len(value)} values for {len(moe)} MoE layers")
    return dict(zip(moe, value, strict=True))


def _experts(draft: Draft, asked: str) -> int:
    """Experts per layer. Raises ScenarioError if no op says."""
    if not draft.experts:
        from moetrace.replay.no_experts import no_experts

        raise no_experts(draft, asked)
    return draft.experts


def _width(draft: Draft, asked: str) -> int:
    """Width of one expert, over all ranks."""
    if draft.model is not None and draft.model.expert_inter:
        return draft.model.expert_inter
    widths = {int(op["inter"]) for op in draft.ops if op.kind in edit.EXPERT_GEMMS and op.has("inter")}
    if len(widths) != 1:
        raise ScenarioError(f"{asked}: how wide an expert is is not known; parse with --model")
    return widths.pop()


def check_whole(draft: Draft, asked: str) -> None:
    """Raises ScenarioError if the recording is one rank of several that share the model."""
    meta = draft.run.meta
    if max(meta.tp, meta.ep, meta.pp, meta.dp) > 1 and meta.kind == "predicted":
        raise ScenarioError(
            f"{asked}: the run is a prediction whose ranks share the model as tp={meta.tp} ep={meta.ep}: replay what it was "
            "made from, with all edits at once"
        )
    if max(meta.tp, meta.ep, meta.pp, meta.dp) > 1:
        raise ScenarioError(
            f"{asked}: the recording's ranks share the model as tp={meta.tp} ep={meta.ep}, and what another sharing would "
            "run was not recorded; only a recording that holds the whole model can be edited so: simulate the model instead"
        )


def _text(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
