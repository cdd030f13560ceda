"""Routing that is prescribed: a bias on the scores of each router, so that its tokens go where a distribution says.

Everything else of the model runs as it is: the router's GEMM, its softmax, top-k and normalisation, and the experts on
the rows they get. One small addition per router is all that is new. Routers whose choice is limited to groups of
experts may refuse a part of what is prescribed; `Forcing.share_taken` says how much was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.errors import MoetraceError, RunError, unknown
from moetrace.routing import Routing, dealt_ids, drawn_ids, power_law_counts

if TYPE_CHECKING:
    import torch

    from moetrace.record.modules import Place

Ids = np.ndarray[Any, np.dtype[np.int64]]
_KINDS = ("uniform", "power_law:ALPHA", "recorded:FILE")
_FIRST, _LAST, _OTHERS = 4.0, 1.0, -4.0  # scores of the first and last prescribed choice, and of all others
_OWN = 1e-3  # what is left of the router's own scores: too little to change an order


class Prescribed:
    """Expert ids by step and layer: `text` is ``uniform``, ``power_law:ALPHA`` or ``recorded:FILE``.

    FILE is a routing.parquet, or a recording or RUN that holds one. A step of as many tokens as a recorded one gets
    its counts by expert exactly (the recorded steps of that size in turn), any other a draw by the layer's recorded
    popularity. Raises MoetraceError: unknown text, or routing of another number of experts or fewer choices.
    """

    def __init__(self, text: str, experts: int, topk: int, seed: int) -> None:
        kind, _, value = text.partition(":")
        self.experts, self.topk = experts, topk
        self._seed = seed
        self._alpha: float | None = None
        self._recorded: Routing | None = None
        if kind == "power_law":
            self._alpha = _exponent(text, value)
        elif kind == "recorded" and value:
            self._recorded = _load(Path(value), experts, topk)
        elif text != "uniform":
            raise MoetraceError(unknown("routing", text, _KINDS))

    def ids(self, step: int, layer: int, tokens: int) -> Ids:
        """Expert ids [tokens, topk], the first choice first; the same for the same arguments."""
        random = np.random.default_rng((self._seed, step, layer, tokens))
        if self._recorded is not None:
            return self._as_recorded(self._recorded, step, layer, tokens, random)
        if self._alpha is None:
            return drawn_ids(np.full(self.experts, self.topk / self.experts), tokens, random)
        counts = power_law_counts(self.experts, self.topk, tokens, self._alpha, random)
        # The same experts are the popular ones of a layer in every step.
        ranking = np.random.default_rng((self._seed, layer)).permutation(self.experts)
        placed = np.empty_like(counts)
        placed[ranking] = np.sort(counts)
        return dealt_ids(placed, tokens, random)

    def _as_recorded(
        self, recorded: Routing, step: int, layer: int, tokens: int, random: np.random.Generator
    ) -> Ids:
        sizes = recorded.token_counts()
        alike = [s for (s, at), n in sizes.items() if at == layer and n == tokens]
        if not alike:
            return drawn_ids(recorded.popularity(layer, self.topk), tokens, random)
        here = (recorded.step == alike[step % len(alike)]) & (recorded.layer == layer)
        here &= recorded.rank_of_choice <= self.topk
        expert, count = recorded.expert[here], recorded.count[here]
        ids = dealt_ids(np.bincount(expert, count, self.experts).astype(np.int64), tokens, random)
        ranks = np.bincount(expert, count * recorded.rank_of_choice[here], self.experts)
        mean_rank = ranks / np.maximum(np.bincount(expert, count, self.experts), 1)
        return np.take_along_axis(ids, np.argsort(mean_rank[ids], axis=1, kind="stable"), axis=1)


def _exponent(text: str, value: str) -> float:
    try:
        alpha = float(value)
    except ValueError:
        alpha = -1.0
    if not 0 <= alpha <= 10:
        raise MoetraceError(f"--routing {text}: expected power_law:ALPHA with an exponent from 0 to 10")
    return alpha


def _load(path: Path, experts: int, topk: int) -> Routing:
    routing = Routing.load(path / "routing.parquet" if path.is_dir() else path)
    if routing.experts != experts:
        raise RunError(f"{path}: routing of {routing.experts} experts, the model has {experts}")
    if routing.topk < topk:
        raise RunError(
            f"{path}: routing of each token's first {routing.topk} choices, the model takes {topk}"
        )
    return routing


class Forcing:
    """Makes the routers among `places` follow a `Prescribed` of `text`, from the first `prepare` until `remove`."""

    def __init__(self, places: Iterable[Place], text: str, topk: int, seed: int) -> None:
        self._routers = [(p.layer, p.module) for p in places if p.part == "router" and p.layer >= 0]
        if not self._routers:
            raise MoetraceError("--routing: no router was found in this model")
        experts = int(next(self._routers[0][1].parameters()).shape[0])
        self._prescribed = Prescribed(text, experts, topk, seed)
        self._bias: dict[tuple[int, int], torch.Tensor] = {}
        self._now: dict[int, torch.Tensor] = {}
        self._asked: dict[int, torch.Tensor] = {}
        self._compared: list[tuple[torch.Tensor, Any]] | None = None
        self._taken, self._prescribed_n = 0, 0
        for layer, router in self._routers:
            router.__dict__["forward"] = self._biased(layer, router.forward)

    def prepare(self, step: int, tokens: int) -> None:
        """Prescribe the experts of the `step`-th step of `tokens` tokens; a size's buffers stay in place, for graphs."""
        import torch

        self._count()
        for layer, router in self._routers:
            ids = torch.from_numpy(self._prescribed.ids(step, layer, tokens))
            weight = next(router.parameters())
            scores = torch.full((tokens, self._prescribed.experts), _OTHERS)
            scores.scatter_(1, ids, torch.linspace(_FIRST, _LAST, ids.shape[1]).expand_as(ids))
            if (layer, tokens) not in self._bias:
                self._bias[layer, tokens] = torch.empty(
                    scores.shape, dtype=weight.dtype, device=weight.device
                )
            self._now[layer] = self._bias[layer, tokens].copy_(scores)
            self._asked[layer] = ids

    def _biased(self, layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        import torch
        from torch.nn import functional
        from torch.overrides import TorchFunctionMode

        forcing = self

        class Add(TorchFunctionMode):  # type: ignore[misc]
            """Adds the bias to the scores: the first product of the router's forward."""

            done = False

            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
            ) -> Any:
                out = func(*args, **(kwargs or {}))
                bias = forcing._now.get(layer)
                if self.done or func is not functional.linear or bias is None:
                    return out
                self.done = True
                return bias.add(out.reshape(bias.shape), alpha=_OWN).to(out.dtype).reshape(out.shape)

        def biased(*args: Any, **kwargs: Any) -> Any:
            with Add() as added:
                output = forward(*args, **kwargs)
            if not added.done and forcing._now:
                raise MoetraceError(
                    "--routing: this model's router makes its scores otherwise than by a linear layer"
                )
            captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
            if forcing._compared is not None and not captured:  # a capture computes nothing yet
                forcing._compared.append((forcing._asked[layer], output))
            return output

        return biased

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Keeps what the routers chose meanwhile, for `share_taken`; nothing is waited for within a step."""
        self._compared = []
        try:
            yield
        finally:
            self._count()
            self._compared = None

    def _count(self) -> None:
        for asked, output in self._compared or ():
            tensors = output if isinstance(output, (tuple, list)) else (output,)
            ids = next((t for t in tensors if t.dim() == 2 and not t.is_floating_point()), None)
            if ids is None:  # scores alone, the unmasked ones last
                ids = tensors[-1].reshape(-1, self._prescribed.experts).topk(self._prescribed.topk).indices
            same = (ids.cpu()[:, :, None] == asked[:, None, :]).any(dim=-1)
            self._taken += int(same.sum())
            self._prescribed_n += same.numel()
        if self._compared:
            self._compared.clear()

    @property
    def share_taken(self) -> float | None:
        """Share of the prescribed choices that the routers made while `comparing`; None if never."""
        return self._taken / self._prescribed_n if self._prescribed_n else None

    def remove(self) -> None:
        """Give the routers their own forward back."""
        for _, router in self._routers:
            router.__dict__.pop("forward", None)
        self._now.clear()
        self._bias.clear()
