"""What rank 0 gets of public tables' logits where a router keeps to some groups of experts.

A table's maker deals each token k experts and gives these one logit and all others another. A router of groups (DeepSeek-V3,
arXiv 2412.19437, section 2.1.2: the 4 of 8 groups whose two best logits sum to most) then drops the choices outside of its
groups and takes others in their stead, all equally good, of which a kernel finds those of the lowest index first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moetrace.routing.distinct import FloatArray, IntArray
from moetrace.routing.drawn import power_law_counts
from moetrace.routing.load import balanced_places

_GROUPS, _KEPT, _BEST = 8, 4, 2
_DRAWS, _SEED = 8, 1


def limited_load(
    routing: Sequence[str], experts: int, topk: int, tokens: npt.ArrayLike, ep: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """(distinct experts, token rows) of rank 0, [rows].

    `routing` is ``balanced`` or ``power_law_ALPHA``, whose rank with the most choices is made the first. Each setting is worked
    out once.
    """
    keys = list(zip(routing, np.asarray(tokens, int).tolist(), np.asarray(ep, int).tolist(), strict=True))
    known = {key: _of_rank_0(key[0], experts, topk, key[1], key[2]) for key in dict.fromkeys(keys)}
    found = np.array([known[key] for key in keys]).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _of_rank_0(routing: str, experts: int, topk: int, tokens: int, ep: int) -> tuple[float, float]:
    here, found = experts // ep, []
    for ids, times in _dealt(routing, experts, topk, tokens, ep):
        chosen = limited_ids(ids, experts)
        mine = chosen < here
        found.append((np.unique(chosen[mine]).size, float((mine.sum(1) * times).sum())))
    distinct, rows = np.mean(found, axis=0).tolist()
    return distinct, rows


def _dealt(
    routing: str, experts: int, topk: int, tokens: int, ep: int
) -> list[tuple[IntArray, npt.NDArray[np.int64]]]:
    """(choices of tokens that differ, how many tokens make them) of each draw: experts in order of their load, each dealt to
    as many tokens in turn as choose it."""
    if routing == "balanced":
        stride, places = balanced_places(experts, topk)
        first = np.arange(tokens) if tokens >= stride else np.arange(tokens) * stride // max(tokens, 1)
        ids = (first[:, None] + places[None]) % experts
        return [np.unique(ids, axis=0, return_counts=True)]
    random, alpha, draws = np.random.default_rng(_SEED), float(routing.rpartition("_")[2]), []
    in_turn = np.arange(experts).reshape(ep, -1).T.ravel()  # ranks, each by the index of its experts
    for _ in range(_DRAWS):
        counts = power_law_counts(experts, topk, tokens, alpha, random, in_turn).reshape(ep, -1)
        busiest = int(counts.sum(1).argmax())
        counts[[0, busiest]] = counts[[busiest, 0]]
        order = np.argsort(-counts.ravel(), kind="stable")
        ids = np.repeat(order, counts.ravel()[order]).reshape(topk, tokens).T
        starts = np.flatnonzero(np.append(True, (ids[1:] != ids[:-1]).any(1)))
        draws.append((ids[starts], np.diff(np.append(starts, tokens))))
    return draws


def limited_ids(ids: IntArray, experts: int) -> IntArray:
    """Choices [tokens, k] of a router that keeps to the best groups, where `ids` have one logit and all others a lower one."""
    size, k = experts // _GROUPS, ids.shape[1]
    best = np.minimum((ids[:, :, None] // size == np.arange(_GROUPS)).sum(1), _BEST)
    groups = np.argsort(-best, axis=1, kind="stable")[:, :_KEPT]
    kept = (ids[:, :, None] // size == groups[:, None]).any(2)
    # Others of the lowest index: of the first group kept, whose 2 k first experts are not all taken.
    others = groups.min(1)[:, None] * size + np.arange(min(2 * k, size))
    free = ~(others[:, :, None] == ids[:, None]).any(2)
    lacking = k - kept.sum(1)
    out = np.where(kept, ids, -1)
    out = np.take_along_axis(out, np.argsort(~kept, axis=1, kind="stable"), axis=1)
    filled = np.take_along_axis(others, np.argsort(~free, axis=1, kind="stable"), axis=1)[:, :k]
    at = np.arange(k)[None] - (k - lacking)[:, None]
    return np.where(at < 0, out, np.take_along_axis(filled, np.maximum(at, 0), axis=1))
