"""Small runs for the tests of replay: a decode loop of an MoE model, ops in the order an engine launches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from moetrace.hardware import load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.ops.columns import record_columns
from moetrace.routing import Routing, RoutingBuilder
from moetrace.run import Meta, Run, Step, nullable, ops_table, text_column

H100 = load_hardware("h100-sxm")
NODE = replace(H100, name="node-x8", base="h100-sxm", gpus=8)
EXPERTS, TOPK, HIDDEN, INTER = 64, 8, 2048, 1024
Row = tuple[int, int, str, int, int]  # step, layer (-1: none), op, start_ns, dur_ns


def olmoe(layers: int) -> ModelSpec:
    return load_model("olmoe-1b-7b").with_edits(layers=layers)


def build(rows: Sequence[Row], steps: Sequence[Step], **more: Any) -> Run:
    """A measured run on an H100 of these rows, replayed by a graph; `more` sets fields of Meta, or launch and stream."""
    launch = np.array(more.pop("launch", [-1] * len(rows)), dtype=np.int64)
    stream = np.array(more.pop("stream", [7] * len(rows)), dtype=np.int64)
    routing = more.pop("routing_counts", None)
    step, layer, text, start, dur = (list(x) for x in zip(*rows, strict=True))
    known = list(dict.fromkeys(text))
    index = np.array([known.index(t) for t in text], dtype=np.int64)
    step, layer, dur = (np.array(x, dtype=np.int64) for x in (step, layer, dur))
    kinds = sorted({t.split()[0] for t in known})
    phases = [s.phase or "decode" for s in steps]
    names = sorted(set(phases))
    phase = np.array([names.index(p) for p in phases] + [-1], dtype=np.int64)[step]
    table = ops_table(
        {
            "rank": pa.array(np.zeros(len(rows), np.int64)),
            "device": pa.array(np.zeros(len(rows), np.int64)),
            "stream": pa.array(stream),
            "step": nullable(step, step < 0, pa.int32()),
            "phase": text_column(phase, names),
            "layer": nullable(layer, layer < 0, pa.int32()),
            "kernel": text_column(np.array([kinds.index(t.split()[0]) for t in text], dtype=np.int64), kinds),
            "start_ns": pa.array(np.array(start, dtype=np.int64)),
            "dur_ns": pa.array(dur),
            "launch_ns": nullable(launch, launch < 0, pa.int64()),
            **record_columns([Op.parse(t) for t in known], index, dur),
        }
    )
    given = {"kind": "measured", "source": "test", "device": "NVIDIA H100", "hardware": "h100-sxm", **more}
    return Run(Meta(steps=tuple(steps), **given), table, routing)


def layer_ops(tokens: int, kv: int, distinct: Sequence[int | None], layer: int) -> list[str]:
    """The ops of one MoE layer."""
    experts = f"tokens={tokens} hidden={HIDDEN} inter={INTER} experts={EXPERTS} topk={TOPK}"
    if distinct[layer] is not None:
        experts += f" distinct={distinct[layer]}"
    return [
        f"norm bf16 tokens={tokens} width={HIDDEN}",
        f"qkv_proj bf16 m={tokens} n={3 * HIDDEN} k={HIDDEN}",
        f"attention bf16 batch={tokens} heads=16 kv_heads=16 head_dim=128 kv={kv}",
        f"o_proj bf16 m={tokens} n={HIDDEN} k={HIDDEN}",
        f"norm bf16 tokens={tokens} width={HIDDEN}",
        f"router bf16 m={tokens} n={EXPERTS} k={HIDDEN}",
        f"topk fp32 tokens={tokens} experts={EXPERTS} topk={TOPK}",
        f"moe_gate_up bf16 {experts}",
        f"moe_act bf16 tokens={tokens} inter={INTER} topk={TOPK}",
        f"moe_down bf16 {experts}",
        f"moe_combine bf16 tokens={tokens} hidden={HIDDEN} topk={TOPK}",
    ]


def decode_run(
    layers: int = 2, tokens: int = 16, context: int = 256, steps: int = 2, recorded: bool = True, **more: Any
) -> Run:
    """A decode loop: `steps` steps of `layers` MoE layers, 2 us between ops; with recorded routing or without."""
    routing = recorded_routing(layers, tokens, steps) if recorded else None
    counts = routing.distinct() if routing else {}
    rows: list[Row] = []
    spans, now = [], 1_000_000
    for step in range(steps):
        begin, kv = now, tokens * (context + step)
        distinct = [counts.get((step, layer)) for layer in range(layers)]
        ops = [(-1, f"embedding bf16 tokens={tokens} hidden={HIDDEN}")]
        ops += [(layer, op) for layer in range(layers) for op in layer_ops(tokens, kv, distinct, layer)]
        ops += [(-1, f"lm_head bf16 m={tokens} n=50304 k={HIDDEN}"), (-1, "elementwise bf16")]
        for layer, op in ops:
            dur = 5_000 + 37 * (len(rows) % 11) + (80_000 if "moe_gate_up" in op else 0)
            rows.append((step, layer, op, now, dur))
            now += dur + 2_000
        spans.append(Step(step, f"decode {step}", "decode", begin, now - 2_000, tokens, tokens, kv))
        now += 50_000
    given = {"model": olmoe(layers), "native_layers": 16, "routing_counts": routing, **more}
    return build(rows, spans, **given)


def recorded_routing(layers: int, tokens: int, steps: int) -> Routing:
    """Routing drawn with a skew: low expert numbers are more popular."""
    rng = np.random.default_rng(0)
    weight = np.linspace(2.0, 0.2, EXPERTS)
    builder = RoutingBuilder(EXPERTS)
    for step in range(steps):
        for layer in range(layers):
            keys = np.log(rng.random((tokens, EXPERTS))) / weight
            builder.add(step, layer, np.argsort(-keys, axis=1)[:, :TOPK])
    return builder.build()


def span_ns(run: Run) -> list[int]:
    return [s.end_ns - s.start_ns for s in run.meta.steps]
