"""When each rank arrives at each collective: two ranks in memory at a time, the others in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moetrace.parse.nesting import IntArray

SUMS = ("collectives", "wait_ns", "transfer_ns", "last", "delayed_ns")
_STEP, _START, _END, _GROUP = range(4)


@dataclass(slots=True)
class Compared:
    """What came of it. Per rank: offset of its clock in ns and the median deviation from it; sums per step."""

    offset: dict[int, int] = field(default_factory=dict)
    error: dict[int, int] = field(default_factory=dict)
    sums: dict[int, dict[str, IntArray]] = field(default_factory=dict)
    spreads: list[IntArray] = field(default_factory=list)  # latest less earliest arrival, ns
    unmatched: dict[int, str] = field(default_factory=dict)
    in_groups: bool = False  # whether some groups are smaller than the world

    def skew(self) -> dict[str, float] | None:
        """Median, 95th percentile and maximum of the time between the first and the last arrival, in seconds."""
        if not self.spreads:
            return None
        spread = np.concatenate(self.spreads) / 1e9
        return {
            "median_s": float(np.median(spread)),
            "p95_s": float(np.percentile(spread, 95)),
            "max_s": float(spread.max()),
        }

    def notes(self, world: int, ranks: Sequence[int]) -> list[str]:
        """What to know of the comparison."""
        said = []
        if len(ranks) < world:
            said.append(
                f"{len(ranks)} of {world} ranks are here: waiting counts up to the last of these, so it is at least that"
            )
        if self.in_groups:
            said.append(
                "collectives of n ranks, fewer than all, are taken as of neighbours: 0 to n - 1, n to 2 n - 1, ..."
            )
        if not self.offset:
            said.append(
                "no collective is on more than one of these ranks: clocks are not aligned, nothing is compared"
            )
        elif max(self.error.values(), default=0) > 0:
            said.append(
                "clocks are aligned on the ends of collectives, which differ by up to "
                f"{max(self.error.values()) / 1e3:,.1f} us (median of a rank): shorter waits are not to be trusted"
            )
        said += [f"rank {rank} is not compared: {why}" for rank, why in sorted(self.unmatched.items())[:10]]
        return said


class Arrivals:
    """Takes the collectives of each rank, then compares them with those of the others in their groups."""

    def __init__(self, folder: Path, world: int) -> None:
        self._folder, self._world = folder, world
        self._order: dict[int, list[bytes]] = {}
        self._steps: dict[int, int] = {}

    def add(self, rank: int, talk: IntArray, order: list[bytes], steps: int) -> None:
        """A rank's collectives (rows: step, start, end, size of the group) and the digest of each step's."""
        np.save(self._folder / f"{rank}.npy", talk, allow_pickle=False)
        self._order[rank], self._steps[rank] = order, steps

    def compared(self) -> Compared:
        """The comparison, group by group: first the clocks by the largest groups, then who waits."""
        found = Compared()
        sizes = sorted(
            {int(g) for r in self._order for g in np.unique(self._load(r)[_GROUP])} - {0, 1}, reverse=True
        )
        sizes = [g for g in sizes if g <= self._world]
        if sizes:
            for block in self._blocks(sizes[0]):
                self._clocks(block, sizes[0], found)
        for size in sizes:
            for block in self._blocks(size):
                self._waits([r for r in block if r in found.offset], size, found)
        found.in_groups = any(g < self._world for g in sizes)
        return found

    def _load(self, rank: int) -> IntArray:
        talk: IntArray = np.load(self._folder / f"{rank}.npy", allow_pickle=False)
        return talk

    def _blocks(self, size: int) -> Iterator[list[int]]:
        """The ranks of each group of neighbours of a size, where more than one of them is here."""
        groups: dict[int, list[int]] = {}
        for rank in sorted(self._order):
            groups.setdefault(rank // size, []).append(rank)
        yield from (ranks for ranks in groups.values() if len(ranks) > 1)

    def _shared(self, first: int, rank: int) -> tuple[IntArray, IntArray]:
        """(the steps whose collectives are the same on both ranks, by number; all of the rank's collectives)."""
        pairs = zip(self._order[first], self._order[rank], strict=False)
        return np.array([i for i, (a, b) in enumerate(pairs) if a == b and a], dtype=np.int64), self._load(
            rank
        )

    def _clocks(self, block: Sequence[int], size: int, found: Compared) -> None:
        first, base = block[0], self._load(block[0])
        for rank in block:
            if self._steps[rank] != self._steps[first]:
                found.unmatched[rank] = (
                    f"it has {self._steps[rank]} steps, rank {first} has {self._steps[first]}"
                )
                continue
            steps, talk = self._shared(first, rank)
            mine, its = (t[_END][np.isin(t[_STEP], steps) & (t[_GROUP] == size)] for t in (talk, base))
            if not len(mine):
                found.unmatched[rank] = f"its collectives are in no step those of rank {first}"
                continue
            late = mine - its
            found.offset[rank] = int(np.median(late))
            found.error[rank] = int(np.median(np.abs(late - found.offset[rank])))
        if not any(rank in found.offset for rank in block[1:]):
            del found.offset[first], found.error[first]

    def _waits(self, block: Sequence[int], size: int, found: Compared) -> None:
        """Adds what each rank of a group waits in the steps that all of them share."""
        if len(block) < 2:
            return
        shared = [set(self._shared(block[0], rank)[0].tolist()) for rank in block]
        steps = np.array(sorted(set.intersection(*shared)), dtype=np.int64)
        latest = earliest = who = np.zeros(0, dtype=np.int64)
        for rank in block:
            start = self._of(rank, steps, size)[_START] - found.offset[rank]
            if rank == block[0]:
                latest, earliest, who = start.copy(), start.copy(), np.full(len(start), rank)
                continue
            who[start > latest] = rank
            latest, earliest = np.maximum(latest, start), np.minimum(earliest, start)
        if not len(latest):
            return
        found.spreads.append(latest - earliest)
        waited = np.zeros(len(latest), dtype=np.int64)  # by all ranks of the group together
        step = latest
        for rank in block:
            talk = self._of(rank, steps, size)
            step, dur = talk[_STEP], talk[_END] - talk[_START]
            wait = np.clip(latest - (talk[_START] - found.offset[rank]), 0, dur)
            waited += wait
            self._add(
                found, rank, step, {"wait_ns": wait, "transfer_ns": dur - wait, "collectives": wait * 0 + 1}
            )
        for rank in block:
            mine = who == rank
            self._add(
                found,
                rank,
                step,
                {"last": mine * 1, "delayed_ns": np.where(mine, waited, 0) // (len(block) - 1)},
            )

    def _add(self, found: Compared, rank: int, step: IntArray, values: Mapping[str, IntArray]) -> None:
        """Adds one value per collective to the rank's sums per step."""
        count = self._steps[rank]
        sums = found.sums.setdefault(rank, {name: np.zeros(count, np.int64) for name in SUMS})
        for name, value in values.items():
            sums[name] += np.bincount(step, weights=value, minlength=count).astype(np.int64)

    def _of(self, rank: int, steps: IntArray, size: int) -> IntArray:
        talk = self._load(rank)
        chosen: IntArray = talk[:, np.isin(talk[_STEP], steps) & (talk[_GROUP] == size)]
        return chosen
