"""OEA: arXiv 2511.02237, latency of one MoE layer of Qwen3-30B-A3B on an H100 by its distinct experts (batch 16).

A layer's latency is priced at the mean number of distinct experts that the same paper counted for the same setting, rows of
its rerouting included: router, top-k, the fused experts, their sum. Distinct experts themselves are predicted where nothing
was rerouted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moetrace.cost import price
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op, OpColumns
from moetrace.ops import works
from moetrace.replay.stated_routing import SIGMA, SKEWED
from moetrace.routing import popularity_distinct, uniform_distinct
from moetrace.routing.skewed import lognormal_popularity
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need

KINDS = ("OEA3", "OEA4", "OEAx")


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a latency at counted experts, of distinct experts on text or of the uniform formula."""
    counted = {_place(f): f.measured for f in among if f.metric == "mean_distinct_experts" and f.measured}
    return [_entry(figure, counted)]


def _place(figure: Figure) -> tuple[str, ...]:
    return (figure.model, figure.hw, figure.batch, figure.other_knob)


def _entry(figure: Figure, counted: Mapping[tuple[str, ...], float]) -> Entry:
    model = load_model(model_of(figure.model))
    (tokens,) = need(figure, "batch")
    if figure.metric == "expected_distinct_experts_uniform":
        value = uniform_distinct(model.experts, model.topk, tokens)
        return scored(figure, Estimate(value, None, None, "", f"E (1 - (1 - k/E)^T), T = {tokens}"))
    if figure.metric == "moe_layer_latency":
        if _place(figure) not in counted:
            raise RefusalError("its distinct experts were not counted, and they decide it")
        distinct = counted[_place(figure)]
        hw = machine_of(figure.hw)
        layer = moe_layer(model, tokens, distinct)
        costs = price(works(OpColumns.of(layer)), hw)
        low = float((costs.expected_s / (1 + costs.error)).sum())
        high = float((costs.expected_s * (1 + costs.error)).sum())
        said = f"one MoE layer, {tokens} tokens, {distinct:g} distinct experts"
        return scored(figure, Estimate(float(costs.expected_s.sum()), low, high, hw.name, said), per=1e-6)
    if figure.metric == "mean_distinct_experts":
        if "vanilla" not in figure.other_knob:
            raise RefusalError("which experts its rerouting picks is not simulated")
        value = popularity_distinct(lognormal_popularity(model.experts, model.topk, SIGMA), tokens)
        said = f"routing={SKEWED}, {tokens} tokens"
        return scored(figure, Estimate(value, None, None, "", said), "its sigma was chosen on these counts")
    raise RefusalError(f"no prediction is made of {figure.metric}")


def moe_layer(model: ModelSpec, tokens: int, distinct: float) -> list[Op]:
    """The ops of one MoE layer for `tokens` that touch `distinct` experts, none shared."""
    wide = {"tokens": tokens, "hidden": model.hidden, "inter": model.expert_inter, "experts": model.experts}
    dims = {**wide, "topk": model.topk, "distinct": distinct}
    chosen = {"tokens": tokens, "experts": model.experts, "topk": model.topk}
    return [
        Op.of("router", model.act_dtype, m=tokens, n=model.experts, k=model.hidden),
        Op.of("topk", model.act_dtype, **chosen),
        Op.of("moe_align", model.act_dtype, **chosen),
        Op.of("moe_gate_up", model.expert_dtype, **dims),
        Op.of("moe_act", model.act_dtype, tokens=tokens, inter=model.expert_inter, topk=model.topk),
        Op.of("moe_down", model.expert_dtype, **dims),
        Op.of("moe_combine", model.act_dtype, tokens=tokens, hidden=model.hidden, topk=model.topk),
    ]
