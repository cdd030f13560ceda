"""Which ranks a collective is of: as the trace states it, else neighbours, else at the distance at which ends agree.

A group of n ranks with stride s is ``a, a + s, ..., a + (n - 1) s``: s is 1 for neighbours, and the size of the inner groups
where groups cross them (data parallel across tensor parallel, expert parallel across both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from moetrace.parse.nesting import IntArray

_PAIRS = 16  # pairs of ranks that are asked about one stride
_FEWEST = 4  # differences that tell a deviation
# Another stride is believed where ends deviate less than this times what they do between neighbours.
_BETTER = 0.5
_NOTICED_NS = 500.0  # and by so much less

Kind = tuple[int, int]  # ranks in the group, stride


def members(rank: int, kind: Kind) -> tuple[int, ...]:
    """The ranks of the group of a kind that a rank is in."""
    ranks, stride = kind
    first = rank // (ranks * stride) * (ranks * stride) + rank % stride
    return tuple(first + i * stride for i in range(ranks))


def groups(present: Sequence[int], kind: Kind) -> list[list[int]]:
    """The groups of a kind that have more than one rank here, each ascending."""
    here, found = set(present), {members(rank, kind) for rank in present}
    return [mine for group in sorted(found) if len(mine := [r for r in group if r in here]) > 1]


def strides(ranks: int, world: int) -> list[int]:
    """The strides that groups of so many ranks may have, ascending."""
    return [s for s in range(1, world // max(1, ranks) + 1) if world % (ranks * s) == 0]


def told_stride(
    ranks: int, world: int, present: Sequence[int], late: Callable[[int, int], IntArray]
) -> int | None:
    """The stride at which ends agree; None where nothing tells it from the others.

    `late` gives the differences of the ends on two ranks, in order of time. Clocks need not agree: what is judged is how
    the differences change from one collective to the next.
    """
    deviation: dict[int, float] = {}
    for stride in strides(ranks, world):
        found = []
        for group in groups(present, (ranks, stride)):
            found += [_jitter(late(group[0], other)) for other in group[1:]]
            if len(found) >= _PAIRS:
                break
        known = [d for d in found if d is not None]
        if known:
            deviation[stride] = float(np.median(known))
    if 1 not in deviation or len(deviation) < 2:
        return None
    best, second, *_ = sorted(deviation, key=lambda s: (deviation[s], s))
    clearly = deviation[best] < min(_BETTER * deviation[second], deviation[second] - _NOTICED_NS)
    return best if clearly else None


def _jitter(late: IntArray) -> float | None:
    """How much differences change from one to the next, ns; None for too few."""
    if len(late) < _FEWEST:
        return None
    steps = np.diff(late).astype(np.float64)
    return float(np.median(np.abs(steps - np.median(steps))))


def settled(
    named: Mapping[str, tuple[int, int]],
    world: int,
    present: Sequence[int],
    late: Callable[[str, int, int], IntArray],
) -> tuple[dict[str, Kind], list[str]]:
    """(the kind of each collective's group by its name, the names that were taken as of neighbours unasked).

    `named` has the size of the group (0: all ranks) and its stride (0: not stated) by name; those of one rank, or of
    more than there are, are left out.
    """
    kinds: dict[str, Kind] = {}
    assumed: list[str] = []
    for name, (size, stride) in sorted(named.items()):
        ranks = size or world
        if not 1 < ranks <= world:
            continue
        if ranks == world or stride:
            kinds[name] = (ranks, stride or 1)
            continue
        told = told_stride(ranks, world, present, lambda one, two, name=name: late(name, one, two))  # type: ignore[misc]
        kinds[name] = (ranks, told or 1)
        if told is None:
            assumed.append(name)
    return kinds, assumed


def largest_first(kinds: Iterable[Kind]) -> list[Kind]:
    """Kinds of groups, those of most ranks first."""
    return sorted(set(kinds), key=lambda kind: (-kind[0], kind[1]))
