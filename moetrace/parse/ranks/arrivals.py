"""When each rank arrives at each collective: two ranks in memory at a time, the others in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.parse.nesting import IntArray
from moetrace.parse.ranks.clocks import Clock, fitted, linked
from moetrace.parse.ranks.gathered import END, RANKS, START, STEP, STRIDE, TEXT, Gathered, order_of
from moetrace.parse.ranks.groups import Kind, groups, largest_first, settled

SUMS = ("collectives", "wait_ns", "transfer_ns", "last", "delayed_ns")
_SEEN_NS = 50  # a deviation that is worth a word
_NEIGHBOURS = (
    "collectives of n ranks, fewer than all, are taken as of neighbours: 0 to n - 1, n to 2 n - 1, ..."
)


@dataclass(slots=True)
class Talk:
    """What one collective came to, over all groups and steps: ns summed over its ranks, and of each execution's spread."""

    ranks: int
    stride: int
    count: int = 0  # executions
    on_ranks: int = 0  # executions times ranks that were seen
    wait_ns: int = 0
    transfer_ns: int = 0
    spread_ns: int = 0


@dataclass(slots=True)
class Compared:
    """What came of it. `clocks` of ranks against that of their root; sums per step; what each collective took."""

    clocks: dict[int, Clock] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)
    sums: dict[int, dict[str, IntArray]] = field(default_factory=dict)
    spreads: list[IntArray] = field(default_factory=list)  # latest less earliest arrival, ns
    unmatched: dict[int, str] = field(default_factory=dict)
    talks: dict[str, Talk] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)  # collectives taken as of neighbours
    one_clock: bool = False  # the ranks share a clock

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
        if self.assumed:
            said.append(f"{_NEIGHBOURS} ({', '.join(self.assumed[:3])}{', ...' if self.assumed[3:] else ''})")
        error = max((c.error_ns for c in self.clocks.values()), default=0.0)
        if self.one_clock:
            said.append("the ranks lie in one file and share its clock: their times are taken as they are")
        if not self.clocks:
            said.append(
                "no collective is on more than one of these ranks: clocks are not aligned, nothing is compared"
            )
        elif self.one_clock and not self.talks:
            said.append("no collective is on more than one of these ranks: who waits for whom is not told")
        elif self.one_clock and error >= _SEEN_NS:
            said.append(
                f"by that clock collectives end up to {error / 1e3:,.1f} us apart (median of a rank): shorter waits are not to "
                "be trusted"
            )
        elif error >= _SEEN_NS:
            said.append(
                f"clocks are aligned on the ends of collectives, which differ by up to {error / 1e3:,.1f} us (median of a "
                "rank): shorter waits are not to be trusted"
            )
        if len(roots := sorted(set(self.roots.values()))) > 1:
            said.append(
                f"ranks are in {len(roots)} parts that share no collective: clocks agree within each, those of "
                f"{', '.join(f'rank {r}' for r in roots[:5])} are not aligned with each other"
            )
        said += [f"rank {rank} is not compared: {why}" for rank, why in sorted(self.unmatched.items())[:10]]
        return said


class Arrivals:
    """Takes the collectives of each rank, then compares them with those of the others in their groups."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._told: dict[str, tuple[int, int]] = {}
        self._kinds: dict[str, Kind] = {}
        self._kind_of = np.zeros(0, dtype=np.int64)  # of each name: its place in `_all`, -1 for none
        self._all: list[Kind] = []
        self._held: dict[int, IntArray] = {}

    def add(self, found: Gathered) -> None:
        """A rank's collectives."""
        talk = found.talk.copy()
        codes = [self._names.setdefault(name, len(self._names)) for name in found.texts]
        talk[TEXT] = np.array(codes, dtype=np.int64)[talk[TEXT]] if codes else talk[TEXT]
        for i in np.unique(found.talk[TEXT]).tolist():
            one = int(np.argmax(found.talk[TEXT] == i))
            self._told[found.texts[i]] = (int(talk[RANKS, one]), int(talk[STRIDE, one]))
        np.save(self._folder / f"{found.rank}.npy", talk, allow_pickle=False)
        self._steps[found.rank] = len(found.steps["step"])

    def compared(self, world: int, one_clock: bool = False) -> Compared:
        """The comparison of ranks of a world of so many: which of them are a group, then their clocks, then who waits.

        With `one_clock` the ranks share one, and collectives tell only how far its moments are to be trusted.
        """
        found = Compared(one_clock=one_clock)
        ranks = sorted(self._steps)
        self._kinds, found.assumed = settled(self._told, world, ranks, self._late)
        self._all = largest_first(self._kinds.values())
        self._kind_of = np.full(len(self._names), -1, dtype=np.int64)
        for name, kind in self._kinds.items():
            self._kind_of[self._names[name]] = self._all.index(kind)
            found.talks[name] = Talk(*kind)
        self._link(ranks, found)
        for i, kind in enumerate(self._all):
            for group in groups(ranks, kind):
                self._waits(self._alike(group, i, found), i, found)
        found.talks = {name: talk for name, talk in found.talks.items() if talk.count}
        return found

    # -- what of two ranks belongs together ------------------------------------------------------------------------
    def _load(self, rank: int) -> IntArray:
        if rank not in self._held:
            if len(self._held) > 1:
                self._held.pop(next(iter(self._held)))
            self._held[rank] = np.load(self._folder / f"{rank}.npy", allow_pickle=False)
        return self._held[rank]

    def _of(self, rank: int, kind: int) -> tuple[IntArray, npt.NDArray[np.uint64]]:
        """(a rank's collectives of a kind of group, a number for each step's sequence of them)."""
        talk = self._load(rank)
        talk = talk[:, self._kind_of[talk[TEXT]] == kind]
        return talk, order_of(talk, self._steps[rank])

    def _late(self, name: str, one: int, two: int) -> IntArray:
        """Differences of the ends of a collective on two ranks, over steps that have as many of it on both."""
        if self._steps[one] != self._steps[two]:
            return np.zeros(0, dtype=np.int64)
        talks = [t[:, t[TEXT] == self._names[name]] for t in (self._load(one), self._load(two))]
        counts = [np.bincount(t[STEP], minlength=self._steps[one]) for t in talks]
        same = counts[0] == counts[1]
        ends = [t[END][same[t[STEP]]] for t in talks]
        return np.asarray(ends[1] - ends[0])

    # -- clocks ----------------------------------------------------------------------------------------------------
    def _link(self, ranks: Sequence[int], found: Compared) -> None:
        """Fits the clocks of the ranks of each group to its first rank's, then links them; the largest groups count first."""
        at = min((int(t[END, 0]) for r in ranks[:1] if (t := self._load(r)).shape[1]), default=0)
        links: list[tuple[int, int, Clock]] = []
        for kind in range(len(self._all)):
            for first, *others in groups(ranks, self._all[kind]):
                base, order = self._of(first, kind)
                for rank in others:
                    if self._steps[rank] != self._steps[first]:
                        found.unmatched.setdefault(
                            rank, f"it has {self._steps[rank]} steps, rank {first} has {self._steps[first]}"
                        )
                        continue
                    mine, its = self._of(rank, kind)
                    same = (order == its) & (order != 0)
                    theirs, own = (t[END][same[t[STEP]]] for t in (base, mine))
                    if not len(own):
                        found.unmatched.setdefault(
                            rank, f"its collectives are in no step those of rank {first}"
                        )
                        continue
                    order_in_time = np.argsort(theirs, kind="stable")
                    links.append((first, rank, fitted(theirs[order_in_time], own[order_in_time], at)))
        found.clocks, found.roots = linked(links)
        for rank in found.clocks:
            found.unmatched.pop(rank, None)
        if found.one_clock:
            found.clocks = {rank: Clock(at, error_ns=_apart(found.clocks.get(rank))) for rank in ranks}
            found.roots = dict.fromkeys(ranks, ranks[0])

    # -- waiting ---------------------------------------------------------------------------------------------------
    def _waits(self, block: Sequence[int], kind: int, found: Compared) -> None:
        """Adds what each rank of a group waits in the steps that all of them share."""
        if len(block) < 2:
            return
        base, order = self._of(block[0], kind)
        same = order != 0
        for rank in block[1:]:
            same &= self._of(rank, kind)[1] == order
        texts = base[TEXT][same[base[STEP]]]
        if not len(texts):
            return
        latest = earliest = who = np.zeros(0, dtype=np.int64)
        for rank in block:
            start = self._starts(rank, kind, same, found)[1]
            if rank == block[0]:
                latest, earliest, who = start.copy(), start.copy(), np.full(len(start), rank)
                continue
            who[start > latest] = rank
            latest, earliest = np.maximum(latest, start), np.minimum(earliest, start)
        found.spreads.append(latest - earliest)
        waited = np.zeros(len(latest), dtype=np.int64)  # by all ranks of the group together
        taken = np.zeros(len(latest), dtype=np.int64)
        step = latest
        for rank in block:
            talk, start = self._starts(rank, kind, same, found)
            step, dur = talk[STEP], talk[END] - talk[START]
            wait = np.clip(latest - start, 0, dur)
            waited, taken = waited + wait, taken + dur - wait
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
        self._tell(
            found,
            texts,
            len(block),
            {"wait_ns": waited, "transfer_ns": taken, "spread_ns": latest - earliest},
        )

    def _alike(self, group: Sequence[int], kind: int, found: Compared) -> list[int]:
        """Those of a group whose clocks agree and whose steps have some sequence of collectives in common with its first."""
        known = [r for r in group if r in found.clocks]
        if not known:
            return []
        first, steps = known[0], self._steps[known[0]]
        order = self._of(first, kind)[1]
        near = [r for r in known if found.roots[r] == found.roots[first] and self._steps[r] == steps]
        return [r for r in near if ((self._of(r, kind)[1] == order) & (order != 0)).any()]

    def _starts(
        self, rank: int, kind: int, same: npt.NDArray[np.bool_], found: Compared
    ) -> tuple[IntArray, IntArray]:
        """(a rank's collectives of a kind in some steps, their starts by the root's clock)."""
        talk, _ = self._of(rank, kind)
        talk = talk[:, same[talk[STEP]]]
        return talk, found.clocks[rank].aligned(talk[START])

    def _add(self, found: Compared, rank: int, step: IntArray, values: Mapping[str, IntArray]) -> None:
        """Adds one value per collective to the rank's sums per step."""
        count = self._steps[rank]
        sums = found.sums.setdefault(rank, {name: np.zeros(count, np.int64) for name in SUMS})
        for name, value in values.items():
            sums[name] += np.bincount(step, weights=value, minlength=count).astype(np.int64)

    def _tell(self, found: Compared, texts: IntArray, ranks: int, values: Mapping[str, IntArray]) -> None:
        """Adds what a group's executions took to each collective's own sums."""
        names = list(self._names)
        for code in np.unique(texts).tolist():
            at, talk = texts == code, found.talks[names[code]]
            more: dict[str, Any] = {
                name: getattr(talk, name) + int(v[at].sum()) for name, v in values.items()
            }
            found.talks[names[code]] = replace(
                talk, count=talk.count + int(at.sum()), on_ranks=talk.on_ranks + ranks * int(at.sum()), **more
            )


def _apart(clock: Clock | None) -> float:
    """How far from each other's the ends of collectives are, ns, by one clock; 0 where there are none."""
    return abs(clock.offset_ns) + clock.error_ns if clock is not None else 0.0
