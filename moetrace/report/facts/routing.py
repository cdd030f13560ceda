"""What a report shows of recorded routing: load of experts by layer, distinct experts by batch, skew, and ranks of experts."""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.routing import Routing, ep_blocks, popularity_distinct, uniform_distinct, uniform_spread
from moetrace.run import GENERATING, Run

FloatArray = npt.NDArray[np.float64]
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RANKS = (2, 4, 8, 16, 32, 64)
_POINTS = 64  # of counted distinct experts, each of another number of tokens
_MAX_CELLS = 40_000  # of the heat map: more are averaged over neighbouring experts


def routing_facts(run: Run) -> dict[str, Any] | None:
    """Facts of the recorded routing of decode steps (of all steps where none is decode); None if none was recorded.

    `load` is by layer and expert, 1 for the mean expert. A layer's `skew` is the load of its busiest expert in a step, mean
    over steps, and `chance` what uniform routing of as many tokens would show; `pooled` is that of all steps together.
    """
    routing = run.routing
    if routing is None or not len(routing):
        return None
    phase = {s.index: s.phase for s in run.meta.steps}
    decode = [s for s in routing.steps if phase.get(s) in GENERATING]
    steps = decode or list(routing.steps)
    skews, tokens, distinct = routing.load_skew(), routing.token_counts(), routing.distinct()
    layers, load = [], []
    for layer in routing.layers:
        mine = [s for s in steps if (s, layer) in skews]
        if not mine:
            continue
        share = routing.popularity(layer, steps=mine) / routing.topk * routing.experts
        each = [skews[s, layer] for s in mine]
        seen = [tokens[s, layer] for s in mine]
        layers.append(
            {
                "layer": layer,
                "skew": float(np.mean(each)),
                "skew_low": float(np.min(each)),
                "skew_high": float(np.max(each)),
                "chance": chance_skew(routing.experts, routing.topk, round(float(np.mean(seen)))),
                "pooled": float(share.max()),
                "busiest": int(share.argmax()),
                "never": int((share == 0).sum()),
                "tokens": float(np.mean(seen)),
                "distinct": float(np.mean([distinct[s, layer] for s in mine])),
                "uniform": uniform_distinct(routing.experts, routing.topk, float(np.mean(seen))),
            }
        )
        load.append(share)
    if not layers:
        return None
    return {
        "phase": "decode" if decode else "all",
        "experts": routing.experts,
        "topk": routing.topk,
        "steps": len(steps),
        "layers": layers,
        "load": _folded(np.vstack(load)),
        "curve": _curve(routing, steps),
        "measured": _measured(routing, phase),
        "ranks": _ranks(routing, steps),
    }


def chance_skew(experts: int, topk: int, tokens: int) -> float:
    """Load skew that uniform routing shows by chance: expected maximum over the mean.

    Experts are taken as independent, which is a tenth too low where there are fewer tokens than experts and n_a is 1.
    """
    if tokens < 1:
        return float("nan")
    p = topk / experts
    if p >= 1:
        return 1.0
    hits = np.arange(tokens + 1)
    ways = np.array([lgamma(tokens + 1) - lgamma(h + 1) - lgamma(tokens - h + 1) for h in hits.tolist()])
    below = np.minimum(1.0, np.cumsum(np.exp(ways + hits * np.log(p) + (tokens - hits) * np.log1p(-p))))
    return float(np.sum(1.0 - below[:-1] ** experts) / (tokens * p))


def _folded(load: FloatArray) -> dict[str, Any]:
    """The heat map's rows, neighbouring experts averaged where there would be too many cells."""
    layers, experts = load.shape
    fold = -(-layers * experts // _MAX_CELLS)
    width = -(-experts // fold)
    rows = np.add.reduceat(load, np.arange(0, experts, fold), axis=1)
    sizes = np.diff(np.append(np.arange(0, experts, fold), experts))
    return {"fold": fold, "width": width, "rows": np.round(rows / sizes, 3).tolist()}


def _curve(routing: Routing, steps: Sequence[int]) -> list[dict[str, float | None]]:
    """Distinct experts by tokens: of uniform routing with its spread, and of the recorded popularity (mean over layers).

    Popularity of few tokens misses the experts that more would reach, so its curve stops at a quarter of the tokens seen.
    """
    have = set(routing.token_counts())
    pools = []
    held = []
    for layer in routing.layers:
        mine = [s for s in routing.steps if (s, layer) in have]
        pools.append(routing.popularity(layer, steps=mine))
        held.append(sum(routing.tokens(s, layer) for s in mine))
    out: list[dict[str, float | None]] = []
    for tokens in _BATCHES:
        enough = min(held) >= 4 * tokens
        recorded = float(np.mean([popularity_distinct(q, tokens) for q in pools])) if enough else None
        uniform = uniform_distinct(routing.experts, routing.topk, float(tokens))
        spread = uniform_spread(routing.experts, routing.topk, float(tokens))
        out.append({"tokens": tokens, "uniform": uniform, "spread": spread, "recorded": recorded})
    return out


def _measured(routing: Routing, phase: dict[int, str | None]) -> list[dict[str, Any]]:
    """Counted distinct experts by tokens of a step and its phase: mean and extremes over steps and layers."""
    tokens, found = routing.token_counts(), routing.distinct()
    groups: dict[tuple[int, str], list[int]] = {}
    for (step, layer), count in found.items():
        groups.setdefault((tokens[step, layer], phase.get(step) or "unknown"), []).append(count)
    commonest = sorted(groups.items(), key=lambda item: -len(item[1]))[:_POINTS]
    return [
        {
            "tokens": t,
            "phase": name,
            "mean": float(np.mean(v)),
            "low": min(v),
            "high": max(v),
            "cells": len(v),
        }
        for (t, name), v in commonest
    ]


def _ranks(routing: Routing, steps: Sequence[int]) -> list[dict[str, float]]:
    """What expert parallelism in contiguous blocks would meet: the busiest rank's share of tokens and distinct experts.

    Means over steps and layers; `load` is the busiest rank over the mean rank (1: balanced).
    """
    at = np.isin(routing.step, np.asarray(steps))
    cell = routing.step[at] * (int(routing.layer.max()) + 1) + routing.layer[at]
    _, cell = np.unique(cell, return_inverse=True)
    cell, count = cell.reshape(-1), routing.count[at]
    cells = int(cell.max()) + 1
    everywhere = routing.distinct()
    alone = float(np.mean([v for (s, _), v in everywhere.items() if s in set(steps)]))
    out = []
    for ranks in _RANKS:
        if ranks > routing.experts:
            break
        rank = ep_blocks(routing.experts, ranks)[routing.expert[at]]
        load = np.bincount(cell * ranks + rank, weights=count, minlength=cells * ranks).reshape(-1, ranks)
        worst = [v for (s, _), v in routing.distinct(ep=ranks).items() if s in set(steps)]
        out.append(
            {
                "ranks": ranks,
                "load": float(np.mean(load.max(axis=1) / load.mean(axis=1))),
                "distinct": float(np.mean(worst)),
                "even": alone / ranks,
                "held": -(-routing.experts // ranks),
            }
        )
    return out
