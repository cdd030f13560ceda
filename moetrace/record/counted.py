"""The recorded choices of experts, as counts and, if wanted, by token; without padding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moetrace.errors import RunError
from moetrace.record.choice import UNKNOWN
from moetrace.routing import Routing, RoutingBuilder
from moetrace.routing.tokens import save_token_routing

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int64]


class Counted:
    """What was added, and what could not be. `masks`: by step, which of its tokens are padding (0)."""

    def __init__(self, want_tokens: bool) -> None:
        self.want_tokens = want_tokens
        self.masks: dict[int, torch.Tensor | None] = {}
        self.sources: set[str] = set()
        self.unranked: set[int] = set()  # layers whose router does not choose by the top of one score
        self.refused: list[str] = []
        self.k = 0
        self._kept: dict[int, npt.NDArray[np.bool_] | None] = {}
        self._builder: RoutingBuilder | None = None
        self._tokens: list[tuple[int, int, IntArray, IntArray]] = []

    def add(self, step: int, layer: int, ids: IntArray, k: int, experts: int, source: str) -> None:
        """Count ids [tokens, k and further choices]; what makes no sense is left out and told: the run goes on."""
        tokens = np.arange(len(ids))
        kept = self._mask(step)
        if kept is not None and len(kept) == len(ids):
            ids, tokens = ids[kept], tokens[kept]
        if ids.shape[1] > k and ((ids[:, k:] == UNKNOWN).any() or layer in self.unranked):
            self.unranked.add(layer)
            ids = ids[:, :k]
        try:
            self._builder = self._builder or RoutingBuilder(experts)
            self._builder.add(step, layer, ids)
        except RunError as doubt:
            self.refused.append(str(doubt))
            return
        self.k = max(self.k, k)
        self.sources.add(source)
        if self.want_tokens:
            self._tokens.append((step, layer, tokens.astype(np.int32), ids.astype(np.int32)))

    def _mask(self, step: int) -> npt.NDArray[np.bool_] | None:
        if step not in self._kept:
            mask = self.masks.get(step)
            found = None if mask is None else mask.cpu().numpy().astype(bool)
            self._kept[step] = None if found is None or found.all() else found
        return self._kept[step]

    def padding(self, step: int) -> int:
        """Tokens of a step that its attention mask calls padding."""
        kept = self._mask(step)
        return 0 if kept is None else int((~kept).sum())

    def routing(self) -> Routing | None:
        """The counts, or None if nothing was added."""
        return self._builder.build(self.k) if self._builder is not None and self.k else None

    def save_tokens(self, path: Path) -> None:
        """Write what each token chose."""
        if self._builder is not None:
            save_token_routing(path, self._builder.experts, self._tokens)

    @property
    def has_tokens(self) -> bool:
        return bool(self._tokens)
