"""What the busiest rank gets of a stated routing: distinct experts and token rows, for tables of a million rows.

`balanced` and `power_law:ALPHA` are the routings by which public tables of measured MoE modules were made (NVIDIA
AIConfigurator); both are simulated, since no formula holds for the rounding in them. `uniform` is k of E for each token,
independently. Each (routing, E, k, T, EP) is worked out once: kept in memory, and on disk where a file is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.errors import ScenarioError
from moetrace.files import table_facts, write_parquet
from moetrace.routing.distinct import IntArray, ep_max_distinct, uniform_distinct, uniform_spread
from moetrace.routing.drawn import power_law_counts

FloatArray = npt.NDArray[np.float64]
Ties = Literal["spread", "first"]

DRAWS = 24
_SEED = 1
_POWER_LAW = re.compile(r"power_law[:_]([0-9]*\.?[0-9]+)")
_MOST_CHOICES = 4_000_000  # of a token and an expert, up to which uniform routing is drawn token by token
_CACHE_COLUMNS = ("distinct", "distinct_spread", "rows", "rows_spread")
# name, type, meaning.
LOADS_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("routing", pa.string(), "how tokens choose: uniform, balanced or power_law:ALPHA"),
    ("experts", pa.int64(), "n_e of the layer"),
    ("topk", pa.int64(), "n_a: experts that a token chooses"),
    ("tokens", pa.int64(), "tokens that choose"),
    ("ep", pa.int64(), "ranks that hold the experts in contiguous blocks"),
    ("ties", pa.string(), "where what rounding leaves of a power law goes: spread or first"),
    ("distinct", pa.float64(), "distinct experts of the rank that has most rows, mean of the draws"),
    ("distinct_spread", pa.float64(), "their standard deviation over the draws"),
    ("rows", pa.float64(), "rows that the busiest rank multiplies, mean of the draws"),
    ("rows_spread", pa.float64(), "their standard deviation over the draws"),
)

_Key = tuple[str, int, int, int, int, str]
_known: dict[_Key, tuple[float, float, float, float]] = {}


@dataclass(frozen=True, slots=True)
class RankLoad:
    """Mean and standard deviation of the distinct experts and the token rows on the busiest rank; arrays are [rows]."""

    distinct: FloatArray
    distinct_spread: FloatArray
    rows: FloatArray
    rows_spread: FloatArray


def rank_load(
    routing: Sequence[str],
    experts: npt.ArrayLike,
    topk: npt.ArrayLike,
    tokens: npt.ArrayLike,
    ep: npt.ArrayLike = 1,
    *,
    ties: Ties = "spread",
) -> RankLoad:
    """The load of the rank with the most rows, for each row of a table.

    `routing` is ``uniform``, ``balanced`` or ``power_law:ALPHA`` (also written ``power_law_ALPHA``), [rows]; the rest are
    whole numbers, [rows] or one for all. `ties` says whom the rest of a power law reaches first among equally loaded experts:
    ``spread`` those far apart, so that ranks get equal shares (what SGLang's and vLLM's tables show), ``first`` those of the
    lowest index, all on one rank (TensorRT-LLM 1.3's). Raises ScenarioError for a routing that is not known, more choices
    than experts, or experts that the ranks do not divide.
    """
    columns = [np.asarray(c) for c in np.broadcast_arrays(experts, topk, tokens, ep)]
    names, code = np.unique(np.asarray(routing, dtype=str), return_inverse=True)
    code = np.broadcast_to(code, columns[0].shape if columns[0].ndim else code.shape)
    table = np.column_stack([code, *(np.broadcast_to(c, code.shape).astype(np.int64) for c in columns)])
    distinct_rows, place = np.unique(table, axis=0, return_inverse=True)
    found = np.array(
        [
            _load(_named(str(names[int(c)])), int(e), int(k), int(t), int(r), ties)
            for c, e, k, t, r in distinct_rows
        ]
    ).reshape(-1, 4)[place.reshape(-1)]
    return RankLoad(*(np.ascontiguousarray(column) for column in found.T))


def balanced_counts(experts: int, topk: int, tokens: int) -> FloatArray:
    """Tokens of each expert, [1, experts]: a stride of ceil(E / k) between one token's choices, so that T tokens touch
    min(E, T k) experts, spread over all ranks."""
    stride, places = balanced_places(experts, topk)
    # Tokens begin at 0, 1, 2, ... round the experts, or, where they are fewer than a stride, evenly in one.
    rounds, rest = divmod(tokens, experts) if tokens >= stride else (0, tokens)
    first = np.arange(rest) if tokens >= stride else np.arange(rest) * stride // max(tokens, 1)
    chosen = (first[:, None] + places[None]) % experts
    counts = rounds * topk + np.bincount(chosen.ravel(), minlength=experts)
    return counts[None].astype(np.float64)


def balanced_places(experts: int, topk: int) -> tuple[int, npt.NDArray[np.int64]]:
    """(the stride, the first token's choices, [topk]) of balanced routing; evenly apart where the stride meets one expert twice
    (5 of 8)."""
    stride = -(-experts // topk)
    places = np.arange(topk) * stride % experts
    return stride, places if np.unique(places).size == topk else np.arange(topk) * experts // topk


def uniform_counts(experts: int, topk: int, tokens: int, draws: int = DRAWS) -> FloatArray:
    """Tokens of each expert, [draws, experts], of k experts drawn for each token; many tokens as independent binomials."""
    rng = np.random.default_rng(_SEED)
    if tokens * experts * draws > _MOST_CHOICES:
        return rng.binomial(tokens, topk / experts, (draws, experts)).astype(np.float64)
    keys = rng.random((draws, tokens, experts))
    chosen = (
        np.argpartition(keys, topk - 1, axis=2)[:, :, :topk] if topk < experts else np.argsort(keys, axis=2)
    )
    return np.array([np.bincount(one.ravel(), minlength=experts) for one in chosen], dtype=np.float64)


def padded_rows(rows: FloatArray, distinct: FloatArray, tile: FloatArray | float) -> FloatArray:
    """Rows that a grouped GEMM multiplies when each touched expert's are padded to whole tiles.

    With r = rows / distinct rows on a touched expert, geometrically distributed (at least 1), an expert has
    ``1 / (1 - (1 - 1/r)^tile)`` tiles. Never below `rows`; exact for one row each; power laws lie within some per cent.
    """
    each = np.maximum(np.divide(rows, distinct, out=np.ones_like(rows), where=distinct > 0), 1.0)
    tiles = distinct / -np.expm1(tile * np.log1p(-np.minimum(1.0 / each, 1 - 1e-12)))
    return np.maximum(tiles * tile, rows)


def save_loads(path: Path) -> None:
    """Writes every load worked out so far as Parquet, for `read_loads` of a later process."""
    keys = list(_known)
    names = ("routing", "experts", "topk", "tokens", "ep", "ties")
    columns: dict[str, list[object]] = {name: [key[i] for key in keys] for i, name in enumerate(names)}
    columns |= {name: [_known[key][i] for key in keys] for i, name in enumerate(_CACHE_COLUMNS)}
    schema = pa.schema([(name, kind) for name, kind, _ in LOADS_COLUMNS])
    write_parquet(pa.table(columns, schema=schema), path, table_facts("loads", 1))


def read_loads(path: Path) -> int:
    """Takes over the loads of a file of `save_loads`; their number. Raises ScenarioError if it is none."""
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
        _known.update(
            {
                (r["routing"], r["experts"], r["topk"], r["tokens"], r["ep"], r["ties"]): (
                    r["distinct"], r["distinct_spread"], r["rows"], r["rows_spread"],
                )
                for r in rows
            }
        )  # fmt: skip
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise ScenarioError(
            f"{path}: no table of routing loads ({type(error).__name__}): delete it"
        ) from error
    return len(rows)


def _named(text: str) -> str:
    """One spelling of each routing."""
    if text in ("uniform", "balanced"):
        return text
    found = _POWER_LAW.fullmatch(text)
    if not found or not 0 < float(found[1]) <= 10:
        raise ScenarioError(
            f"routing {text!r}: expected uniform, balanced or power_law:ALPHA (ALPHA above 0)"
        )
    return f"power_law:{float(found[1]):g}"


def _load(
    routing: str, experts: int, topk: int, tokens: int, ep: int, ties: Ties
) -> tuple[float, float, float, float]:
    key = (routing, experts, topk, tokens, ep, ties)
    if key not in _known:
        _check(experts, topk, tokens, ep)
        _known[key] = _worked_out(routing, experts, topk, tokens, ep, ties)
    return _known[key]


def _worked_out(
    routing: str, experts: int, topk: int, tokens: int, ep: int, ties: Ties
) -> tuple[float, float, float, float]:
    if tokens == 0:
        return 0.0, 0.0, 0.0, 0.0
    if routing == "uniform" and ep == 1:
        return (
            uniform_distinct(experts, topk, tokens),
            uniform_spread(experts, topk, tokens),
            tokens * topk,
            0.0,
        )
    if routing == "uniform":
        counts = uniform_counts(experts, topk, tokens)
    elif routing == "balanced":
        counts = balanced_counts(experts, topk, tokens)
    else:
        random, alpha = np.random.default_rng(_SEED), float(routing.partition(":")[2])
        order = _far_apart(experts) if ties == "spread" else None
        draws = [power_law_counts(experts, topk, tokens, alpha, random, order) for _ in range(DRAWS)]
        counts = np.array(draws, dtype=np.float64)
    ranks = counts.reshape(len(counts), ep, experts // ep)
    busiest = ranks[np.arange(len(ranks)), ranks.sum(2).argmax(1)]
    distinct, rows = (busiest > 0).sum(1), busiest.sum(1)
    mean = ep_max_distinct(experts, topk, tokens, ep) if routing == "uniform" else float(distinct.mean())
    return mean, float(distinct.std()), float(rows.mean()), float(rows.std())


def _check(experts: int, topk: int, tokens: int, ep: int) -> None:
    if not (1 <= topk <= experts and tokens >= 0):
        raise ScenarioError(
            f"{topk} of {experts} experts for {tokens} tokens: expected 1 to {experts}, and 0 tokens or more"
        )
    if not (1 <= ep <= experts and experts % ep == 0):
        raise ScenarioError(f"ep is {ep}: expected a divisor of {experts} experts")


def _far_apart(experts: int) -> IntArray:
    """Experts in the order of their index with its bits reversed: 0, E/2, E/4, 3E/4, ... (van der Corput)."""
    bits = max(1, (experts - 1).bit_length())
    reversed_bits = [int(format(e, f"0{bits}b")[::-1], 2) for e in range(experts)]
    return np.argsort(reversed_bits, kind="stable")
