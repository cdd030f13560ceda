"""How unevenly experts are loaded over ranks: by tokens' choices where routing was recorded, and by time, by layer."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from moetrace.parse.nesting import IntArray
from moetrace.parse.ranks.gathered import Gathered
from moetrace.routing import own_block


class Loads:
    """Adds up what ranks say of their experts. Routing that all ranks tell alike is of tokens that all of them have."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._ep = 1
        self._routed: IntArray | None = None  # step, layer, rank of experts, choices
        self._seen: set[bytes] = set()
        self._told: list[int] = []
        self._ranks: list[int] = []
        self._time: dict[int, IntArray] = {}  # experts' ns by layer

    def add(self, one: Gathered) -> None:
        """A rank."""
        self._ranks.append(one.rank)
        self._time[one.rank] = one.experts_ns
        if not len(one.routed) or (self._told and one.ep != self._ep):
            return
        self._told.append(one.rank)
        self._ep = one.ep
        text = hashlib.blake2b(np.ascontiguousarray(one.routed).tobytes(), digest_size=16).digest()
        if text not in self._seen:  # ranks that share their tokens tell the same of them
            self._seen.add(text)
            self._routed = one.routed if self._routed is None else _summed([self._routed, one.routed])

    def of_rank(self, rank: int, steps: int) -> IntArray | None:
        """The choices that fell on a rank's experts in each step, None where that is not known."""
        if self._routed is None:
            return None
        mine = self._routed[self._routed[:, 2] == own_block(rank, self._ep)]
        return np.bincount(mine[:, 0], weights=mine[:, 3], minlength=steps)[:steps].astype(np.int64)

    def share(self, rank: int) -> float | None:
        """A rank's choices over the mean rank's, all steps and layers together."""
        if self._routed is None:
            return None
        total = np.bincount(self._routed[:, 2], weights=self._routed[:, 3], minlength=self._ep)
        return float(total[own_block(rank, self._ep)] / total.mean()) if total.any() else None

    def summary(self) -> dict[str, Any] | None:
        """The busiest rank's choices over the mean rank's, in a layer of a step; None where routing was not recorded."""
        ratio = self._ratios()
        if ratio is None:
            return None
        if len(self._told) > 1 == len(self._seen):
            source = "the ranks' routing, the same on all: tokens that all of them have"
        elif len(self._told) > 1:
            source = f"the routing of {len(self._told)} ranks, {len(self._seen)} different ones added up"
        else:
            source = f"the routing of rank {self._told[0]}"
        if len(self._told) < len(self._ranks):
            self.notes.append(
                f"routing was recorded on {len(self._told)} of {len(self._ranks)} ranks: if ranks have tokens of their own, "
                "those of the others are missing from the experts' load"
            )
        if any(rank >= self._ep for rank in self._ranks):
            self.notes.append(
                f"experts are shared out over {self._ep} ranks, fewer than all: rank r is taken to hold block r modulo "
                f"{self._ep} of them"
            )
        most = self._by_cell()
        return {
            "source": source, "ep": self._ep, "median": float(np.median(ratio)), "p95": float(np.percentile(ratio, 95)),
            "max": float(ratio.max()), "busiest_rank": int(most.sum(axis=0).argmax()),
        }  # fmt: skip

    def layers(self) -> list[dict[str, Any]]:
        """By layer: the busiest rank over the mean rank, in choices (median and maximum over steps) and in experts' time."""
        rows: dict[int, dict[str, Any]] = {}
        depth = max((len(t) for t in self._time.values()), default=0)
        if depth and len(self._time) > 1:
            time = np.stack([np.pad(t, (0, depth - len(t))) for _, t in sorted(self._time.items())])
            ranks = sorted(self._time)
            for layer in np.flatnonzero(time.sum(axis=0)).tolist():
                here = time[:, layer]
                rows[layer] = {
                    "time": float(here.max() / here.mean()),
                    "slowest_rank": ranks[int(here.argmax())],
                }
        ratio = self._ratios()
        if ratio is not None and self._routed is not None:
            cells, cell_layer = self._by_cell(), self._cell_layers()
            for layer in np.unique(cell_layer).tolist():
                at = cell_layer == layer
                rows.setdefault(layer, {}).update(
                    choices=float(np.median(ratio[at])), choices_max=float(ratio[at].max()),
                    busiest_rank=int(cells[at].sum(axis=0).argmax()),
                )  # fmt: skip
        names = ("choices", "choices_max", "busiest_rank", "time", "slowest_rank")
        return [{"layer": layer, **{n: rows[layer].get(n) for n in names}} for layer in sorted(rows)]

    def _by_cell(self) -> IntArray:
        """Choices by (step, layer) and rank of experts."""
        if self._routed is None:
            return np.zeros((0, self._ep), dtype=np.int64)
        cell = np.unique(self._routed[:, :2], axis=0, return_inverse=True)[1].reshape(-1)
        out = np.zeros((int(cell.max(initial=-1)) + 1, self._ep), dtype=np.int64)
        np.add.at(out, (cell, self._routed[:, 2]), self._routed[:, 3])
        return out

    def _cell_layers(self) -> IntArray:
        found = self._routed if self._routed is not None else np.zeros((0, 4), dtype=np.int64)
        return np.asarray(np.unique(found[:, :2], axis=0)[:, 1])

    def _ratios(self) -> Any:
        cells = self._by_cell()
        return cells.max(axis=1) / cells.mean(axis=1) if len(cells) else None


def _summed(tables: list[IntArray]) -> IntArray:
    """Tables of (step, layer, rank of experts, choices) added up."""
    rows = np.concatenate(tables)
    keys, which = np.unique(rows[:, :3], axis=0, return_inverse=True)
    total = np.bincount(which.reshape(-1), weights=rows[:, 3], minlength=len(keys)).astype(np.int64)
    return np.column_stack([keys, total])
