"""Clocks of ranks: what each is ahead of the first one's, and how fast that grows, from collectives that end together.

Between two ranks of a group a robust line is laid through the differences of ends; ranks that share no collective are linked
through those that do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moetrace.parse.nesting import IntArray

_POINTS = 201  # the line goes through medians of at most so many stretches of time
_FEWEST = 5  # collectives that tell a drift
_LESS = 0.8  # a drift is believed where it leaves less than this of the deviation


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock against another: at the other's time t it shows ``t + offset_ns + drift * (t - at_ns)``; whole ns.

    `error_ns` is the median deviation of single collectives from that, added up where ranks are linked through others.
    """

    at_ns: int
    offset_ns: float = 0.0
    drift: float = 0.0
    error_ns: float = 0.0

    def aligned(self, shown: IntArray) -> IntArray:
        """The other clock's time at the moments that this one shows."""
        if not self.drift:  # whole numbers: a float of today's ns since 1970 is off by a hundred
            return shown - round(self.offset_ns)
        away = (shown - self.at_ns) - self.offset_ns
        moved: IntArray = np.rint(away / (1.0 + self.drift)).astype(np.int64)
        return self.at_ns + moved

    def ahead(self, shown: IntArray) -> IntArray:
        """By how much this clock is ahead at the moments that it shows, ns."""
        return shown - self.aligned(shown)

    def then(self, other: Clock) -> Clock:
        """`other`, which is against this clock, against the one that this is against; both for the same `at_ns`."""
        offset = self.offset_ns + other.offset_ns + other.drift * self.offset_ns
        drift = self.drift + other.drift * (1.0 + self.drift)
        return Clock(self.at_ns, offset, drift, self.error_ns + other.error_ns)


def fitted(base: IntArray, mine: IntArray, at_ns: int) -> Clock:
    """The clock that shows `mine` when the other shows `base`, moments in ns, in order of time.

    The drift is the median of the slopes between medians of stretches (Theil 1950, Sen 1968), the offset the median of what
    is left: up to nearly a third of the collectives may be far off. A drift that explains little is left at 0.
    """
    late = (mine - base).astype(np.float64)
    offset = float(np.median(late))
    error = float(np.median(np.abs(late - offset)))
    still = Clock(at_ns, offset, 0.0, error)
    if len(base) < _FEWEST or error == 0:
        return still
    middle = int(np.median(base))
    since = (base - middle).astype(np.float64)
    parts = np.array_split(np.arange(len(base)), min(_POINTS, len(base)))
    x, y = (np.array([np.median(v[part]) for part in parts]) for v in (since, late))
    first, second = np.triu_indices(len(x), 1)
    run = x[second] - x[first]
    if not (run > 0).any():
        return still
    drift = float(np.median(((y[second] - y[first])[run > 0]) / run[run > 0]))
    offset = float(np.median(late - drift * since))
    left = float(np.median(np.abs(late - drift * since - offset)))
    if left >= _LESS * error:
        return still
    return Clock(at_ns, offset + drift * (at_ns - middle), drift, left)


def inverse(clock: Clock) -> Clock:
    """The other clock against this one."""
    drift = -clock.drift / (1.0 + clock.drift)
    return Clock(clock.at_ns, -clock.offset_ns / (1.0 + clock.drift), drift, clock.error_ns)


def linked(links: Iterable[tuple[int, int, Clock]]) -> tuple[dict[int, Clock], dict[int, int]]:
    """(each rank's clock against its root's, the root of each) from links (rank, other, the other's clock against the rank's).

    Of several ways to a rank those given first are taken; a root is the lowest rank of all that are linked.
    """
    beside: dict[int, list[tuple[int, Clock]]] = {}
    group: dict[int, int] = {}

    def top(rank: int) -> int:
        while group.setdefault(rank, rank) != rank:
            rank = group[rank]
        return rank

    for rank, other, clock in links:
        one, two = top(rank), top(other)
        if one != two:
            group[max(one, two)] = min(one, two)
            beside.setdefault(rank, []).append((other, clock))
            beside.setdefault(other, []).append((rank, inverse(clock)))
    clocks: dict[int, Clock] = {}
    roots: dict[int, int] = {}
    for rank in sorted(beside):
        if rank in clocks:
            continue
        clocks[rank], roots[rank] = Clock(beside[rank][0][1].at_ns), rank
        wait = [rank]
        while wait:
            here = wait.pop()
            for other, clock in beside[here]:
                if other not in clocks:
                    clocks[other], roots[other] = clocks[here].then(clock), rank
                    wait.append(other)
    return clocks, roots
