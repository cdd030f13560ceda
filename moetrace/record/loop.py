"""Prefill, then greedy decode, with a static KV cache: step by step, or the decode step as one replayed graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from moetrace.errors import MoetraceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from moetrace.record.forced import Forcing
    from moetrace.record.recorder import Recorder

_WARM_UP = 2  # runs before a capture: libraries allocate and choose kernels in them


class Graph(Protocol):
    """A function without arguments that was captured and can be replayed."""

    def replay(self) -> None: ...


class CudaGraph:
    """A torch.cuda.CUDAGraph of one call of `run`, captured when made (not run on a GPU so far)."""

    def __init__(self, run: Callable[[], None]) -> None:
        import torch

        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            run()

    def replay(self) -> None:
        self._graph.replay()


class Loop:
    """The same steps each time `run` is called: ``chosen`` tokens and ``seconds`` of each, prefill first.

    `model` maps input ids [batch, n] and `cache` to logits. With `graph`, which makes a Graph of a function, the
    decode step is captured once, in the first run, and replayed from then on.
    """

    def __init__(
        self,
        model: nn.Module,
        prompt: torch.Tensor,
        cache: Any,
        steps: int,
        *,
        forcing: Forcing | None = None,
        graph: Callable[[Callable[[], None]], Graph] | None = None,
    ) -> None:
        self._model, self._prompt, self._cache, self._steps = model, prompt, cache, steps
        self._forcing, self._make_graph = forcing, graph
        self._graph: Graph | None = None
        self._tokens = prompt[:, :1].clone()  # a decode step reads its input here and leaves its choice here
        self.chosen: list[list[int]] = []
        self.seconds: list[float] = []
        if graph is not None and any(getattr(layer, "is_sliding", False) for layer in cache.layers):
            raise MoetraceError(
                "--graph: the sliding-window layers of this model keep their length in Python, which a replayed "
                "graph would not advance; leave out --graph"
            )

    def run(self, rec: Recorder | None, prefill: bool = True) -> None:
        """All steps from an empty cache. Recorded into `rec` where given, the prefill only if `prefill`."""
        import torch

        self._cache.reset()
        self.chosen, self.seconds = [], []
        batch, context = self._prompt.shape
        with torch.no_grad():
            self._prepare(0, batch * context)
            with self._step(rec if prefill else None, "prefill", batch * context, batch * context):
                tokens = self._forward(self._prompt, rec if prefill else None)
                self._tokens.copy_(tokens)
            for i in range(self._steps):
                self._prepare(i, batch)
                if self._make_graph is not None and self._graph is None:
                    self._capture(self._make_graph, context + i)
                with self._step(rec, "decode", batch, batch * (context + i + 1)):
                    self._decode(rec)

    def _prepare(self, step: int, tokens: int) -> None:
        if self._forcing is not None:
            self._forcing.prepare(step, tokens)

    def _step(self, rec: Recorder | None, phase: str, tokens: int, kv_tokens: int) -> _Timed:
        recorded = (
            nullcontext()
            if rec is None
            else rec.step(phase, batch=len(self._tokens), tokens=tokens, kv_tokens=kv_tokens)
        )
        return _Timed(self, recorded)

    def _decode(self, rec: Recorder | None) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._tokens.copy_(self._forward(self._tokens, rec))

    def _forward(self, tokens: torch.Tensor, rec: Recorder | None = None) -> torch.Tensor:
        logits = self._model(input_ids=tokens, past_key_values=self._cache, logits_to_keep=1).logits
        with nullcontext() if rec is None else rec.part("sampling"):
            chosen: torch.Tensor = logits[:, -1].argmax(-1, keepdim=True)
        return chosen

    def _capture(self, make: Callable[[Callable[[], None]], Graph], length: int) -> None:
        """Capture the decode step; the cache and the input are afterwards as they were."""
        before = self._tokens.clone()

        def step() -> None:
            self._tokens.copy_(self._forward(self._tokens))

        for run in (step,) * _WARM_UP:
            run()
            self._rewind(length, before)
        self._graph = make(step)
        self._rewind(length, before)

    def _rewind(self, length: int, tokens: torch.Tensor) -> None:
        """Set back what a decode step advances: what it wrote into the cache is written again."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(length)
        self._tokens.copy_(tokens)


class _Timed:
    """A step: recorded inside of `recorded`, timed from its begin until its tokens are on the host."""

    def __init__(self, loop: Loop, recorded: Any) -> None:
        self._loop, self._recorded = loop, recorded

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        self._recorded.__enter__()

    def __exit__(self, *failure: Any) -> None:
        self._recorded.__exit__(*failure)
        if failure[0] is None:
            self._loop.chosen.append(self._loop._tokens.flatten().tolist())  # waits for the device
            self._loop.seconds.append(round(time.perf_counter() - self._began, 6))
