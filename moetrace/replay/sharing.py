"""A draft shared out over devices: parts of the batch, stages of layers, halves that overlap, what ranks send each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moetrace.errors import ScenarioError
from moetrace.op import Op
from moetrace.replay import edit
from moetrace.replay.draft import At, Draft
from moetrace.replay.mixed_step import PROMPTS, Busiest, busiest_groups
from moetrace.replay.parallel import Share
from moetrace.replay.prompt_parts import Shared, part_of_tokens
from moetrace.run import GENERATING

_ATTENTION_OUT = (
    frozenset({"o_proj"}),
    frozenset({"attention", "mla_attention", "sparse_mla", "linear_attention", "attention_reduce"}),
)
_FFN_OUT = (frozenset({"moe_combine", "moe_down", "moe_experts", "dense_down", "shared_down"}),)
_OF_ALL = edit.MODULE | {"reduce_scatter"}  # what has the tokens of all data-parallel groups
# Tokens of a rank from which vLLM halves a step that decodes, and one with prompts (dbo_decode_token_threshold and
# dbo_prefill_token_threshold of its config).
VLLM_HALVES = (32, 512)
# Thread blocks of DeepEP's normal kernels, which prefills use (its README's setting); decode takes the low-latency ones.
_NORMAL_SMS = 24


def dealt_out(draft: Draft, asked: str, groups: int, others: Mapping[int, Shared]) -> Draft:
    """The draft with each step's sequences dealt out to `groups`, ops those of the group with most; in the steps of `others` as
    these say. What works on the tokens of all groups stays. Raises ScenarioError where a step's batch is not known."""
    was = shares_of(draft, asked)
    now = [share.dealt_out(groups) for share in was]

    def change(op: Op, at: At) -> Op:
        if op.kind in edit.MODULE:
            return op
        other = others.get(at.step)
        return other(op, at) if other else edit.scaled(op, now[at.step].batch, was[at.step].batch)

    return replace(draft.rewrite(change), shares=tuple(now))


def cut(draft: Draft, asked: str, ways: Callable[[int, int], int], others: Mapping[int, Shared]) -> Draft:
    """The draft with each step's ops at the largest of the `ways(step, batch)` parts of a group's sequences, those of the steps
    in `others` as these say. Raises ScenarioError where a step's batch is not known."""
    was = shares_of(draft, asked)
    now = [share if i in others else share.cut(ways(i, share.batch)) for i, share in enumerate(was)]

    def change(op: Op, at: At) -> Op:
        other = others.get(at.step)
        if other:
            return other(op, at)
        new, old = now[at.step], was[at.step]
        if op.kind in _OF_ALL:
            return edit.scaled(op, new.total, old.total)
        return edit.scaled(op, new.batch, old.batch)

    return replace(draft.rewrite(change), shares=tuple(now))


def shares_of(draft: Draft, asked: str) -> list[Share]:
    """What one rank's ops stand for in each step; all of its batch where nothing has shared it out yet."""
    shares = list(draft.shares)
    for i in range(len(draft.steps)) if not shares else ():
        batch = draft.batch_of(i)
        if batch is None:
            raise ScenarioError(
                f"{asked}: the recording does not say the batch of step {draft.steps[i].name!r}"
            )
        shares.append(Share(batch))
    return shares


def prompt_tokens(draft: Draft, asked: str) -> dict[int, Any]:
    """Tokens of one rank in each step that works on prompts, by index: such a step may be cut between any two of them.

    Of a steady load those of the data-parallel group with most. Raises ScenarioError where a step's batch is not known.
    """
    busiest = busiest_groups(draft, draft.parallel.dp)
    found = {}
    for i, share in enumerate(shares_of(draft, asked)):
        step, whole = draft.steps[i], draft.batch_of(i)
        if i in busiest:
            found[i] = busiest[i].own_tokens
        elif step.phase in PROMPTS and step.tokens and whole:
            found[i] = -(-step.tokens * share.batch // whole)
    return found


def with_stages(draft: Draft, stages: int, parts: Mapping[int, float]) -> Draft:
    """The draft with `stages` of layers, through which a step goes in so many parts, and the sends between them."""
    shares = []
    for i, share in enumerate(draft.shares):
        turns = stages if draft.steps[i].phase in GENERATING else parts[i] + stages - 1  # of one stage's time
        shares.append(replace(share, times=turns / stages, busy=parts[i] / turns))
    draft = replace(draft, shares=tuple(shares))
    borders = {draft.layers * stage // stages - 1 for stage in range(1, stages)}
    ends = draft.last_of_layer(_FFN_OUT)
    layer = np.array([at.layer for at in draft.at])[draft.cell[ends]]
    return draft.inserted_after(
        ends[np.isin(layer, list(borders))], lambda op, at: _merge(draft, op, at, 2, "send_recv", "pp")
    )


def halved(draft: Draft, asked: str) -> Draft:
    """The draft with each step's ops at half of the batch, one of two halves that overlap; a lone sequence stays, and what the
    engine would not halve.

    Steps that work on prompts are cut in the middle of their tokens, as vLLM cuts every step (v1/worker/ubatch_utils.py) and
    SGLang a prefill whose sequences do not part evenly (two-chunk overlap, PR 8144).
    """
    tokens, was = prompt_tokens(draft, asked), shares_of(draft, asked)
    parts = {i: 2 if _is_halved(draft, i, share, tokens.get(i)) else 1 for i, share in enumerate(was)}
    prompts = {i: part_of_tokens(1, 2) if parts[i] == 2 else _as_it_is for i in tokens}
    half = cut(draft, asked, lambda i, batch: parts[i], prompts)
    shares = (
        replace(new, halves=tokens.get(i, old.batch) > 1) if parts[i] == 2 else old
        for i, (new, old) in enumerate(zip(half.shares, was, strict=True))
    )
    return replace(half, shares=tuple(shares))


def _is_halved(draft: Draft, i: int, share: Share, prompt: Any) -> bool:
    """Whether an engine that is asked to halves a step, in which the rank with most has `prompt` tokens if it works on prompts.

    SGLang does, unless data-parallel groups differ in whether they have prompts (batch_overlap/two_batch_overlap.py). vLLM does
    between data-parallel groups alone, where each has `VLLM_HALVES` tokens and more than half of what the first has (its second
    half would be empty): v1/worker/ubatch_utils.py, v1/worker/dp_utils.py.
    """
    engine = str(draft.stated("engine", "")).partition("@")[0]
    if engine not in ("sglang", "vllm"):
        return True
    mixed = busiest_groups(draft, draft.parallel.dp).get(i)
    differ = mixed is not None and mixed.differ
    if engine == "sglang":
        return not differ
    if draft.parallel.dp == 1:
        return False
    step, batch = draft.steps[i], draft.batch_of(i)
    decode, prompts = VLLM_HALVES
    fewest = share.batch - (share.fewer > 0)
    decoding = fewest * (
        mixed.decoding // mixed.batch if mixed else step.tokens // batch if step.tokens and batch else 1
    )
    if prompt is None:
        return bool(decoding >= decode)
    least = decoding if differ else prompt * fewest / share.batch
    return (
        bool(prompt >= prompts)
        and bool(least >= (decode if differ else prompts))
        and bool(least > prompt // 2)
    )


def _as_it_is(op: Op, at: At) -> Op:
    return op


def with_all_reduces(draft: Draft, ranks: int) -> Draft:
    """The draft with an all-reduce after each layer's attention and feed-forward, and a gather of the logits."""
    for kinds in (_ATTENTION_OUT, _FFN_OUT):
        draft = draft.inserted_after(
            draft.last_of_layer(kinds),
            lambda op, at: _merge(draft, op, at, ranks),  # noqa: B023
        )
    draft = _with_sums_of_norms(draft, ranks)
    heads = np.array([op.kind == "lm_head" and op.has("m", "n") for op in draft.ops])
    draft = draft.inserted_after(
        np.flatnonzero(heads[draft.cell]),
        lambda op, at: edit.collective(op, "all_gather", op["m"], op["n"], ranks),
    )
    whole = sum(op.kind == "gemm" for op in draft.ops)
    note = "; GEMMs whose role is not known are computed in whole on every GPU" if whole else ""
    return draft.noted(
        f"tp={ranks}: projections, heads and expert widths are cut over {ranks} GPUs, norms and routing repeated on each, "
        "with an all-reduce after attention and after the feed-forward of each layer and a gather of the logits, none "
        f"overlapped{note}"
    )


def _with_sums_of_norms(draft: Draft, ranks: int) -> Draft:
    """The draft with an all-reduce per layer where queries and keys are normalised over all heads, of which a rank has its own:
    the sums of their squares, two numbers of a token in fp32, in one message (SGLang, srt/models/minimax_m2.py)."""
    m = draft.model
    if m is None or m.architecture not in edit.SUMS_NORMS:
        return draft
    keys = m.kv_heads * m.head_dim // min(ranks, m.kv_heads)
    own = np.array([op.kind == "norm" and not op.has("residual") and op["width"] == keys for op in draft.ops])
    rows = np.flatnonzero(own[draft.cell])
    draft = draft.inserted_after(
        rows, lambda op, at: edit.collective(replace(op, dtype="fp32"), "all_reduce", op["tokens"], 2, ranks)
    )
    return draft.noted(
        f"tp={ranks}: queries and keys are normalised over all heads, which one more all-reduce in each layer sums up"
    )


def with_exchange(draft: Draft, asked: str, busiest: Mapping[int, Busiest]) -> Draft:
    """The draft with what data-parallel groups exchange round the experts of each layer.

    With ep, tokens are dispatched to the ranks of their experts and collected again, as long as it takes the group with most
    (`busiest`, else each has as many); without, all tokens are gathered and the experts' partial sums scattered back (every
    rank has a part of every expert's width).
    """
    p, width = draft.parallel, draft.model.hidden if draft.model else 0
    if not width:
        raise ScenarioError(f"{asked}: the hidden size is not known; parse with --model")
    exchange = _Exchange(draft, busiest, width)
    draft = draft.inserted_after(draft.last_of_layer((frozenset({"topk"}),)), exchange.before)
    draft = draft.inserted_after(
        draft.last_of_layer((frozenset({"moe_down", "moe_experts"}),)), exchange.after
    )
    how = (
        "dispatched to the ranks that hold their experts"
        if p.ep > 1
        else "gathered, and outputs scattered back"
    )
    on = any(mixed.each is not None for mixed in busiest.values())
    prompts = (
        "; a prompt is worked through by one group, prompts that come at once by as many as there are, and the other groups "
        + ("decode beside it" if on else "wait at the experts")
        if busiest
        else ""
    )
    return draft.noted(
        f"{asked}: attention and dense layers take the sequences of {p.dp} groups apart, tokens are {how}{prompts}"
    )


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What data-parallel groups send each other before and after the experts of a layer, `width` values of each token."""

    draft: Draft
    busiest: Mapping[int, Busiest]
    width: int

    def before(self, op: Op, at: At) -> Op:
        """The exchange after `op`, a layer's choice of experts."""
        p = self.draft.parallel
        if p.ep == 1:
            return edit.collective(op, "all_gather", self._gathered(op, at), self.width, p.dp)
        sent = edit.collective(op, "moe_dispatch", op["tokens"] * op["topk"] / p.tp, self.width, p.ep)
        model = self.draft.model
        if model is not None and edit.dispatched_narrow(model.expert_dtype):
            sent = sent.with_dims(bytes=sent["bytes"] // 2)
        return sent.with_dims(**self._dims(op, at, op["tokens"]))

    def after(self, op: Op, at: At) -> Op:
        """The exchange after `op`, the last GEMM of a layer's experts."""
        p = self.draft.parallel
        if p.ep == 1:
            return edit.collective(op, "reduce_scatter", op["tokens"], self.width, p.dp)
        tokens = self._own_tokens(op, at)
        back = edit.collective(op, "moe_collect", tokens * op["topk"] / p.tp, self.width, p.ep)
        return back.with_dims(**self._dims(op, at, tokens))

    def _own_tokens(self, op: Op, at: At) -> Any:
        mixed = self.busiest.get(at.step)
        if mixed:
            return mixed.own_tokens
        batch = self.draft.batch_of(at.step) or 1
        return -(-op["tokens"] * self.draft.shares[at.step].batch // batch)

    def _gathered(self, op: Op, at: At) -> Any:
        """Tokens that a rank gives: its own where prompts are worked on (vLLM, device_communicators/all2all.py: all_gatherv by
        each rank's size), padded to those of the group with most in decode graphs."""
        step, mixed = self.draft.steps[at.step], self.busiest.get(at.step)
        whole = mixed.tokens if mixed else step.tokens if step.phase in PROMPTS else None
        return op["tokens"] if whole is None else -(-whole // self.draft.parallel.dp)

    def _dims(self, op: Op, at: At, tokens: float) -> dict[str, float]:
        sms = {} if self.draft.steps[at.step].phase in GENERATING else {"sms": _NORMAL_SMS}
        each = -(-tokens // self.draft.parallel.tp)
        return {"experts": op["experts"], "topk": op["topk"], "tokens": each, "hidden": self.width, **sms}


def _merge(draft: Draft, op: Op, at: At, ranks: int, kind: str = "all_reduce", knob: str = "tp") -> Op:
    """The all-reduce of a layer's output after `op`, or its sending on."""
    tokens = next((op[d] for d in ("tokens", "m", "q", "batch") if op.has(d)), draft.steps[at.step].tokens)
    width = draft.model.hidden if draft.model else next((op[d] for d in ("hidden", "n") if op.has(d)), None)
    if tokens is None or width is None:
        raise ScenarioError(
            f"{knob}: how much leaves a rank after {op.kind} is not known; parse with --model"
        )
    return edit.collective(op, kind, tokens, width, ranks)
