"""After the knobs: how many distinct experts each edited expert op touches, from the best source there is.

Best first: counted in the recording (nothing changed), counted again among each token's first n_a recorded choices (as
many tokens, at most the recorded n_a), popularity recorded per expert (other tokens), the uniform formula. Where only n_a
changed and a formula must say how, it says the ratio: what was counted at the recorded n_a is scaled by it, so that a
prediction and what it is held against rest on the same source.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moetrace.op import Op
from moetrace.replay.draft import EXPERTS, At, Draft
from moetrace.replay.lanes import Lanes, each
from moetrace.replay.popularity import Popularity
from moetrace.replay.pruning import pruned_note, put_pruned
from moetrace.replay.stated_routing import stated_routing
from moetrace.routing import (
    Routing,
    ep_max_distinct,
    own_block,
    uniform_distinct,
)

IntArray = npt.NDArray[np.int64]
_PARTS = 100  # of an expert: what an estimate by step and layer is rounded to
DRAWN = "popularity"  # the routing that is drawn anew from what was recorded
UNIFORM = "distinct experts follow the uniform formula E(1-(1-k/E)^T), as no routing was recorded; real text touches fewer"
_SOURCES = {
    "recut": "distinct experts at another n_a are counted among each token's first n_a recorded choices: exact for the "
    "hidden states recorded, an estimate in layers after the first, whose inputs would change: were the choices there drawn "
    "anew from each layer's popularity, the standard deviation would be {spread:.1f} experts",
    "ranked": "distinct experts of the worst expert-parallel rank are counted in the recorded routing, experts lying in "
    "contiguous blocks",
    "popularity": "distinct experts at another batch follow from each expert's recorded popularity, evened out until "
    "independent tokens touch as many as the recorded steps did",
    "drawn": "routing=popularity: distinct experts follow at every n_a from each expert's recorded popularity, tokens drawn "
    "anew and independently of one another",
    "proportion": "distinct experts at another n_a, where each token's choices were not recorded, are those counted at the "
    "recorded n_a, in proportion to what popularity, or uniform routing, says of either",
    "uniform": UNIFORM,
    "scaled": "the worst expert-parallel rank holds what uniform routing would put there, in proportion to the distinct "
    "experts counted",
}


def settle(draft: Draft) -> Draft:
    """The draft with its routing settled: by the scenario's `routing` where it says one, else from the best source there is.

    Of a prediction that is what was stated when it was made, for what is edited since.
    """
    stated = draft.scenario.get("routing")
    if stated not in (None, "recorded", DRAWN):
        return stated_routing(draft, str(stated), int(draft.stated("eplb", 0)))
    if stated is None and (before := stated_before(draft)):
        again = stated_routing(draft, *before)
        pairs = list(zip(draft.ops, draft.origin, again.ops, strict=True))
        kept = [origin is not None and (not _is_expert(op) or _same(op, origin)) for op, origin, _ in pairs]
        if all(kept):
            return draft
        ops = tuple(op if stays else new for stays, (op, _, new) in zip(kept, pairs, strict=True))
        return replace(again, ops=ops)
    return _settled_from_run(draft, stated == DRAWN)


def stated_before(draft: Draft) -> tuple[str, int] | None:
    """(routing, redundant experts) that a predicted run was made with; None where its routing was not stated."""
    routing = draft.stated("routing", "recorded")
    return None if routing in ("recorded", DRAWN) else (str(routing), int(draft.stated("eplb", 0)))


def _settled_from_run(draft: Draft, drawn: bool) -> Draft:
    """The draft with `distinct`, `distinct_est` or neither on each expert op, as its edits leave it, and the source said.

    With `drawn` popularity says it of every op, also where nothing changed.
    """
    ranks = draft.parallel.ep if any(op.has("local_experts") for op in draft.ops) else 1
    routing = draft.run.routing
    counts = np.full(draft.rows.size, -1, dtype=np.int64)
    if routing is not None and not drawn:
        counts = _recounted(draft, routing, ranks)
        draft, counts = draft.split(counts)
    else:
        counts = np.full(len(draft.ops), -1, dtype=np.int64)
    said: dict[str, None] = {}
    recut: set[int] = set()
    pruned: set[tuple[int, int]] = set()
    found, popularity = [], Popularity(draft)
    for op, origin, at, count in zip(draft.ops, draft.origin, draft.at, counts.tolist(), strict=True):
        if origin is None or not _is_expert(op):
            found.append(op)
            continue
        settled, source = (
            _drawn(popularity, op, at, ranks)
            if drawn
            else _settled(popularity, op, origin, at, count / _PARTS, ranks)
        )
        found.append(settled)
        if source:
            said[source] = None
        if source == "recut":
            recut.add(int(op["topk"]))
        if source == "pruned":
            pruned.add((int(op["topk"]), int(op["experts"])))
    spread = max((_spread(routing, n_a) for n_a in recut if routing is not None), default=0.0)
    notes = {**_SOURCES, "pruned": pruned_note(draft, routing, pruned) if routing is not None else ""}
    return replace(draft, ops=tuple(found)).noted(*(notes[source].format(spread=spread) for source in said))


def _spread(routing: Routing, n_a: int) -> float:
    """Typical standard deviation of the distinct experts re-cut to `n_a`, over the steps and layers where it is not a count."""
    stated = [value for value in routing.recut_spread(n_a).values() if value]
    return float(np.median(stated)) if stated else 0.0


def _is_expert(op: Op) -> bool:
    return op.kind in EXPERTS and op.has("experts", "topk", "tokens")


def _same(op: Op, origin: Op) -> bool:
    """Whether an edit left alone what decides the distinct experts of one rank; not, where n_a stands for many scenarios."""
    if isinstance(op.get("topk"), Lanes):
        return False  # to ask would part those of the recorded n_a, for the same answer
    return all(op.get(dim) == origin.get(dim) for dim in ("topk", "tokens", "experts", "local_experts"))


def _drawn(popularity: Popularity, op: Op, at: At, ranks: int) -> tuple[Op, str]:
    """(the op with the distinct experts that popularity says, where they come from)."""
    estimate = popularity(op, at, op["topk"], ranks, drawn=True)
    if estimate is not None:
        return op.with_dims(distinct=None, distinct_est=round(estimate, 4)), "drawn"
    worst = None if ranks == 1 else round(each(_worst_rank, *_choice(op), ranks), 4)
    return op.with_dims(distinct=None, distinct_est=worst), "uniform"


def _settled(popularity: Popularity, op: Op, origin: Op, at: At, count: float, ranks: int) -> tuple[Op, str]:
    """(the op with its distinct experts, where they come from if that had to change)."""
    if _same(op, origin):
        counted = op.get("distinct")
        if counted is not None and at.layer != at.source_layer:
            return op.with_dims(distinct=None, distinct_est=counted), ""
        return op, ""
    experts, topk, tokens = _choice(op)
    known = origin.get("distinct") if origin.get("distinct") is not None else origin.get("distinct_est")
    if count >= 0:
        estimate, source = count, "recut" if topk != origin["topk"] else "ranked"
        source = source if experts == origin["experts"] else "pruned"
    elif (found := popularity(op, at, topk, ranks)) is not None:
        estimate, source = found, "popularity"
        if known is not None and _same_load(op, origin):
            before = popularity(op, at, origin["topk"], ranks)
            if before:
                most = _most(experts, topk, tokens, ranks)
                estimate, source = min(known * found / before, most), "proportion"
    elif ranks == 1:
        if known is None or not _same_load(op, origin):
            return op.with_dims(distinct=None, distinct_est=None), "uniform"
        before = uniform_distinct(*_choice(origin))
        scaled = known * each(uniform_distinct, experts, topk, tokens) / before
        estimate, source = min(scaled, _most(experts, topk, tokens, 1)), "proportion"
    else:
        estimate, source = each(_worst_rank, experts, topk, tokens, ranks), "uniform"
        if known is not None and (experts, topk, tokens) == _choice(origin):
            share = known / uniform_distinct(experts, topk, tokens)
            estimate, source = min(estimate * share, experts / ranks, known), "scaled"
    if origin.has("rows") and not op.has("rows") and _same_load(op, origin):
        op = op.with_dims(rows=round(each(_in_proportion, origin["rows"], topk, origin["topk"]), 4))
    return op.with_dims(distinct=None, distinct_est=round(estimate, 4)), source


def _in_proportion(counted: float, new: float, old: float) -> float:
    return counted * new / old


def _choice(op: Op) -> tuple[int | float, int | float, int | float]:
    return op["experts"], op["topk"], op["tokens"]


def _same_load(op: Op, origin: Op) -> bool:
    """Whether an edit left alone all but n_a of what decides the distinct experts of one rank."""
    return all(op.get(dim) == origin.get(dim) for dim in ("tokens", "experts", "local_experts"))


def _most(experts: float, topk: float, tokens: float, ranks: int) -> float:
    """The most distinct experts that a rank can have."""
    return min(experts / ranks, tokens * topk)


@lru_cache(maxsize=1 << 18)
def _worst_rank(experts: float, topk: float, tokens: float, ranks: int) -> float:
    return ep_max_distinct(int(experts), int(topk), int(tokens), ranks)


def _recounted(draft: Draft, routing: Routing, ranks: int) -> IntArray:
    """For each row the distinct experts of its step and layer at its op's n_a, in _PARTS; -1 where that cannot be counted.

    Of `ranks` those of the row's own one where the recording counted so, else those of the one with most. Routing of other
    tokens than the op's counts nothing: one rank's own, where others' reach its experts too.
    """
    changed, pruned = np.zeros((2, len(draft.ops)), dtype=bool)
    for i, (op, origin) in enumerate(zip(draft.ops, draft.origin, strict=True)):
        if origin is not None and _is_expert(op) and op["tokens"] == origin["tokens"]:
            pruned[i] = op["experts"] != origin["experts"] == routing.experts
            changed[i] = op["experts"] == origin["experts"] and not _same(op, origin)
    topk = np.array([int(op.get("topk", 0) or 0) for op in draft.ops], dtype=np.int64)
    layer = np.array([at.source_layer for at in draft.at], dtype=np.int64)[draft.cell]
    index = np.array([step.index for step in draft.steps], dtype=np.int64)[draft.base.step[draft.rows]]
    meta = draft.run.meta
    own = meta.own_experts and ranks == meta.ep
    held = np.zeros(draft.rows.size, dtype=np.int64)
    if own:
        held = own_block(draft.run.numpy("rank").astype(np.int64)[draft.base.row[draft.rows]], ranks)
    partly = ranks > 1 and meta.ep > meta.tp
    out = np.full(draft.rows.size, -1, dtype=np.int64)
    for n_a in np.unique(topk[changed]).tolist():
        if n_a > routing.topk or not (routing.ordered or n_a == routing.topk):
            continue
        cells = routing.by_rank(ranks, n_a)
        shape = max(s for s, _ in cells) + 1, max(k for _, k in cells) + 1
        table = np.full((*shape, ranks), -1, dtype=np.int64)
        seen = np.zeros(shape, dtype=np.int64)
        for (step, at), found in cells.items():
            table[step, at] = found.distinct if own else found.distinct.max()
            seen[step, at] = found.tokens
        here = (changed & (topk == n_a))[draft.cell]
        here &= (layer >= 0) & (layer < shape[1]) & (index < shape[0])
        if partly:
            tokens = np.array([op.get("tokens", 0) for op in draft.ops], dtype=np.float64)[draft.cell]
            here[here] = seen[index[here], layer[here]] == tokens[here]
        counted = table[index[here], layer[here], held[here]]
        out[here] = np.where(counted >= 0, counted * _PARTS, -1)
    if ranks == 1:
        put_pruned(out, draft, routing, pruned, (index, layer), _PARTS)
    return out
