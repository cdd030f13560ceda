"""Recorded routing, gathered while a model runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace.errors import RunError
from moetrace.routing.distinct import IntArray
from moetrace.routing.recorded import Routing


class RoutingBuilder:
    """Gathers routing while a model runs; adding costs one bincount, so every layer may call it."""

    def __init__(self, experts: int) -> None:
        if experts < 1:
            raise RunError(f"routing: experts is {experts}, expected at least 1")
        self.experts = experts
        self._hits: dict[tuple[int, int], IntArray] = {}

    def add(self, step: int, layer: int, topk_ids: npt.ArrayLike) -> None:
        """Count the experts of shape [tokens, k], columns in order of choice; a step may be added in parts.

        Raises RunError on another shape, an expert out of range, a token that has one twice, or another k
        than before.
        """
        ids = np.asarray(topk_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise RunError(
                f"routing: expected whole numbers of shape [tokens, k], not {ids.dtype} {list(ids.shape)}"
            )
        k = ids.shape[1]
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.experts:
            reach = f"experts {ids.min()} to {ids.max()}, expected 0 to {self.experts - 1}"
            raise RunError(f"routing: layer {layer} has {reach}")
        if bool((np.diff(np.sort(ids, axis=1), axis=1) == 0).any()):
            raise RunError(f"routing: a token of step {step}, layer {layer} has the same expert twice")
        flat = (np.arange(k) * self.experts + ids.astype(np.int64)).ravel()
        hits = np.bincount(flat, minlength=k * self.experts).reshape(k, self.experts)
        before = self._hits.get((step, layer))
        if before is not None and before.shape != hits.shape:
            raise RunError(
                f"routing: step {step}, layer {layer} was added with k {before.shape[0]}, now with {k}"
            )
        self._hits[step, layer] = hits if before is None else before + hits

    def build(self, chosen: int = 0, ordered: bool = True) -> Routing:
        """All that was added, as a Routing (empty if nothing was); `chosen` and `ordered` as there."""
        parts = []
        for (step, layer), hits in self._hits.items():
            choice, expert = np.nonzero(hits)
            where = np.broadcast_to([[step], [layer]], (2, expert.size))
            parts.append(np.vstack([where, expert, choice + 1, hits[choice, expert]]))
        rows = np.hstack(parts) if parts else np.zeros((5, 0), dtype=np.int64)
        return Routing(self.experts, rows[0], rows[1], rows[2], rows[3], rows[4], chosen, ordered)
