"""Expert ids made to follow a distribution: for workloads whose routing is prescribed instead of computed."""

from __future__ import annotations

import numpy as np

from moetrace.errors import ScenarioError
from moetrace.routing.distinct import FloatArray, IntArray

_BLOCK = 1 << 22  # cells of the tokens x experts tables that are made at once


def drawn_ids(popularity: FloatArray, tokens: int, random: np.random.Generator) -> IntArray:
    """Expert ids [tokens, k], each token's own draw, that takes expert e with probability ``popularity[e]``.

    `popularity` ([experts]) sums to k, a whole number, and has no entry above 1. Systematic sampling over a new
    order of the experts for each token (Madow 1949): always k distinct experts, exactly these probabilities.
    Raises ScenarioError if they do not sum to a whole number.
    """
    q = np.asarray(popularity, dtype=np.float64)
    k = round(float(q.sum()))
    if not 1 <= k <= q.size or abs(float(q.sum()) - k) > 1e-6 or q.min() < 0 or q.max() > 1 + 1e-9:
        raise ScenarioError(
            "popularity: expected shares from 0 to 1 that sum to n_a, how many experts a token gets"
        )
    rows = max(1, _BLOCK // q.size)
    blocks = [_draw(q, k, min(rows, tokens - at), random) for at in range(0, tokens, rows)]
    return np.concatenate(blocks) if blocks else np.zeros((0, k), dtype=np.int64)


def _draw(q: FloatArray, k: int, tokens: int, random: np.random.Generator) -> IntArray:
    order = random.permuted(np.broadcast_to(np.arange(q.size), (tokens, q.size)), axis=1)
    ends = np.cumsum(q[order], axis=1)
    ends[:, -1] = k  # the sum of floats may miss it
    marks = random.random((tokens, 1)) + np.arange(k)
    # A mark falls on the first expert whose end lies beyond it. One search for all tokens: each has its own range.
    shift = (k + 1.0) * np.arange(tokens)[:, None]
    at = np.searchsorted((ends + shift).ravel(), (marks + shift).ravel(), side="right").reshape(tokens, k)
    at -= q.size * np.arange(tokens)[:, None]
    ids: IntArray = np.take_along_axis(order, at, axis=1).astype(np.int64)
    return random.permuted(ids, axis=1)


def dealt_ids(counts: IntArray, tokens: int, random: np.random.Generator) -> IntArray:
    """Expert ids [tokens, k] in which expert e occurs exactly ``counts[e]`` times, for no token twice.

    `counts` ([experts]) sums to tokens x k, none above `tokens`. Experts are dealt one after another to the tokens
    in turn, so those that one token gets lie `tokens` cards apart and differ. Raises ScenarioError otherwise.
    """
    counts = np.asarray(counts, dtype=np.int64)
    k, rest = divmod(int(counts.sum()), tokens)
    if rest or not k or counts.min() < 0 or counts.max() > tokens:
        raise ScenarioError(
            f"counts of {counts.sum()} choices cannot be dealt to {tokens} tokens: each token gets equally many, "
            "and an expert at most once"
        )
    order = random.permutation(counts.size)
    ids = np.repeat(order, counts[order]).reshape(k, tokens).T
    return random.permutation(ids)


def power_law_counts(
    experts: int,
    topk: int,
    tokens: int,
    alpha: float,
    random: np.random.Generator,
    order: IntArray | None = None,
) -> IntArray:
    """How many of `tokens` choose each expert, [experts], drawn as NVIDIA's public performance tables draw it.

    Expert weights of a bounded power law, density ~ x^-alpha on [1, 0.8 tokens] where tokens x topk > experts and
    on [0.01, 2] otherwise; scaled to tokens x topk choices, rounded, none above `tokens`, the rest dealt to the
    least or taken from the most loaded (AIConfigurator, POWER_LAW_DISTRIBUTION). Among equals the rest reaches experts in
    `order`, by default that of their index. Raises ScenarioError.
    """
    if not (alpha >= 0 and 1 <= topk <= experts and tokens >= 1):
        raise ScenarioError(
            f"power_law:{alpha:g} of {topk} of {experts} experts: expected an exponent of at least 0"
        )
    total = tokens * topk
    low, high = (1.0, max(0.8 * tokens, 1.0)) if total > experts else (0.01, 2.0)
    share = random.random(experts)
    if abs(alpha - 1.0) < 1e-9:
        weight = low * (high / low) ** share
    else:
        power = 1.0 - alpha
        weight = (low**power + share * (high**power - low**power)) ** (1.0 / power)
    counts: IntArray = np.minimum(np.rint(weight / weight.sum() * total), tokens).astype(np.int64)
    back = None
    if order is not None:
        counts, back = counts[order], np.argsort(order)
    while rest := total - int(counts.sum()):
        sign = 1 if rest > 0 else -1
        room = tokens - counts if rest > 0 else counts
        open_to = room > 0
        rounds = abs(rest) // int(open_to.sum())
        if rounds:  # one each, as often as all that are open have room for
            counts[open_to] += sign * min(rounds, int(room[open_to].min()))
        else:
            first = np.argsort(np.where(open_to, sign * counts, total + 1), kind="stable")
            counts[first[: abs(rest)]] += sign
    return counts if back is None else counts[back]
