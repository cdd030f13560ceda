"""Recorded routing: counts by step, layer, expert and rank of choice; gathered, asked, and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.errors import OutputError, RunError, ScenarioError, plainly
from moetrace.files import array_of, read_parquet, table_facts, values_of
from moetrace.routing.distinct import FloatArray, IntArray, ep_blocks
from moetrace.routing.tokens import TOKENS_FILE, TokenRouting

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


@dataclass(frozen=True, slots=True, eq=False)
class OnRanks:
    """What falls on each rank of experts, [ep]: `distinct` experts, and `rows`, the choices of the `tokens` that chose."""

    tokens: int
    distinct: IntArray
    rows: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Recorded routing: `count` tokens of `step` at `layer` had `expert` as their `rank_of_choice`-th choice.

    Columns are numpy arrays of one length, sorted by step, layer, expert, rank; `experts` is the global n_e,
    `chosen` the experts that each token got (0: as many as were recorded): beyond it lie the router's next choices,
    up to `topk`. Asking for another number of choices (`n_a`) counts each token's first n_a experts. That is
    exact for the hidden states recorded: it assumes that they would not change, though in layers after the
    first they would (`recut_spread`). Where `ordered` is false the source told loads alone: its ranks mean nothing,
    and fewer choices cannot be counted. `by_token`: the same choices token by token, where they were kept.
    """

    experts: int
    step: IntArray
    layer: IntArray
    expert: IntArray
    rank_of_choice: IntArray
    count: IntArray
    chosen: int = 0
    ordered: bool = True
    by_token: TokenRouting | None = None
    topk: int = field(init=False)

    def __repr__(self) -> str:
        where = f"{len(self.steps)} steps, {len(self.layers)} layers"
        return f"<Routing of {self.experts} experts, {self.topk} a token: {where}>"

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
        if not 0 <= self.chosen <= self.experts:
            raise RunError(
                f"routing: {self.chosen} experts chosen by each token, expected 1 to {self.experts}"
            )
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
        return self.experts == other.experts and self.ordered == other.ordered and all(same)

    def renumbered(self, steps: Mapping[int, int]) -> Routing:
        """The routing of some steps, by their number here, under other numbers."""
        kept = np.isin(self.step, np.fromiter(steps, dtype=np.int64, count=len(steps)))
        new = np.array([steps[s] for s in self.step[kept].tolist()], dtype=np.int64)
        rest = [getattr(self, name)[kept] for name in _NAMES[1:]]
        tokens = None if self.by_token is None else self.by_token.renumbered(steps)
        return Routing(
            self.experts, new, rest[0], rest[1], rest[2], rest[3], self.chosen, self.ordered, tokens
        )

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
        """Distinct experts by (step, layer) among each token's first `n_a` choices (default: the chosen).

        With `ep`, those on the rank that has the most, experts lying in contiguous blocks (`ep_blocks`).
        Raises RunError if fewer choices were recorded, ScenarioError on a nonsensical ep.
        """
        return {key: int(found.distinct.max()) for key, found in self.by_rank(ep, n_a).items()}

    def by_rank(self, ep: int, n_a: int | None = None) -> dict[tuple[int, int], OnRanks]:
        """What falls on each of `ep` ranks by (step, layer) among each token's first `n_a` choices (default: the chosen).

        Experts lie in contiguous blocks (`ep_blocks`). Raises RunError and ScenarioError as `distinct` does.
        """
        if not 1 <= ep <= self.experts:
            raise ScenarioError(f"ep is {ep}: expected 1 to {self.experts}, one expert at least on each rank")
        keys, cell = self._cells()
        chosen, owner, size = self._first(n_a), ep_blocks(self.experts, ep), len(keys) * ep
        place = cell[chosen] * ep + owner[self.expert[chosen]]
        rows = np.bincount(place, self.count[chosen], size).astype(np.int64).reshape(-1, ep)
        touched = np.unique(cell[chosen] * self.experts + self.expert[chosen])
        on_rank = (touched // self.experts) * ep + owner[touched % self.experts]
        distinct = np.bincount(on_rank, minlength=size).reshape(-1, ep)
        tokens = self.token_counts()
        return {key: OnRanks(tokens[key], distinct[i], rows[i]) for i, key in enumerate(keys)}

    def recut_spread(self, n_a: int) -> dict[tuple[int, int], float]:
        """How far `distinct(n_a)` may be off by (step, layer), as a standard deviation; 0.0 where it is exact.

        Exact are the choices recorded as they were made, and the first recorded layer at any n_a, whose hidden states no
        expert has touched. In later layers the states would differ; the spread is that of choices drawn anew
        and independently from the layer's own popularity at this n_a, the most that such a difference could
        stir up. Raises RunError if fewer choices were recorded.
        """
        keys = self._cells()[0]
        if n_a == (self.chosen or self.topk) or not keys:
            return dict.fromkeys(keys, 0.0)
        tokens, first = self.token_counts(), self.layers[0]
        q = {layer: self.popularity(layer, n_a) for layer in self.layers}
        spread = {}
        for step, layer in keys:
            touched = 1.0 - np.power(1.0 - np.minimum(q[layer], 1.0), tokens[step, layer])
            redrawn = float(np.sqrt(np.sum(touched * (1.0 - touched))))
            spread[step, layer] = 0.0 if layer == first else redrawn
        return spread

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
        columns = [array_of(getattr(self, name), kind) for name, kind, _ in ROUTING_COLUMNS]
        stamp = {
            **table_facts("routing", ROUTING_VERSION),
            "moetrace.routing.version": str(ROUTING_VERSION),
            "moetrace.routing.experts": str(self.experts),
            "moetrace.routing.chosen": str(self.chosen),
            "moetrace.routing.ordered": str(int(self.ordered)),
        }
        return pa.Table.from_arrays(columns, schema=ROUTING_SCHEMA.with_metadata(stamp))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `routing.parquet`, beside and then renamed into place, and what each token chose where that was kept.

        Raises OutputError if that fails.
        """
        target = Path(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            pq.write_table(self.table(), beside, compression="zstd")
            beside.replace(target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written ({error.strerror or error})") from None
        finally:
            beside.unlink(missing_ok=True)
        if self.by_token is not None:
            self.by_token.save(target.with_name(TOKENS_FILE))

    @classmethod
    def load(cls, file: str | os.PathLike[str] | IO[bytes], tokens: IO[bytes] | None = None) -> Routing:
        """The routing that `save` wrote, with what each token chose if that lies beside it, or is given as `tokens`.

        Raises RunError: no such file, not Parquet, another schema.
        """
        path = file if isinstance(file, str | os.PathLike) else "routing.parquet"
        try:
            table = read_parquet(file)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: cannot be read as a routing table ({plainly(error)})") from None
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
            step, layer, expert, rank, count = (values_of(table.column(n)).astype(np.int64) for n in _NAMES)
            chosen = stamp.get(b"moetrace.routing.chosen", b"0")
            ordered = stamp.get(b"moetrace.routing.ordered") != b"0"
            first = int(chosen) if chosen.isdigit() else 0
            told = _tokens_beside(path) if path is file else TokenRouting.load(tokens) if tokens else None
            return cls(int(experts), step, layer, expert, rank, count, first, ordered, told)
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
            return self.rank_of_choice <= (self.chosen or self.topk)
        keys, cell = self._cells()
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        least = int(np.maximum.reduceat(self.rank_of_choice, starts).min()) if keys else 0
        if not 1 <= n_a <= least:
            raise RunError(f"n_a is {n_a}: routing was recorded for each token's first {least} choices")
        if not self.ordered and n_a != self.topk:
            raise RunError(f"n_a is {n_a}: this routing tells loads, not the order of choice")
        return self.rank_of_choice <= n_a

    def _has(self) -> str:
        return f" (recorded: steps {_span(self.steps)}, layers {_span(self.layers)})"


def _tokens_beside(path: str | os.PathLike[str]) -> TokenRouting | None:
    beside = Path(path).with_name(TOKENS_FILE)
    return TokenRouting.load(beside) if beside.is_file() else None


def _by_cell(keys: list[tuple[int, int]], values: npt.NDArray[_Number]) -> dict[tuple[int, int], Any]:
    return dict(zip(keys, values.tolist(), strict=True))


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
