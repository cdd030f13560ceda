"""What the campaign measures: decode points, ops and whole traces, the most telling first, so that a cut run serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetrace.model import load_config

# Layers that fit one GPU of 80 GB in bf16 (Mixtral has 32), and n_a swept below and above the model's own.
FULL: dict[str, tuple[int, tuple[int, ...]]] = {
    "olmoe-1b-7b": (16, (1, 2, 4, 6, 10, 12)),
    "qwen3-30b-a3b": (48, (1, 2, 4, 6, 10)),
    "deepseek-v2-lite": (27, (1, 2, 4, 8)),
    "mixtral-8x7b": (16, (1, 3, 4)),
}
BATCHES = (16, 1, 64, 8, 32, 128)
VARIED = "olmoe-1b-7b"  # n_e and expert width are varied on this one
N_E, WIDTHS = (16, 32, 128), (512, 2048)
SKEWS = ("power_law:0.8", "power_law:1.2", "power_law:2")


@dataclass(frozen=True, slots=True)
class Point:
    """One decode to time. `n_a`, `n_e` and `expert_width` are None for the model's own."""

    model: str
    layers: int
    batch: int
    context: int = 512
    steps: int = 32
    n_a: int | None = None
    n_e: int | None = None
    expert_width: int | None = None
    experts: str = "fused"
    graph: bool = True
    routing: str = "uniform"
    expert_dtype: str | None = None

    @property
    def build(self) -> tuple[object, ...]:
        """Points that share it run on one and the same model."""
        return self.model, self.layers, self.n_e, self.expert_width, self.expert_dtype

    @property
    def is_first(self) -> bool:
        """Of what tells most: the model as it is, at each batch, as it is served."""
        own = (self.n_a, self.n_e, self.expert_width, self.expert_dtype) == (None,) * 4
        return own and self.experts == "fused" and self.graph and self.routing == "uniform"

    @property
    def key(self) -> str:
        name = Path(self.model).stem if self.model.endswith(".json") else self.model
        sizes = f"l{self.layers} b{self.batch} c{self.context} k{self.n_a} e{self.n_e} w{self.expert_width}"
        stored = f" {self.expert_dtype}" if self.expert_dtype else ""
        return f"{name} {sizes} {self.experts} {'graph' if self.graph else 'eager'} {self.routing}{stored}"


def decode_points(models: tuple[str, ...], small: bool, graphs: bool) -> list[Point]:
    """All decode points, by how much they tell; without `graphs` everything is eager. `small`: a few of each sort."""
    found: list[Point] = []
    batches = (2, 1) if small else BATCHES
    few = (2,) if small else (16, 64)
    for model in models:
        layers, sweep = _layers(model, small)
        common: dict[str, Any] = {"context": 8, "steps": 3} if small else {}
        sweep = sweep[:1] if small else sweep
        for batch in batches:
            found += [Point(model, layers, batch, n_a=n_a, graph=graphs, **common) for n_a in (None, *sweep)]
        modes = [(e, False) for e in ("fused", "unfused")]
        found += [Point(model, layers, b, experts=e, graph=g, **common) for e, g in modes for b in batches]
        stored = [("fused", True), ("unfused", False)] if graphs else [("unfused", False)]
        found += [
            Point(model, layers, b, experts=e, graph=g, expert_dtype="fp8", **common)
            for e, g in stored
            for b in (batches if e == "fused" else few)
        ]
        if model == VARIED or small:
            varied = [(n, None) for n in N_E] + [(None, w) for w in WIDTHS]
            for n_e, width in varied[2:4] if small else varied:
                found += [
                    Point(model, layers, b, n_e=n_e, expert_width=width, graph=graphs, **common) for b in few
                ]
        if model in ("olmoe-1b-7b", "qwen3-30b-a3b") or small:
            for routing in SKEWS[1:2] if small else SKEWS:
                found += [Point(model, layers, b, routing=routing, graph=graphs, **common) for b in few]
    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda p: (models.index(p.model), unique.index(p)))


def _layers(model: str, small: bool) -> tuple[int, tuple[int, ...]]:
    config = load_config(model)
    if model in FULL and not small:
        return FULL[model]
    least = int(config.get("first_k_dense_replace") or 0) + 1
    topk = int(config["num_experts_per_tok"])
    return (least if small else int(config["num_hidden_layers"])), (max(1, topk // 2),)


def traces(models: tuple[str, ...], small: bool, graphs: bool) -> dict[str, dict[str, Any]]:
    """Name -> options of `moetrace record`: three whole traces of each model, two layers with experts each."""
    found: dict[str, dict[str, Any]] = {}
    modes: list[tuple[str, dict[str, Any]]] = [
        ("b16-graph", {"batch": 16, "graph": True}) if graphs else ("b16", {"batch": 16}),
        ("b64-eager", {"batch": 64}),
        ("b16-skew", {"batch": 16, "routing": "power_law:1.2"}),
    ]
    for model in models:
        name = Path(model).stem if model.endswith(".json") else model
        layers = int(load_config(model).get("first_k_dense_replace") or 0) + (1 if small else 2)
        sizes = {"context": 8, "steps": 2} if small else {"context": 512, "steps": 4}
        for label, options in modes[:1] if small else modes:
            options = {**options, **({"batch": 2} if small else {})}
            found[f"{name}-{label}"] = {
                "model": model,
                "layers": layers,
                "prefill": False,
                **sizes,
                **options,
            }
    return found
