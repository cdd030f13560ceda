"""Which experts each token got, by rank of choice: forward hooks on the router, or on the experts' input.

References to the router's own output tensors are kept and turned into counts between steps, so nothing is
computed, copied or waited for inside a step. Not supported: routers inside a compiled or captured graph,
whose hooks do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moetrace.record.modules import Place
from moetrace.routing import Routing, RoutingBuilder

if TYPE_CHECKING:
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
    """Hooks on the routers and experts among `places`; `step()` is the index of the open step or None."""

    def __init__(self, places: Iterable[Place], step: Callable[[], int | None], config: object) -> None:
        places = [p for p in places if p.layer >= 0]
        self._step = step
        self._topk = _config_number(config, _TOPK)
        self._experts = _config_number(config, _N_EXPERTS)
        self._builder: RoutingBuilder | None = None
        self._calls: list[_Call] = []
        self._latest: dict[int, _Call] = {}
        self._flushed: set[str] = set()
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
            if step is None:
                return
            call = _read_router(_Call(step, layer, module), _tensors(output))
            self._latest[layer] = call
            self._calls.append(call)

        return hook

    def _before_experts(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            call = self._latest.get(layer)
            if call is None or call.ids is not None or self._step() is None:
                return
            tensors = _tensors((*args, *kwargs.values()))
            call.ids = next((t for t in tensors if _is_ids(t)), None)
            if call.ids is not None:
                shape = call.ids.shape
                same = (t for t in tensors if t.is_floating_point() and t.shape == shape)
                call.weights, call.source = next(same, None), EXPERTS

        return hook

    def flush(self, force: bool = False) -> None:
        """Turn held tensors into counts: always with `force`, else only once they take much memory."""
        if not force and sum(call.held_bytes() for call in self._calls) < _FLUSH_BYTES:
            return
        for call in self._calls:
            ids = chosen_experts(call.logits, call.weights, call.ids, call.router, self._k(call))
            if ids is not None:
                self._builder = self._builder or RoutingBuilder(self._count_experts(call, ids))
                self._builder.add(call.step, call.layer, ids)
                self._flushed.add(call.source)
        self._calls.clear()
        self._latest.clear()

    def sources(self) -> set[str]:
        """Where the expert ids came from: some of ROUTER, EXPERTS, LOGITS; empty if no router was seen."""
        held = {c.source for c in self._calls if c.source != LOGITS or self._k(c)}
        return held | self._flushed

    def _k(self, call: _Call) -> int | None:
        """How many experts each token gets, for a router that does not return them."""
        k: int | None = getattr(call.router, "top_k", None) or self._topk
        return k

    def routing(self) -> Routing | None:
        """What was recorded, or None if no router was seen."""
        self.flush(force=True)
        return self._builder.build() if self._builder is not None else None

    def _count_experts(self, call: _Call, ids: npt.NDArray[np.int64]) -> int:
        """Experts of the layer: as many as there are logits, else what the config says, else those seen."""
        if call.logits is not None:
            return int(call.logits.shape[-1])
        return self._experts or int(ids.max()) + 1

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


def chosen_experts(
    logits: torch.Tensor | None,
    weights: torch.Tensor | None,
    ids: torch.Tensor | None,
    router: nn.Module,
    topk: int | None,
) -> npt.NDArray[np.int64] | None:
    """Expert ids [tokens, k] with the first choice first, or None where the router gave too little to know.

    The order is that of the score by which the router chose: its weight, or for routers with a correction
    bias (DeepSeek-V3, arXiv 2412.19437, 2.1.2) sigmoid(logit) + bias. Equal scores keep the router's own
    order. Without ids they are the top-k of the logits, which is what softmax routers take since softmax
    keeps order.
    """
    if ids is None:
        if logits is None or not topk:
            return None
        every = _numpy(logits).reshape(-1, logits.shape[-1])
        return np.argsort(-every, axis=1, kind="stable")[:, :topk].astype(np.int64)
    chosen: npt.NDArray[np.int64] = ids.detach().cpu().numpy().astype(np.int64).reshape(-1, ids.shape[-1])
    scores = _scores(chosen, logits, weights, getattr(router, "e_score_correction_bias", None))
    if scores is None:
        return chosen
    ordered: npt.NDArray[np.int64] = np.take_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable"), 1)
    return ordered


def _scores(
    chosen: npt.NDArray[np.int64],
    logits: torch.Tensor | None,
    weights: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> npt.NDArray[np.float64] | None:
    """What the router chose by, for the `chosen` experts [tokens, k]; None if it gave no score."""
    if weights is not None and (bias is None or logits is None):
        return _numpy(weights).reshape(chosen.shape)
    if logits is None:
        return None
    every = _numpy(logits).reshape(-1, logits.shape[-1])
    if bias is not None:
        every = 1.0 / (1.0 + np.exp(-every)) + _numpy(bias)
    taken: npt.NDArray[np.float64] = np.take_along_axis(every, chosen, axis=1)
    return taken


def _numpy(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float64)


def _config_number(config: object, names: tuple[str, ...]) -> int | None:
    found = (config.get(n) if isinstance(config, Mapping) else getattr(config, n, None) for n in names)
    return next((int(k) for k in found if k), None)
