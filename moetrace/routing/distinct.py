"""Formulas for routing that was not recorded: distinct experts of uniform or popular choice, and by rank."""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Numbers: TypeAlias = "float | npt.NDArray[np.number]"

_ALL_TOUCHED = 1e-9  # so few experts expected to be missed are none
_MAX_EP_EXPERTS = 1000  # the exact law below works in float64 down to 2**-experts


@overload
def uniform_distinct(experts: float, topk: float, tokens: float) -> float: ...
@overload
def uniform_distinct(experts: Numbers, topk: Numbers, tokens: npt.NDArray[np.number]) -> FloatArray: ...
def uniform_distinct(experts: Numbers, topk: Numbers, tokens: Numbers) -> float | FloatArray:
    """Distinct experts expected of uniform, independent routing, k of E for each token: E(1-(1-k/E)^T).

    `tokens` may be an array, and the others too then; the answer is one of their shape. Real text stays below: 48.8 against
    82.4 for Qwen3-30B-A3B at batch 16 (arXiv 2511.02237). Raises ScenarioError unless 0 <= topk <= experts and
    tokens >= 0.
    """
    _check_choice(experts, topk, tokens)
    return _like(tokens, experts * (1.0 - np.power(1.0 - topk / experts, tokens)))


@overload
def uniform_spread(experts: float, topk: float, tokens: float) -> float: ...
@overload
def uniform_spread(experts: float, topk: float, tokens: npt.NDArray[np.number]) -> FloatArray: ...
def uniform_spread(experts: float, topk: float, tokens: float | npt.NDArray[np.number]) -> float | FloatArray:
    """Standard deviation of the distinct experts of uniform routing, from the exact second moment.

    A token misses two given experts with probability 1 - 2k/E + k(k-1)/(E(E-1)). Same arguments as
    `uniform_distinct`.
    """
    _check_choice(experts, topk, tokens)
    miss = np.power(1.0 - topk / experts, tokens)
    both = 1.0 - 2 * topk / experts + topk * (topk - 1) / (experts * max(experts - 1, 1))
    joint = np.power(max(both, 0.0), tokens)
    variance = experts * miss * (1 - miss) + experts * (experts - 1) * (joint - miss * miss)
    return _like(tokens, np.sqrt(np.maximum(variance, 0.0)))


@overload
def popularity_distinct(q: FloatArray, tokens: float) -> float: ...
@overload
def popularity_distinct(q: FloatArray, tokens: npt.NDArray[np.number]) -> FloatArray: ...
def popularity_distinct(q: FloatArray, tokens: float | npt.NDArray[np.number]) -> float | FloatArray:
    """Distinct experts expected of tokens that hit expert e with probability ``q[e]``: sum 1-(1-q)^T.

    `q` has shape [experts] and sums to n_a. Never above `uniform_distinct` of the same sum.
    """
    q = np.asarray(q, dtype=np.float64)
    if q.ndim != 1 or not q.size or not bool(np.all((q >= 0) & (q <= 1 + 1e-9))):
        raise ScenarioError(
            "an expert's popularity is the share of tokens that choose it: expected values within 0 to 1"
        )
    _check_choice(q.size, 0, tokens)
    return _like(
        tokens, np.sum(1.0 - np.power(np.maximum(1.0 - q, 0.0), np.expand_dims(tokens, -1)), axis=-1)
    )


def ep_max_distinct(
    experts: int, topk: int, tokens: int, ep: int, popularity: FloatArray | None = None
) -> float:
    """Expected distinct experts on the worst of `ep` ranks, which is what an expert-parallel step waits for.

    Ranks hold equal contiguous blocks of experts (sizes differ by one where `ep` does not divide). Uniform
    routing is solved exactly: the experts touched are a uniform subset given how many they are, and how many
    follows a Markov chain over the tokens. With `popularity` ([experts], sum n_a; `topk` is then unused)
    experts are taken as independent of each other, which overstates the worst rank at few tokens. Raises
    ScenarioError on more ranks than experts.
    """
    _check_choice(experts, 0 if popularity is not None else topk, tokens)
    if not 1 <= ep <= experts:
        raise ScenarioError(f"ep is {ep}: expected 1 to {experts}, one expert at least on each rank")
    if popularity is not None:
        if len(popularity) != experts:
            raise ScenarioError(f"popularity has {len(popularity)} entries for {experts} experts")
        return _ep_max_popular(np.asarray(popularity, dtype=np.float64), tokens, ep)
    if ep == 1:
        return uniform_distinct(experts, topk, tokens)
    if experts > _MAX_EP_EXPERTS:
        raise ScenarioError(f"{experts} experts: the worst rank is worked out for at most {_MAX_EP_EXPERTS}")
    if experts * (1.0 - topk / experts) ** tokens < _ALL_TOUCHED:
        return float(-(-experts // ep))
    return float(_touched(experts, topk, int(tokens)) @ _ep_max_given(experts, ep))


def ep_blocks(experts: int, ep: int) -> IntArray:
    """Rank that holds each expert, [experts]: contiguous blocks, the first ``experts % ep`` one larger."""
    return np.repeat(np.arange(ep), [experts // ep + (r < experts % ep) for r in range(ep)])


@overload
def own_block(rank: int, ep: int) -> int: ...
@overload
def own_block(rank: IntArray, ep: int) -> IntArray: ...
def own_block(rank: int | IntArray, ep: int) -> int | IntArray:
    """The block of `ep_blocks` that a rank of the whole group holds; groups of `ep` ranks follow one another."""
    return rank % ep


@lru_cache(maxsize=1 << 16)
def _touched(experts: int, topk: int, tokens: int) -> FloatArray:
    """Probability of each number of distinct experts, [experts + 1]: a token adds hypergeometrically many."""
    row = np.zeros(experts + 1)
    row[0] = 1.0
    for bit in range(tokens.bit_length()):
        if tokens >> bit & 1:
            row = row @ _tokens_step(experts, topk, bit)
    return row


@lru_cache(maxsize=1024)
def _tokens_step(experts: int, topk: int, bit: int) -> FloatArray:
    """How ``2**bit`` tokens change the number of distinct experts: probability [before, after]."""
    if bit:
        half = _tokens_step(experts, topk, bit - 1)
        return np.asarray(half @ half)
    total = comb(experts, topk)
    step = np.zeros((experts + 1, experts + 1))
    for seen in range(experts + 1):
        for new in range(max(0, topk - seen), min(topk, experts - seen) + 1):
            step[seen, seen + new] = comb(experts - seen, new) * comb(seen, topk - new) / total
    return step


@lru_cache(maxsize=64)
def _ep_max_given(experts: int, ep: int) -> FloatArray:
    """Expected maximum over the ranks given the number of distinct experts, [experts + 1].

    The product over ranks of sum_{j <= m} C(size, j) x^j has, at x^u, the number of u-subsets with at most m
    on any rank. Each factor is scaled by 2^-size to stay within float64; all terms are positive, so nothing
    cancels.
    """
    small, larger = divmod(experts, ep)
    sizes = [(small + 1, larger), (small, ep - larger)]
    ways = np.array([comb(experts, u) / 2**experts for u in range(experts + 1)])
    expected = np.zeros(experts + 1)
    for most in range(max(size for size, n in sizes if n)):
        product = np.ones(1)
        for size, n in sizes:
            factor = np.array([comb(size, j) / 2**size for j in range(min(most, size) + 1)])
            for _ in range(n):
                product = np.convolve(product, factor)
        within = np.zeros(experts + 1)
        within[: product.size] = product
        expected += 1.0 - within / ways
    return expected


def _ep_max_popular(q: FloatArray, tokens: float, ep: int) -> float:
    touched = 1.0 - np.power(1.0 - np.clip(q, 0.0, 1.0), tokens)
    rank = ep_blocks(q.size, ep)
    longest = int(np.bincount(rank).max())
    below = np.ones(longest + 1)  # probability that every rank has at most that many
    for r in range(ep):
        counts = np.ones(1)
        for p in touched[rank == r]:
            counts = np.convolve(counts, [1.0 - p, p])
        cumulative = np.ones(longest + 1)
        cumulative[: counts.size] = np.cumsum(counts)
        below *= cumulative
    return float(np.sum(1.0 - below[:-1]))


def _check_choice(experts: Numbers, topk: Numbers, tokens: Numbers) -> None:
    all_e, all_k = np.asarray(experts), np.asarray(topk)
    if not bool(np.all((all_e >= 1) & (all_k >= 0) & (all_k <= all_e))):
        raise ScenarioError(f"n_a is {topk} of {experts} experts: expected 0 to {experts}")
    if bool(np.any(np.asarray(tokens) < 0)):
        raise ScenarioError(f"tokens is {tokens}: expected 0 or more")


def _like(tokens: Numbers, value: npt.ArrayLike) -> float | FloatArray:
    """`value` as a float where `tokens` is one number, else as an array."""
    return np.asarray(value, dtype=np.float64) if isinstance(tokens, np.ndarray) else float(np.asarray(value))
