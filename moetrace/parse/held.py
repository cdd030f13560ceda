"""One rank of an expert-parallel group: what the choices of tokens are on the experts that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moetrace.op import Op
from moetrace.parse.nesting import IntArray
from moetrace.routing import Routing, ep_blocks, own_block

SHARED_OUT = ("moe_gate_up", "moe_down", "moe_experts", "moe_act")


@dataclass(frozen=True, slots=True)
class Held:
    """What a rank has of the experts that `ep` ranks share out in contiguous blocks.

    `block` is the place of its own among these, None where that is not known; `groups` of ranks bring tokens of their own.
    """

    ep: int
    block: int | None
    groups: int

    @classmethod
    def of(cls, tp: int, ep: int, rank: int, world: int) -> Held | None:
        """That of rank `rank` of `world`, None where experts are not shared out.

        Without a rank, or with experts cut in width too, whose ranks may lie either way, the block is not known.
        """
        if ep == 1:
            return None
        return cls(ep, own_block(rank, ep) if world > 1 and tp <= ep else None, max(1, ep // tp))


class OwnExperts:
    """Puts into expert ops what falls on the experts of their rank: `distinct` and `rows`, where they can be counted.

    They can where the block is known, and the routing is of all tokens that reach the experts. Elsewhere `distinct_est` is
    the mean rank's share of what was counted, or what the layer's popularity says of as many tokens; `remarks` say so.
    """

    def __init__(self, routing: Routing, held: Held, matched: bool) -> None:
        """`matched`: the routing's steps are the run's."""
        self._routing, self._held, self._matched = routing, held, matched
        self._cells = routing.by_rank(held.ep)
        self._popularity = {layer: routing.popularity(layer) for layer in routing.layers}
        self._topk = routing.chosen or routing.topk
        self._owner = ep_blocks(routing.experts, held.ep)
        self._said: set[str] = set()

    def put(
        self, index: IntArray, found: list[Op], step: IntArray, layer: IntArray
    ) -> tuple[IntArray, list[Op]]:
        """(op of each row, ops): as they were, with what is known of their step and layer."""
        shared = np.array([op.kind in SHARED_OUT and op.has("local_experts") for op in found], dtype=bool)
        at = np.flatnonzero(shared[index] & (layer >= 0))
        if not len(at):
            return index, found
        where = np.stack([index[at], step[at], layer[at]], axis=1)
        cells, inverse = np.unique(where, axis=0, return_inverse=True)
        known = {op: i for i, op in enumerate(found)}
        codes = [known.setdefault(self._told(found[i], s, k), len(known)) for i, s, k in cells.tolist()]
        index = index.copy()
        index[at] = np.array(codes, dtype=np.int64)[inverse.reshape(-1)]
        return index, list(known)

    def _told(self, op: Op, step: int, layer: int) -> Op:
        cell = self._cells.get((step, layer)) if self._matched else None
        if self._matched and cell is None:
            return op
        if cell is not None and (self._held.groups == 1 or cell.tokens == op["tokens"]):
            if self._held.block is None:
                self._said.add("share")
                return _with(op, {"distinct_est": round(float(cell.distinct.mean()), 4)})
            self._said.add("counted")
            own = {"distinct": int(cell.distinct[self._held.block]), "rows": int(cell.rows[self._held.block])}
            return _with(op, own)
        if layer not in self._popularity or op["topk"] != self._topk:
            return op
        self._said.add("others" if self._matched else "popular")
        q, tokens = self._popularity[layer], float(op["tokens"])
        touched = 1.0 - np.power(np.maximum(1.0 - q, 0.0), tokens)
        if self._held.block is None:
            return _with(op, {"distinct_est": round(float(touched.sum()) / self._held.ep, 4)})
        mine = self._owner == self._held.block
        expected = {"distinct_est": float(touched[mine].sum()), "rows": float(q[mine].sum()) * tokens}
        return _with(op, {name: round(value, 4) for name, value in expected.items()})

    @property
    def counted(self) -> bool:
        """Whether ops were counted on the rank's own experts."""
        return "counted" in self._said

    @property
    def estimated(self) -> bool:
        """Whether ops were estimated, and none counted."""
        return bool(self._said) and not self.counted

    def remarks(self) -> list[str]:
        """A sentence on each way in which experts were counted or estimated."""
        ep = self._held.ep
        block = _NOT_KNOWN if self._held.block is None else f"block {self._held.block} of {ep}"
        return [text.format(ep=ep, block=block) for key, text in _REMARKS.items() if key in self._said]


_NOT_KNOWN = "the mean over ranks, for which experts this one holds is not known"
_REMARKS: Mapping[str, str] = {
    "counted": "distinct experts and their rows are counted on this rank's own experts, taken as {block} in contiguous blocks: "
    "other placements (experts moved or held twice) are not known",
    "share": "which of {ep} blocks of experts this rank holds is not known (the trace states no rank, or experts are cut in "
    "width too): its distinct experts are estimated as the mean rank's of those counted",
    "others": "the routing is of this rank's own tokens, and other ranks' reach its experts too: the distinct ones ({block}) "
    "are estimated from each layer's recorded popularity for the tokens of all",
    "popular": "of experts that {ep} ranks share out the distinct ones on this rank ({block}) are estimated from popularity",
}


def _with(op: Op, dims: Mapping[str, float]) -> Op:
    """The op with these dims; an activation between the GEMMs has rows alone."""
    return op.with_dims(**{n: v for n, v in dims.items() if n == "rows" or op.kind != "moe_act"})
