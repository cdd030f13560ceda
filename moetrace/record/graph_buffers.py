"""Buffers on the device that hold each layer's last choice of experts: what a CUDA graph leaves for the host.

`write` is captured with the graph, and so runs at each replay without hook and without waiting; `read` is called
after the step. Eagerly, on a CPU too, both do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moetrace.record.choice import UNKNOWN
from moetrace.record.modules import Place

if TYPE_CHECKING:
    import torch

_WIDEST = 64  # columns: n_a and extra choices; gpt-oss has 4, Qwen3 8, the largest in the catalogue 10


class _Written(NamedTuple):
    """What a buffer holds: columns in all, of which the first `k` were chosen."""

    width: int
    k: int
    source: str


class GraphBuffers:
    """One buffer [tokens, experts chosen] for each layer with a router, allocated here and so before any capture."""

    def __init__(self, tokens: int, places: Iterable[Place]) -> None:
        import torch

        self._tokens = tokens
        self._buffers: dict[int, torch.Tensor] = {}
        self._written: dict[int, _Written] = {}
        for place in places:
            if place.part == "router":
                weight = next(place.module.parameters(), None)
                device = "cpu" if weight is None else weight.device
                size = (tokens, _WIDEST)
                self._buffers[place.layer] = torch.full(size, UNKNOWN, dtype=torch.int32, device=device)

    def write(self, layer: int, chosen: torch.Tensor | None, k: int, source: str) -> None:
        """Copy `chosen` [tokens, k and more] into the layer's buffer; more tokens or columns than it holds are left out."""
        if chosen is None or chosen.shape[0] > self._tokens or chosen.shape[1] > _WIDEST:
            return
        rows, width = chosen.shape
        self._written[layer] = _Written(width, k, source)
        self._buffers[layer][:rows, :width].copy_(chosen)

    def read(self, tokens: int) -> Iterator[tuple[int, npt.NDArray[np.int64], int, str]]:
        """(layer, ids [tokens, k and more], k, where they came from) of each layer, as the last step left them."""
        for layer, (width, k, source) in self._written.items():
            ids = self._buffers[layer][:tokens, :width].cpu().numpy().astype(np.int64)
            if ids.size and (ids[:, 0] != UNKNOWN).all():
                yield layer, ids, k, source
