"""Which scenarios of a grid are worth a look: limits on latency and devices, and the Pareto front of speed for a user
against throughput of a device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.errors import ScenarioError, unknown
from moetrace.replay.grid.rows import measure_column
from moetrace.replay.measures import MEASURES
from moetrace.replay.outcome import UNIFORM
from moetrace.run import numbers, without_nulls
from moetrace.units import SECONDS

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)\s*(s|ms|us)?")
WHY = ("fits", "wafers", "in_context", "routing_source", "problem")
QUEUED = "queued"  # a column that replays do not have
# Columns that change what is served.
OTHER_MODEL = ("model", "n_a", "n_e", "prune_inter", "ffn", "prune_intra", "layers")
USER, DEVICE, COST = measure_column("user_speed"), "output_per_gpu_per_s", "cost_per_million_tokens"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a scenario must keep to: measures at their limits (times at most, rates at least), and a number of devices."""

    slo: Mapping[str, float] = field(default_factory=dict)
    gpus: int | None = None

    def met(self, rows: pa.Table) -> BoolArray:
        """Which rows keep to all of them, have an answer and fit their machine."""
        good = without_nulls(rows.column("problem").is_null(), False) & _has_room(rows)
        for name, limit in self.slo.items():
            values = _numbers(rows, measure_column(name))
            good &= values <= limit if MEASURES[name][0] == "s" else values >= limit
        if self.gpus is not None:
            good &= _devices(rows) <= self.gpus
        return good

    def per_device(self, rows: pa.Table) -> FloatArray:
        """Output tokens per second and device. With a budget: of as many copies as it pays for, over all its devices."""
        alone = _numbers(rows, DEVICE)
        if self.gpus is None:
            return alone
        gpus = _devices(rows)
        return np.asarray(alone * gpus * np.floor(self.gpus / gpus) / self.gpus)


def read_slo(text: str) -> dict[str, float]:
    """The limits of ``tpot=20ms,ttft=1s``; rates without a unit (``user_speed=50``). Raises ScenarioError."""
    out: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in MEASURES:
            raise ScenarioError(f"--slo {text}: {unknown('measure', name, MEASURES)}")
        found = _QUANTITY.fullmatch(value.strip())
        timed = MEASURES[name][0] == "s"
        if not found or bool(found[2]) != timed:
            expected = "a time such as 20ms or 1s" if timed else "a number of tokens per second"
            raise ScenarioError(f"--slo {text}: {name}={value!r}: expected {expected}")
        out[name] = float(found[1]) * SECONDS[found[2] or "s"]
    return out


def read_budget(text: str) -> int:
    """The devices of ``gpus=8``. Raises ScenarioError."""
    found = re.fullmatch(r"gpus=([0-9]+)", text.strip())
    if not found or int(found[1]) < 1:
        raise ScenarioError(f"--budget {text}: expected gpus=N, the devices that there are")
    return int(found[1])


def front(parts: Iterable[pa.Table], limits: Limits) -> tuple[pa.Table | None, int]:
    """(the scenarios that no other one beats in both tokens/s for a user and tokens/s of a device, how many met the limits).

    The front is in order of falling speed for a user, None if nothing met the limits. Parts are held one at a time.
    """
    best: pa.Table | None = None
    met = 0
    for rows in parts:
        good = limits.met(rows) & np.isfinite(_numbers(rows, USER))
        met += int(good.sum())
        some = rows.take(numbers(np.flatnonzero(good)))
        some = some.take(numbers(_unbeaten(_numbers(some, USER), limits.per_device(some))))
        both = some if best is None else pa.concat_tables([best, some], promote_options="permissive")
        best = both.take(numbers(_unbeaten(_numbers(both, USER), limits.per_device(both))))
    return (best if met else None), met


def cheapest(parts: Iterable[pa.Table], limits: Limits) -> pa.Table | None:
    """The scenario of those that meet the limits whose output tokens cost least, None where none of them has a price.

    The front counts devices alike, a wafer as a GPU, so that it need not be on it.
    """
    best: pa.Table | None = None
    for rows in parts:
        cost = np.where(limits.met(rows), _numbers(rows, COST), np.inf)
        cost[np.isnan(cost)] = np.inf
        if cost.size and np.isfinite(cost.min()):
            some = rows.take(numbers(np.array([cost.argmin()])))
            if best is None or _numbers(some, COST)[0] < _numbers(best, COST)[0]:
                best = some
    return best


@dataclass(frozen=True, slots=True)
class Marked:
    """How many scenarios do not fit their machine's memory (`short`), have sequences longer than their model is made for
    (`long`), have more prompts than their steps work through (`queued`), rest on uniform routing for want of better
    (`unrouted`), or cannot be, by their reason, most first."""

    short: int
    long: int
    queued: int
    unrouted: int
    reasons: Mapping[str, int]


@dataclass(slots=True)
class Share:
    """Of the scenarios with one value of a knob: how many there are, how many met the limits, and of these the most tokens per
    second of a user and of a device (None: none met them)."""

    scenarios: int = 0
    met: int = 0
    user_per_s: float | None = None
    per_device_per_s: float | None = None


def met_by(parts: Iterable[pa.Table], limits: Limits, names: Sequence[str]) -> dict[str, dict[str, Share]]:
    """What met the limits by each value of these columns that have several, in their order; parts are held one at a time."""
    found: dict[str, dict[str, Share]] = {name: {} for name in names}
    for rows in parts:
        users, devices = _numbers(rows, USER), limits.per_device(rows)
        good = limits.met(rows) & np.isfinite(users)
        for name in names:
            column = rows.column(name).cast(pa.string()).combine_chunks().dictionary_encode()
            code = without_nulls(pa.chunked_array([column.indices]), -1)
            for i, word in enumerate(column.dictionary.to_pylist()):
                share, mine = found[name].setdefault(word, Share()), code == i
                share.scenarios += int(mine.sum())
                mine &= good
                share.met += int(mine.sum())
                if mine.any():
                    share.user_per_s = max(float(users[mine].max()), share.user_per_s or 0.0)
                    share.per_device_per_s = max(float(devices[mine].max()), share.per_device_per_s or 0.0)
    return {name: shares for name, shares in found.items() if len(shares) > 1}


def marked(parts: Iterable[pa.Table]) -> Marked:
    """What is to be said of the scenarios in parts of a grid, which need the columns of WHY, and QUEUED where they have it."""
    short = long = queued = unrouted = 0
    reasons: Counter[str] = Counter()
    for rows in parts:
        problem = rows.column("problem").cast(pa.string())
        reasons.update(
            {str(p["values"]): p["counts"] for p in problem.drop_null().value_counts().to_pylist()}
        )
        can = without_nulls(problem.is_null(), False)
        short += int((can & ~_has_room(rows)).sum())
        long += int((can & ~_flag(rows, "in_context")).sum())
        if QUEUED in rows.column_names:
            queued += int(without_nulls(rows.column(QUEUED), False).sum())
        words = rows.column("routing_source").cast(pa.string()).value_counts().to_pylist()
        unrouted += sum(w["counts"] for w in words if UNIFORM in (w["values"] or ""))
    return Marked(short, long, queued, unrouted, dict(reasons.most_common()))


def _unbeaten(one: FloatArray, two: FloatArray) -> npt.NDArray[np.int64]:
    """The places of points that no other one reaches in both, falling in the first."""
    order = np.lexsort((-two, -one))
    sorted_two = two[order]
    ahead = np.concatenate([[-np.inf], np.maximum.accumulate(sorted_two)[:-1]]) if order.size else sorted_two
    return np.asarray(order[sorted_two > ahead], dtype=np.int64)


def _numbers(rows: pa.Table, name: str) -> FloatArray:
    return without_nulls(rows.column(name).cast(pa.float64()), np.nan)


def _devices(rows: pa.Table) -> FloatArray:
    """GPUs, or the wafers that the model takes."""
    wafers = _numbers(rows, "wafers")
    return np.where(np.isnan(wafers), _numbers(rows, "gpus"), wafers)


def _has_room(rows: pa.Table) -> BoolArray:
    """Which rows fit their machine; as many wafers as a model needs are one machine."""
    return _flag(rows, "fits") | np.isfinite(_numbers(rows, "wafers"))


def _flag(rows: pa.Table, name: str) -> BoolArray:
    """A yes-or-no column; not known counts as yes."""
    return without_nulls(rows.column(name).cast(pa.bool_()), True)
