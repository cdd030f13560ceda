"""Which experts each token got, by rank of choice: forward hooks on the router, or on the experts' input.

References to the router's own output tensors are kept and turned into counts after the step, so nothing is
computed, copied or waited for inside a step. A captured graph runs no hook at replay: with `graph_tokens` the
hooks that run at the capture make device code of it that writes the choice into buffers, read after the step.
Not supported: routers inside a compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from moetrace.record.choice import chosen_experts
from moetrace.record.counted import Counted
from moetrace.record.graph_buffers import GraphBuffers
from moetrace.record.modules import Place

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

_FLUSH_BYTES = 64 << 20  # held tensors above this are turned into counts at the next step's end
_TOPK = ("num_experts_per_tok", "experts_per_token", "moe_topk", "top_k")
_N_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
ROUTER, EXPERTS, LOGITS = "router output", "experts input", "recomputed from router logits"


@dataclass(slots=True)
class _Call:
    """One forward of one router: tensors as the model made them."""

    step: int
    layer: int
    router: nn.Module
    logits: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    source: str = LOGITS

    def held_bytes(self) -> int:
        return sum(t.nbytes for t in (self.logits, self.weights, self.ids) if t is not None)


class RoutingTap:
    """Hooks on the routers and experts among `places`; `step()` is the index of the open step or None.

    `extra`: so many experts beyond the chosen; `tokens`: keep what each token chose; `graph_tokens`: also have
    every forward of at most so many tokens copy what its routers gave into buffers on the device, which a replay
    of a CUDA graph fills again.
    """

    def __init__(
        self,
        places: Iterable[Place],
        step: Callable[[], int | None],
        config: object,
        *,
        extra: int = 0,
        tokens: bool = False,
        graph_tokens: int | None = None,
    ) -> None:
        places = [p for p in places if p.layer >= 0]
        self._step = step
        self._topk = _config_number(config, _TOPK)
        self._experts = _config_number(config, _N_EXPERTS)
        self._extra = extra
        self._counted = Counted(tokens)
        self._calls: list[_Call] = []
        self._latest: dict[int, _Call] = {}
        self._written: dict[int, _Call] = {}  # the call whose tensors a layer's buffers hold
        self._buffers = None if graph_tokens is None else GraphBuffers(graph_tokens)
        self._handles: list[Any] = []
        for place in places:
            if place.part == "router":
                self._handles.append(place.module.register_forward_hook(self._after_router(place.layer)))
            elif place.part == "experts":
                hook = self._before_experts(place.layer)
                self._handles.append(place.module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after_router(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, _args: object, output: object) -> None:
            step = self._step()
            if step is None and self._buffers is None:
                return
            call = _read_router(_Call(-1 if step is None else step, layer, module), _tensors(output))
            self._latest[layer] = call
            self._keep(call, new=True)

        return hook

    def _before_experts(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            call = self._latest.get(layer)
            if call is None or call.ids is not None:
                return
            tensors = _tensors((*args, *kwargs.values()))
            call.ids = next((t for t in tensors if _is_ids(t)), None)
            if call.ids is not None:
                shape = call.ids.shape
                same = (t for t in tensors if t.is_floating_point() and t.shape == shape)
                call.weights, call.source = next(same, None), EXPERTS
                self._keep(call, new=False)

        return hook

    def _keep(self, call: _Call, new: bool) -> None:
        if self._buffers is not None:
            tensors = {"logits": call.logits, "weights": call.weights, "ids": call.ids}
            if self._buffers.write(call.layer, tensors):
                self._written[call.layer] = call
        if new and call.step >= 0:
            self._calls.append(call)

    def mask(self, step: int, mask: torch.Tensor | None) -> None:
        """Which tokens of a step are padding (0), in the order of its tokens."""
        self._counted.masks[step] = mask

    def end_step(self, step: int, tokens: int) -> None:
        """Called after each step: reads what a graph wrote, and counts held tensors once they take much memory."""
        if self._buffers is not None and not any(call.step == step for call in self._calls):
            for layer, held in self._buffers.read(tokens):
                like = self._written[layer]
                self._count(_Call(step, layer, like.router, source=like.source, **held))
        if sum(call.held_bytes() for call in self._calls) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Turn held tensors into counts."""
        for call in self._calls:
            self._count(call)
        self._calls.clear()
        self._latest.clear()

    def _count(self, call: _Call) -> None:
        k = self._k(call)
        ids = chosen_experts(call.logits, call.weights, call.ids, call.router, k, self._extra)
        if ids is not None:
            chosen = ids.cpu().numpy()
            experts = self._n_experts(call.logits, chosen)
            self._counted.add(call.step, call.layer, chosen, k, experts, call.source)

    def _k(self, call: _Call) -> int:
        """How many experts each token gets; 0 where neither the router nor the config says."""
        k: int = getattr(call.router, "top_k", None) or self._topk or 0
        return k if call.ids is None else int(call.ids.shape[-1])

    def _n_experts(self, logits: torch.Tensor | None, ids: npt.NDArray[np.int64]) -> int:
        """Experts of the layer: as many as there are logits, else what the config says, else those seen."""
        if logits is not None:
            return int(logits.shape[-1])
        return self._experts or int(ids.max(initial=0)) + 1

    def counted(self) -> Counted:
        """All that was recorded."""
        self.flush()
        return self._counted

    def forget(self) -> None:
        """Drop what was recorded so far."""
        self._calls.clear()
        self._latest.clear()
        self._counted = Counted(self._counted.want_tokens)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _tensors(value: object) -> list[torch.Tensor]:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return [item for item in items if hasattr(item, "is_floating_point") and hasattr(item, "shape")]


def _is_ids(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.dim() >= 2


def _read_router(call: _Call, output: list[torch.Tensor]) -> _Call:
    """Sort a router's output into logits [tokens, E], weights and ids [tokens, k], as far as it has them."""
    floats = [t for t in output if t.is_floating_point()]
    call.ids = next((t for t in output if _is_ids(t)), None)
    if call.ids is not None:
        k = call.ids.shape[-1]
        call.source = ROUTER
        call.logits = next((t for t in floats if t.shape[-1] != k), None)
        call.weights = next((t for t in reversed(floats) if t.shape == call.ids.shape), None)
    elif floats:
        call.logits = floats[-1]  # Llama-4's router returns (scores, logits), the older gates logits alone
    return call


def _config_number(config: object, names: tuple[str, ...]) -> int | None:
    found = (config.get(n) if isinstance(config, Mapping) else getattr(config, n, None) for n in names)
    return next((int(k) for k in found if k), None)
