"""What comparing needs of one rank's RUN: sums by step, its collectives, and where its tokens went.

It is made where the rank is parsed, so that on a cluster no RUN travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace import formats
from moetrace.op import Op
from moetrace.ops.communication import TOGETHER, matched_name
from moetrace.parse.nesting import IntArray, exposed_by
from moetrace.routing import Routing, ep_blocks
from moetrace.run import Run

STEP, START, END, TEXT, RANKS, STRIDE = range(6)
_COLUMNS = ("step", "layer", "device", "stream", "family", "kind", "op", "start_ns", "dur_ns")


@dataclass(frozen=True, slots=True)
class Gathered:
    """Of one rank. Times in ns of its own clock.

    `steps`: an array per column of the table of ranks, an entry per step. `talk` [6, collectives], by step, stream and start:
    place of the step, start, end, place of its name in `texts` (`matched_name`), ranks of the group (0: all there are), stride
    of the group (0: not stated). `experts_ns` [layers] are the experts' ops in steps. `routed` [n, 4]: place of the step,
    layer, rank of experts, and the choices of tokens that fell on that rank's experts; empty where routing was not recorded or
    experts are not shared out. `reach`: kernels in an NVTX range, all kernels, those whose launch was recorded; 0 where ranges
    are the profiler's own. `model`: its name and what no share of a model changes, where known. `lost`: what of its trace was
    lost or left out, in sentences. `alone`: its trace knows of no other rank, and holds no communication.
    """

    rank: int
    world: int
    ep: int
    steps: dict[str, IntArray]
    talk: IntArray
    texts: tuple[str, ...]
    experts_ns: IntArray
    routed: IntArray
    reach: tuple[int, int, int] = (0, 0, 0)
    model: tuple[str, tuple[int, ...]] | None = None
    lost: tuple[str, ...] = ()
    alone: bool = False


def gathered(run: Run, rank: int) -> Gathered:
    """What comparing needs of a rank's run."""
    count = len(run.meta.steps)
    at = np.array([s.index for s in run.meta.steps], dtype=np.int64)
    place = np.full(int(at.max(initial=-1)) + 2, -1, dtype=np.int64)
    place[at] = np.arange(count)
    sums = _Sums(count)
    for part in run.parts(_COLUMNS):
        sums.add(part, place[np.minimum(part.numpy("step").astype(np.int64), len(place) - 1)])
    start = np.array([s.start_ns for s in run.meta.steps], dtype=np.int64)
    end = np.array([s.end_ns for s in run.meta.steps], dtype=np.int64)
    steps = {"step": at, "start_ns": start, "span_ns": end - start, **sums.steps}
    talk = np.concatenate(sums.talk, axis=1) if sums.talk else np.zeros((6, 0), np.int64)
    ep = run.meta.ep
    routed = _routed(run.routing, place, ep) if run.routing is not None and ep > 1 else np.zeros((0, 4), int)
    facts = run.meta.facts
    reach = facts.get("kernels_in_ranges", 0), facts.get("kernels", 0), facts.get("kernels_launched", 0)
    spec = run.meta.model
    model = (
        (spec.name, (spec.hidden, spec.vocab, spec.heads, spec.kv_heads, spec.head_dim, spec.experts))
        if spec
        else None
    )
    lost = tuple(formats.remarks(facts))
    alone = bool(facts.get("placed")) and not steps["comm_ns"].any()
    return Gathered(
        rank,
        run.meta.gpus,
        ep,
        steps,
        talk,
        tuple(sums.texts),
        sums.experts,
        routed,
        reach,
        model,
        lost,
        alone,
    )


class _Sums:
    """What the parts of a run add up to; a part holds whole steps."""

    def __init__(self, count: int) -> None:
        names = ("busy_ns", "comm_ns", "exposed_comm_ns", "experts_ns")
        self.count = count
        self.steps = {name: np.zeros(count, np.int64) for name in names}
        self.talk: list[IntArray] = []
        self.texts: dict[str, int] = {}
        self.experts = np.zeros(0, np.int64)

    def add(self, part: Run, step: IntArray) -> None:
        """A part, and the place of each row's step (-1: none)."""
        start, dur, device = (part.numpy(n).astype(np.int64) for n in ("start_ns", "dur_ns", "device"))
        family, families = part.codes("family")
        talks, experts = (family == _code(families, name) for name in ("communication", "experts"))
        inside = step >= 0
        lane = step * (1 + int(device.max(initial=0) + 1)) + device + 1
        # Exposed: what the union of the other ops leaves of that of all.
        for which, sign in ((inside, 1), (inside & ~talks, -1)):
            alone, _ = exposed_by(lane[which], start[which], start[which] + dur[which])
            union = self._total(step[which], alone)
            self.steps["busy_ns"] += union if sign > 0 else 0
            self.steps["exposed_comm_ns"] += sign * union
        for name, which in (("comm_ns", talks & inside), ("experts_ns", experts & inside)):
            self.steps[name] += self._total(step[which], dur[which])
        self._add_layers(part, experts & inside, dur)
        self._add_talk(part, step, start, start + dur)

    def _total(self, step: IntArray, values: IntArray) -> IntArray:
        return np.bincount(step, weights=values, minlength=self.count).astype(np.int64)

    def _add_layers(self, part: Run, which: IntArray, dur: IntArray) -> None:
        layer = part.numpy("layer").astype(np.int64)
        which = which & (layer >= 0)
        mine = np.bincount(layer[which], weights=dur[which]).astype(np.int64)
        size = max(len(mine), len(self.experts))
        self.experts = np.pad(self.experts, (0, size - len(self.experts))) + np.pad(
            mine, (0, size - len(mine))
        )

    def _add_talk(self, part: Run, step: IntArray, start: IntArray, end: IntArray) -> None:
        kind, kinds = part.codes("kind")
        compared = (step >= 0) & np.isin(kind, [i for i, name in enumerate(kinds) if name in TOGETHER])
        rows = np.flatnonzero(compared)
        if not len(rows):
            return
        stream = part.numpy("stream").astype(np.int64)
        rows = rows[np.lexsort((start[rows], stream[rows], step[rows]))]
        op, texts = part.codes("op")
        used = np.unique(op[rows]).tolist()
        code, ranks, stride = (np.zeros(len(texts), np.int64) for _ in range(3))
        for i in used:
            one = Op.parse(texts[i])
            code[i] = self.texts.setdefault(matched_name(one), len(self.texts))
            ranks[i], stride[i] = one.get("ranks") or 0, one.get("stride") or 0
        at = op[rows]
        self.talk.append(np.stack([step[rows], start[rows], end[rows], code[at], ranks[at], stride[at]]))


def order_of(talk: IntArray, count: int) -> npt.NDArray[np.uint64]:
    """A number for each step's sequence of collectives, equal where the sequences are; 0 for a step without any.

    `talk` is sorted by step, and its texts are coded alike on all ranks.
    """
    step = talk[STEP]
    first = np.searchsorted(step, step)
    place = np.arange(len(step)) - first
    mixed = _mixed(_mixed(talk[TEXT].astype(np.uint64)) + place.astype(np.uint64))
    out = np.zeros(count, np.uint64)
    np.add.at(out, step, mixed)
    return out


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers spread over all 64 bits (splitmix64, Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _routed(routing: Routing, place: IntArray, ep: int) -> IntArray:
    """The choices that fell on each rank of experts, by step and layer; experts lie in blocks (`ep_blocks`)."""
    kept = (routing.step < len(place)) & (routing.rank_of_choice <= (routing.chosen or routing.topk))
    kept &= place[np.minimum(routing.step, len(place) - 1)] >= 0
    step, layer = place[routing.step[kept]], routing.layer[kept]
    block = ep_blocks(routing.experts, min(ep, routing.experts))[routing.expert[kept]]
    layers = int(layer.max(initial=0)) + 1
    keys, which = np.unique((step * layers + layer) * ep + block, return_inverse=True)
    choices = np.bincount(which.reshape(-1), weights=routing.count[kept], minlength=len(keys))
    cell, at = np.divmod(keys, ep)
    return np.stack([cell // layers, cell % layers, at, choices.astype(np.int64)], axis=1)


def _code(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -2
