"""Buffers on the device that hold what each layer's router last gave: what a CUDA graph leaves for the host.

`write` is captured with the graph: one copy for each tensor, without waiting, which runs at each replay where no hook
does. `read` is called after the step. Eagerly, on a CPU too, both do the same. A buffer is made at the first forward that
fits, so let one run before the capture, as is done anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_UNWRITTEN = -1


class GraphBuffers:
    """Named buffers [tokens, columns] by layer, for forwards of at most so many tokens."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._buffers: dict[int, dict[str, torch.Tensor]] = {}

    def write(self, layer: int, tensors: Mapping[str, torch.Tensor | None]) -> bool:
        """Copy tensors [..., columns] of as many rows each; False where they are too long and left alone."""
        rows = {name: t.reshape(-1, t.shape[-1]) for name, t in tensors.items() if t is not None}
        if any(len(r) > self._tokens for r in rows.values()):
            return False
        buffers = self._buffers.setdefault(layer, {})
        for name, given in rows.items():
            if name not in buffers or buffers[name].shape[1] != given.shape[1]:
                fill = float("nan") if given.is_floating_point() else _UNWRITTEN
                buffers[name] = given.new_full((self._tokens, given.shape[1]), fill)
            buffers[name][: len(given)].copy_(given)
        return True

    def read(self, tokens: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(layer, the first `tokens` rows of its tensors on the host) as the last step left them, if all rows were written."""
        for layer, buffers in self._buffers.items():
            rows = {name: buffer[:tokens].cpu() for name, buffer in buffers.items()}
            if all(
                len(r) == tokens and bool(((r == r) & (r != _UNWRITTEN)).any(dim=1).all())
                for r in rows.values()
            ):
                yield layer, rows
