"""Routing that a scenario states instead of what was recorded: uniform, balanced, a power law, or a skew like text's.

Each says how many distinct experts the busiest rank reads and how many rows it multiplies; redundant experts (EPLB) spread
the rows evenly.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from moetrace.op import Op
from moetrace.replay.draft import EXPERTS, Draft
from moetrace.replay.lanes import each
from moetrace.routing import ep_max_distinct, popularity_distinct, uniform_distinct
from moetrace.routing.load import rank_load
from moetrace.routing.skewed import lognormal_popularity

SKEWED = "skewed"
_KEPT = 1 << 18  # loads that are kept: a grid asks for the same ones in each of its cases
# The skew of routing where nothing better is known: log-normal popularity with this sigma puts 16 tokens of Qwen3-30B-A3B on
# 47.7 distinct experts of 128, where 43.0 (AIME24) and 53.5 (MATH500) were counted (arXiv 2511.02237, table 4, top-8).
SIGMA = 1.6


def sigma_of(stated: str) -> float | None:
    """The sigma of ``skewed`` or ``skewed:SIGMA``; None for another routing."""
    name, _, value = stated.partition(":")
    return (float(value) if value else SIGMA) if name == SKEWED else None


def stated_routing(draft: Draft, stated: str, redundant: int) -> Draft:
    """The draft with every expert op's distinct experts and rows by the stated routing, with so many `redundant` experts."""
    ranks = draft.parallel.ep if any(op.has("local_experts") for op in draft.ops) else 1
    found = tuple(
        _stated(op, stated, ranks, redundant)
        if op.kind in EXPERTS and op.has("experts", "topk", "tokens")
        else op
        for op in draft.ops
    )
    return replace(draft, ops=found).noted(_said(stated, ranks, redundant))


def _stated(op: Op, stated: str, ranks: int, redundant: int) -> Op:
    experts, topk, tokens = (op[dim] for dim in ("experts", "topk", "tokens"))
    plain = op.with_dims(distinct=None, distinct_est=None, rows=None)
    if stated == "uniform" and ranks == 1:
        return plain
    distinct = each(_distinct, stated, experts, topk, tokens, ranks, redundant)
    plain = plain.with_dims(distinct_est=round(distinct, 4))
    if redundant:
        plain = plain.with_dims(local_experts=-(-(experts + redundant) // ranks))
    if ranks == 1 or (stated == "uniform" and not redundant):
        return plain
    return plain.with_dims(rows=round(each(_rows, stated, experts, topk, tokens, ranks, redundant), 4))


@lru_cache(maxsize=_KEPT)
def _distinct(stated: str, experts: float, topk: float, tokens: float, ranks: int, redundant: int) -> float:
    return load(stated, int(experts), int(topk), int(tokens), ranks, redundant)[0]


@lru_cache(maxsize=_KEPT)
def _rows(stated: str, experts: float, topk: float, tokens: float, ranks: int, redundant: int) -> float:
    return load(stated, int(experts), int(topk), int(tokens), ranks, redundant)[1] or 0.0


def load(
    stated: str, experts: int, topk: int, tokens: int, ranks: int, redundant: int = 0
) -> tuple[float, float | None]:
    """(distinct experts that the busiest of `ranks` reads, rows that it multiplies; None: its even share).

    With redundant experts every rank multiplies its even share, and reads what a rank reads on average, the copies in
    proportion.
    """
    sigma = sigma_of(stated)
    q = lognormal_popularity(experts, topk, sigma) if sigma is not None else None
    if redundant and ranks > 1:
        if q is not None:
            total = float(popularity_distinct(q, tokens))
        elif stated == "uniform":
            total = uniform_distinct(experts, topk, tokens)
        else:
            total = float(rank_load([stated], experts, topk, tokens).distinct[0])
        slots = (experts + redundant) / ranks
        return min(slots, total / ranks * (1 + redundant / experts)), tokens * topk / ranks
    if q is not None:
        if ranks == 1:
            return float(popularity_distinct(q, tokens)), None
        blocks = q.reshape(ranks, -1).sum(axis=1)
        return ep_max_distinct(experts, topk, tokens, ranks, q), float(blocks.max()) * tokens
    if stated == "uniform":
        return ep_max_distinct(experts, topk, tokens, ranks), None
    found = rank_load([stated], experts, topk, tokens, ranks)
    return float(found.distinct[0]), float(found.rows[0])


def _said(stated: str, ranks: int, redundant: int) -> str:
    if (sigma := sigma_of(stated)) is not None:
        how = f"experts' popularity is log-normal with sigma {sigma:g}, tokens independent of each other"
    else:
        how = {
            "uniform": "every token chooses its experts uniformly and independently",
            "balanced": "tokens are dealt to the experts evenly",
        }.get(stated, "tokens per expert follow the power law by which public tables were measured")
    more = (
        f"; {redundant} redundant experts even out the rows of the ranks" if redundant and ranks > 1 else ""
    )
    return f"routing={stated}: {how}{more}"
