"""Decode steps of one model, timed without a profiler: n_a, batch, experts' way and graph changed without rebuilding."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from plan import Point

from moetrace.model import load_config
from moetrace.record.build import EXPERT_COUNTS, EXPERTS, build_config, build_model
from moetrace.record.forced import Forcing, Prescribed
from moetrace.record.fp8 import run_experts
from moetrace.record.loop import CudaGraph
from moetrace.record.modules import find_places

LEFT_OUT = 0.125  # of the steps, at the start
MOST_S = 20.0  # of a point's steps, once there are eight


class Built:
    """A model that serves all points with the same `build`."""

    def __init__(self, point: Point, device: torch.device, dtype: str) -> None:
        raw = load_config(point.model)
        self.config = build_config(raw, point.layers, None, point.n_e, point.expert_width)
        self.native = int(self.config.num_experts_per_tok)
        self.experts = (
            next(int(raw[k]) for k in EXPERT_COUNTS if raw.get(k)) if point.n_e is None else point.n_e
        )
        self.expert_dtype = point.expert_dtype
        self.model = build_model(
            self.config,
            dtype=dtype,
            experts=point.experts,
            seed=0,
            device=device,
            expert_dtype=point.expert_dtype,
        )
        self.places = find_places(self.model)
        self.device = device

    @torch.no_grad()
    def time(self, point: Point) -> dict[str, Any]:
        """Seconds of a step (median, 10 % and 90 % of the steps) and the distinct experts of a layer (mean)."""
        n_a = point.n_a or self.native
        self._set(n_a, EXPERTS[point.experts])
        forcing = Forcing(self.places, point.routing, n_a, seed=0)
        try:
            seconds = np.array(list(self._steps(point, forcing)))
        finally:
            forcing.remove()
        kept = seconds[int(len(seconds) * LEFT_OUT) :]
        asked = Prescribed(point.routing, self.experts, n_a, 0)
        layers = sorted({p.layer for p in self.places if p.part == "router"})
        distinct = [
            len(np.unique(asked.ids(s, at, point.batch))) for s in range(min(point.steps, 8)) for at in layers
        ]
        return {
            "seconds": float(np.median(kept)),
            "p10_s": float(np.quantile(kept, 0.1)),
            "p90_s": float(np.quantile(kept, 0.9)),
            "repeats": len(kept),
            "n_a": n_a,
            "n_e": self.experts,
            "distinct": float(np.mean(distinct)),
        }

    def _set(self, n_a: int, experts: str) -> None:
        if self.expert_dtype is None:
            self.config._experts_implementation = experts
        else:
            run_experts(self.config, experts)
        for module in self.model.modules():
            if isinstance(getattr(module, "top_k", None), int):
                module.top_k = n_a

    def _steps(self, point: Point, forcing: Forcing) -> Iterator[float]:
        """Seconds of each step; the cache holds `context` tokens of zeros, whose values cost as any others."""
        cache = transformers.StaticCache(config=self.config, max_cache_len=point.context + point.steps + 1)
        tokens = torch.zeros((point.batch, 1), dtype=torch.int64, device=self.device)

        def step() -> None:
            logits = self.model(input_ids=tokens, past_key_values=cache, logits_to_keep=1).logits
            tokens.copy_(logits[:, -1].argmax(-1, keepdim=True))

        forcing.prepare(0, point.batch)
        step()  # makes the cache
        _set_length(cache, point.context)
        replayed = None
        if point.graph:
            step()
            _set_length(cache, point.context)
            replayed = CudaGraph(step)
            _set_length(cache, point.context)
        until = time.monotonic() + MOST_S
        for i in range(point.steps):
            if i >= 8 and time.monotonic() > until:
                return
            forcing.prepare(i, point.batch)
            self._wait()
            began = time.perf_counter()
            step() if replayed is None else replayed.replay()
            self._wait()
            yield time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _set_length(cache: Any, length: int) -> None:
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)
