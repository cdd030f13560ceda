"""Routing: which experts the tokens went to, and how many distinct ones a layer touches.

Two halves. Formulas: the distinct experts expected of uniform or of popular routing, and on the worst of
several ranks. `Routing`: the recorded counts by step, layer, expert and rank of choice, which answer the same
for what really happened. Not supported: which token chose what, and pairs of experts; only counts are kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.errors import OutputError, RunError, ScenarioError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_Number = TypeVar("_Number", bound=np.generic)

ROUTING_VERSION = 1
# name, type, meaning. The order is the order on disk.
ROUTING_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("step", pa.int32(), "index into the run's steps"),
    ("layer", pa.int32(), "decoder layer from 0"),
    ("expert", pa.int32(), "expert from 0, over all ranks"),
    (
        "rank_of_choice",
        pa.int16(),
        "1: the expert with the token's highest router weight, 2: the next, up to n_a",
    ),
    ("count", pa.int64(), "tokens that chose this expert at this rank of choice"),
)
ROUTING_SCHEMA = pa.schema(
    [pa.field(n, t, nullable=False, metadata={"doc": d}) for n, t, d in ROUTING_COLUMNS]
)
_NAMES = tuple(name for name, _, _ in ROUTING_COLUMNS)
_MAX_EP_EXPERTS = 1000  # the exact law below works in float64 down to 2**-experts


@overload
def uniform_distinct(experts: float, topk: float, tokens: float) -> float: ...
@overload
def uniform_distinct(experts: float, topk: float, tokens: npt.NDArray[np.generic]) -> FloatArray: ...
def uniform_distinct(
    experts: float, topk: float, tokens: float | npt.NDArray[np.generic]
) -> float | FloatArray:
    """Distinct experts expected of uniform, independent routing, k of E for each token: E(1-(1-k/E)^T).

    `tokens` may be an array, the answer then is one of its shape. Real text stays below: 48.8 against 82.4
    for Qwen3-30B-A3B at batch 16 (arXiv 2511.02237). Raises ScenarioError unless 0 <= topk <= experts and
    tokens >= 0.
    """
    _check_choice(experts, topk, tokens)
    return _like(tokens, experts * (1.0 - np.power(1.0 - topk / experts, tokens)))


@overload
def uniform_spread(experts: float, topk: float, tokens: float) -> float: ...
@overload
def uniform_spread(experts: float, topk: float, tokens: npt.NDArray[np.generic]) -> FloatArray: ...
def uniform_spread(
    experts: float, topk: float, tokens: float | npt.NDArray[np.generic]
) -> float | FloatArray:
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
def popularity_distinct(q: FloatArray, tokens: npt.NDArray[np.generic]) -> FloatArray: ...
def popularity_distinct(q: FloatArray, tokens: float | npt.NDArray[np.generic]) -> float | FloatArray:
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
    return float(_touched(experts, topk, int(tokens)) @ _ep_max_given(experts, ep))


def ep_blocks(experts: int, ep: int) -> IntArray:
    """Rank that holds each expert, [experts]: contiguous blocks, the first ``experts % ep`` one larger."""
    return np.repeat(np.arange(ep), [experts // ep + (r < experts % ep) for r in range(ep)])


@lru_cache(maxsize=1024)
def _touched(experts: int, topk: int, tokens: int) -> FloatArray:
    """Probability of each number of distinct experts, [experts + 1]: a token adds hypergeometrically many."""
    total = comb(experts, topk)
    step = np.zeros((experts + 1, experts + 1))
    for seen in range(experts + 1):
        for new in range(max(0, topk - seen), min(topk, experts - seen) + 1):
            step[seen, seen + new] = comb(experts - seen, new) * comb(seen, topk - new) / total
    return np.asarray(np.linalg.matrix_power(step, tokens)[0])


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


def _check_choice(experts: float, topk: float, tokens: float | npt.NDArray[np.generic]) -> None:
    if not (experts >= 1 and 0 <= topk <= experts):
        raise ScenarioError(f"n_a is {topk} of {experts} experts: expected 0 to {experts}")
    if bool(np.any(np.asarray(tokens) < 0)):
        raise ScenarioError(f"tokens is {tokens}: expected 0 or more")


def _like(tokens: float | npt.NDArray[np.generic], value: npt.ArrayLike) -> float | FloatArray:
    """`value` as a float where `tokens` is one number, else as an array."""
    return np.asarray(value, dtype=np.float64) if isinstance(tokens, np.ndarray) else float(np.asarray(value))


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Recorded routing: `count` tokens of `step` at `layer` had `expert` as their `rank_of_choice`-th choice.

    Columns are numpy arrays of one length, sorted by step, layer, expert, rank; `experts` is the global n_e.
    Asking for fewer choices than were recorded (`n_a`) counts each token's first n_a experts only. That is
    exact for the hidden states recorded: it assumes that they would not change, though in layers after the
    first they would, a little.
    """

    experts: int
    step: IntArray
    layer: IntArray
    expert: IntArray
    rank_of_choice: IntArray
    count: IntArray
    topk: int = field(init=False)

    def __post_init__(self) -> None:
        columns = [np.asarray(getattr(self, name), dtype=np.int64) for name in _NAMES]
        if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
            raise RunError("routing: its columns are not of one length")
        order = np.lexsort(columns[3::-1])
        for name, column in zip(_NAMES, columns, strict=True):
            column = column[order]
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        object.__setattr__(self, "topk", int(self.rank_of_choice.max(initial=0)))
        if self.experts < 1:
            raise RunError(f"routing: experts is {self.experts}, expected at least 1")
        for name, low, high in (("expert", 0, self.experts - 1), ("rank_of_choice", 1, self.experts)):
            column = getattr(self, name)
            if column.size and not (low <= column.min() and column.max() <= high):
                raise RunError(
                    f"routing: {name} reaches {column.min()} to {column.max()}, expected {low} to {high}"
                )
        if self.count.size and min(self.count.min() - 1, self.step.min(), self.layer.min()) < 0:
            raise RunError("routing: a count below 1, or a negative step or layer")

    def __len__(self) -> int:
        return int(self.count.size)

    def equals(self, other: Routing) -> bool:
        """Whether both hold the same counts."""
        same = (np.array_equal(getattr(self, name), getattr(other, name)) for name in _NAMES)
        return self.experts == other.experts and all(same)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with recorded routing, ascending."""
        return tuple(np.unique(self.step).tolist())

    @property
    def layers(self) -> tuple[int, ...]:
        """MoE layers with recorded routing, ascending."""
        return tuple(np.unique(self.layer).tolist())

    def token_counts(self) -> dict[tuple[int, int], int]:
        """Tokens by (step, layer)."""
        keys, cell = self._cells()
        first = self.rank_of_choice == 1
        return _by_cell(keys, np.bincount(cell[first], self.count[first], len(keys)).astype(np.int64))

    def tokens(self, step: int, layer: int) -> int:
        """Tokens of this step at this layer. Raises RunError if nothing was recorded there."""
        here = (self.step == step) & (self.layer == layer)
        if not here.any():
            raise RunError(f"no routing was recorded for step {step}, layer {layer}{self._has()}")
        return int(self.count[here & (self.rank_of_choice == 1)].sum())

    def distinct(self, n_a: int | None = None, ep: int = 1) -> dict[tuple[int, int], int]:
        """Distinct experts by (step, layer) among each token's first `n_a` choices (default: all recorded).

        With `ep`, those on the rank that has the most, experts lying in contiguous blocks (`ep_blocks`).
        Raises RunError if fewer choices were recorded, ScenarioError on a nonsensical ep.
        """
        if not 1 <= ep <= self.experts:
            raise ScenarioError(f"ep is {ep}: expected 1 to {self.experts}, one expert at least on each rank")
        keys, cell = self._cells()
        chosen = self._first(n_a)
        touched = np.unique(cell[chosen] * self.experts + self.expert[chosen])
        on_rank = (touched // self.experts) * ep + ep_blocks(self.experts, ep)[touched % self.experts]
        return _by_cell(keys, np.bincount(on_rank, minlength=len(keys) * ep).reshape(-1, ep).max(axis=1))

    def popularity(
        self, layer: int, n_a: int | None = None, steps: Sequence[int] | None = None
    ) -> FloatArray:
        """Share of tokens that have each expert among their first `n_a` choices, [experts]; it sums to n_a.

        Over all recorded steps, or those given. Raises RunError if the layer, a step or that many choices are
        missing.
        """
        here = self.layer == layer
        if steps is not None:
            if absent := sorted(set(steps) - set(self.steps)):
                raise RunError(f"no routing was recorded for step {absent[0]}{self._has()}")
            here &= np.isin(self.step, np.asarray(steps))
        if not here.any():
            raise RunError(f"no routing was recorded for layer {layer}{self._has()}")
        tokens = self.count[here & (self.rank_of_choice == 1)].sum()
        chosen = here & self._first(n_a)
        hits = np.bincount(self.expert[chosen], self.count[chosen], self.experts)
        return np.asarray(hits / tokens, dtype=np.float64)

    def load_skew(self, n_a: int | None = None) -> dict[tuple[int, int], float]:
        """Load skew by (step, layer): tokens of the busiest expert over the mean of all (1: balanced)."""
        keys, cell = self._cells()
        chosen = self._first(n_a)
        size = len(keys) * self.experts
        hits = np.bincount(cell[chosen] * self.experts + self.expert[chosen], self.count[chosen], size)
        hits = hits.reshape(-1, self.experts)
        return _by_cell(keys, hits.max(axis=1) / hits.mean(axis=1)) if len(keys) else {}

    def table(self) -> pa.Table:
        """The counts as an Arrow table of ROUTING_SCHEMA, with version and experts in its metadata."""
        columns = [pa.array(getattr(self, name), type=kind) for name, kind, _ in ROUTING_COLUMNS]
        stamp = {
            "moetrace.routing.version": str(ROUTING_VERSION),
            "moetrace.routing.experts": str(self.experts),
        }
        return pa.Table.from_arrays(columns, schema=ROUTING_SCHEMA.with_metadata(stamp))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `routing.parquet`, beside and then renamed into place. Raises OutputError if that fails."""
        target = Path(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            pq.write_table(self.table(), beside, compression="zstd")
            beside.replace(target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written ({error.strerror or error})") from None
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Routing:
        """The routing that `save` wrote. Raises RunError: no such file, not Parquet, another schema."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: not a routing table ({str(error).splitlines()[0]})") from None
        stamp = table.schema.metadata or {}
        version, experts = (
            stamp.get(f"moetrace.routing.{key}".encode(), b"") for key in ("version", "experts")
        )
        if not version.isdigit() or not experts.isdigit() or any(n not in table.column_names for n in _NAMES):
            raise RunError(
                f"{path}: not a routing table (expected the columns {', '.join(_NAMES)} and a version)"
            )
        if int(version) > ROUTING_VERSION:
            raise RunError(
                f"{path}: routing version {int(version)}, this moetrace reads up to {ROUTING_VERSION}"
            )
        if any(table.column(n).null_count or not pa.types.is_integer(table.column(n).type) for n in _NAMES):
            raise RunError(f"{path}: a column of the routing table has nulls or is not of whole numbers")
        try:
            return cls(int(experts), *(table.column(name).to_numpy().astype(np.int64) for name in _NAMES))
        except RunError as error:
            raise RunError(f"{path}: {error}") from None

    def _cells(self) -> tuple[list[tuple[int, int]], IntArray]:
        """The (step, layer) pairs in order, and for each row the index of its pair."""
        new = np.r_[True, (np.diff(self.step) != 0) | (np.diff(self.layer) != 0)][: len(self)]
        pairs = zip(self.step[new].tolist(), self.layer[new].tolist(), strict=True)
        return list(pairs), np.cumsum(new) - 1

    def _first(self, n_a: int | None) -> npt.NDArray[np.bool_]:
        """Rows that count at this n_a. Raises RunError unless every layer recorded that many choices."""
        if n_a is None:
            return np.ones(len(self), dtype=bool)
        keys, cell = self._cells()
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        least = int(np.maximum.reduceat(self.rank_of_choice, starts).min()) if keys else 0
        if not 1 <= n_a <= least:
            raise RunError(f"n_a is {n_a}: routing was recorded for each token's first {least} choices")
        return self.rank_of_choice <= n_a

    def _has(self) -> str:
        return f" (recorded: steps {_span(self.steps)}, layers {_span(self.layers)})"


def _by_cell(keys: list[tuple[int, int]], values: npt.NDArray[_Number]) -> dict[tuple[int, int], Any]:
    return dict(zip(keys, values.tolist(), strict=True))


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"


class RoutingBuilder:
    """Gathers routing while a model runs; adding costs one bincount, so every layer may call it."""

    def __init__(self, experts: int) -> None:
        if experts < 1:
            raise RunError(f"routing: experts is {experts}, expected at least 1")
        self.experts = experts
        self._hits: dict[tuple[int, int], IntArray] = {}

    def add(self, step: int, layer: int, topk_ids: npt.ArrayLike) -> None:
        """Count the experts of shape [tokens, k], columns in order of choice; a step may be added in parts.

        Raises RunError on another shape, an expert out of range, a token that has one twice, or another k
        than before.
        """
        ids = np.asarray(topk_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise RunError(
                f"routing: expected whole numbers of shape [tokens, k], not {ids.dtype} {list(ids.shape)}"
            )
        k = ids.shape[1]
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.experts:
            reach = f"experts {ids.min()} to {ids.max()}, expected 0 to {self.experts - 1}"
            raise RunError(f"routing: layer {layer} has {reach}")
        if bool((np.diff(np.sort(ids, axis=1), axis=1) == 0).any()):
            raise RunError(f"routing: a token of step {step}, layer {layer} has the same expert twice")
        flat = (np.arange(k) * self.experts + ids.astype(np.int64)).ravel()
        hits = np.bincount(flat, minlength=k * self.experts).reshape(k, self.experts)
        before = self._hits.get((step, layer))
        if before is not None and before.shape != hits.shape:
            raise RunError(
                f"routing: step {step}, layer {layer} was added with k {before.shape[0]}, now with {k}"
            )
        self._hits[step, layer] = hits if before is None else before + hits

    def build(self) -> Routing:
        """All that was added, as a Routing (empty if nothing was)."""
        parts = []
        for (step, layer), hits in self._hits.items():
            choice, expert = np.nonzero(hits)
            where = np.broadcast_to([[step], [layer]], (2, expert.size))
            parts.append(np.vstack([where, expert, choice + 1, hits[choice, expert]]))
        rows = np.hstack(parts) if parts else np.zeros((5, 0), dtype=np.int64)
        return Routing(self.experts, *rows)
