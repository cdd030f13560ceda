"""Single ops timed cold: expert GEMMs by distinct experts and rows, attention by context, ceilings, launch cost.

Each op works in turn on copies of its weights or cache that together exceed the last-level cache several times, so that
a call finds none of its bytes there. On CUDA the calls of one sample lie in one graph, whose time is divided by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from torch.nn import functional

from moetrace.op import Op

_COLD_BYTES = 256 << 20  # copies of an op's weights take at least so many together; H100 has 50 MB of L2
_MOST_COPIES = 32
_MOST_CACHE = 8 << 30
_SAMPLE_S, _SAMPLES = 0.002, 15
# hidden, expert width, experts of the four models
EXPERT_SHAPES = ((2048, 1024, 64), (2048, 768, 128), (2048, 1408, 64), (4096, 14336, 8))
ATTENTION_SHAPES = ((16, 16, 128), (32, 4, 128), (32, 8, 128))  # heads, KV heads, head dim
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timed:
    """An op, how it ran, and its calls: one for each copy of what it reads."""

    op: Op
    kernel: str
    calls: Sequence[Call]
    in_graph: bool = True


def ops(device: torch.device, small: bool) -> Iterator[tuple[str, Callable[[], Timed]]]:
    """(key, what makes it) of every op, in order; making one allocates its tensors."""
    yield from _expert_ops(device, small)
    contexts, batches = ((16,), (2,)) if small else ((512, 2048, 8192, 32768), (1, 8, 16, 64))
    for heads, kv_heads, dim in ((4, 2, 16),) if small else ATTENTION_SHAPES:
        for context, batch in product(contexts, batches):
            if batch * context * kv_heads * dim * 4 <= _MOST_CACHE:
                key = f"attention {heads} {kv_heads} {dim} {context} {batch}"
                yield key, partial(_attention, device, heads, kv_heads, dim, context, batch)
    widths = ((64, 64),) if small else ((2048, 2048), (5120, 2048), (4096, 4096), (8192, 8192))
    rows = (1, 17) if small else (1, 8, 16, 32, 64, 128, 512, 2048, 8192)
    for (n, k), m, dtype in product(widths, rows, ("bf16", "fp8", "int8")):
        yield f"gemm {dtype} {m} {n} {k}", partial(_gemm, device, dtype, m, n, k)
    for size in (1 << 12,) if small else (1 << 12, 1 << 20, 1 << 26, 1 << 30):
        yield f"memcpy {size}", partial(_copy, device, size)
    for in_graph in (True, False) if device.type == "cuda" else (False,):
        yield f"launch {in_graph}", partial(_launch, device, in_graph)


def _expert_ops(device: torch.device, small: bool) -> Iterator[tuple[str, Callable[[], Timed]]]:
    """Distinct experts from one to all, each with from one row to many; in fp8 where there is such a kernel."""
    dtypes = ("bf16", "fp8") if device.type == "cuda" else ("bf16",)
    for shape in ((64, 32, 8),) if small else EXPERT_SHAPES:
        experts = shape[2]
        counts = {1, 2, 4, *(experts // n for n in (8, 4, 2)), experts} & set(range(1, experts + 1))
        for distinct, each in product(sorted(counts), (1, 4) if small else (1, 2, 4, 8, 32)):
            rows = distinct * each
            for kind, dtype in product(("moe_gate_up", "moe_down"), dtypes):
                key = f"{kind} {dtype} {shape[0]} {shape[1]} {experts} {distinct} {rows}"
                yield key, partial(_experts, device, kind, dtype, shape, distinct, rows)


def _copies(one_bytes: float) -> int:
    return int(min(_MOST_COPIES, max(1, -(-_COLD_BYTES // max(one_bytes, 1)))))


def _experts(
    device: torch.device, kind: str, dtype: str, shape: tuple[int, int, int], distinct: int, rows: int
) -> Timed:
    """A grouped GEMM over all experts of which the first `distinct` of a random order get `rows` rows together."""
    hidden, inter, experts = shape
    wide, deep = (2 * inter, hidden) if kind == "moe_gate_up" else (hidden, inter)
    share = np.zeros(experts, dtype=np.int64)
    share[np.random.default_rng(0).permutation(experts)[:distinct]] = rows // distinct
    ends = torch.from_numpy(np.cumsum(share)).to(device=device, dtype=torch.int32)
    x = torch.randn(rows, deep, device=device, dtype=torch.bfloat16)
    copies = _copies(distinct * wide * deep * (1 if dtype == "fp8" else 2))
    copies = min(copies, max(1, int(16e9 // (experts * wide * deep * 2))))
    weights = [torch.randn(experts, wide, deep, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    op = Op.of(
        kind, dtype, tokens=rows, hidden=hidden, inter=inter, experts=experts, topk=1, distinct=distinct
    )
    if dtype == "fp8":
        return Timed(op, "torch._scaled_grouped_mm", [_scaled_grouped(x, w, ends) for w in weights])
    grouped = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    return Timed(
        op, "torch grouped_mm", [partial(grouped, x, w.transpose(-2, -1), offs=ends) for w in weights]
    )


def _scaled_grouped(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> Call:
    """fp8 rows times fp8 experts, one scale for each row and each output channel."""
    x8, w8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn).transpose(-2, -1)
    rows = torch.ones(x.shape[0], device=x.device)
    channels = torch.ones(weight.shape[:2], device=x.device)
    return lambda: torch._scaled_grouped_mm(x8, w8, rows, channels, offs=ends, out_dtype=torch.bfloat16)


def _attention(device: torch.device, heads: int, kv_heads: int, dim: int, context: int, batch: int) -> Timed:
    copies = _copies(2.0 * batch * context * kv_heads * dim * 2)
    q = torch.randn(batch, heads, 1, dim, device=device, dtype=torch.bfloat16)
    size = (batch, kv_heads, context, dim)
    pairs = [
        tuple(torch.randn(size, device=device, dtype=torch.bfloat16) for _ in "kv") for _ in range(copies)
    ]
    calls = [_attend(q, k, v) for k, v in pairs]
    op = Op.of(
        "attention", "bf16", batch=batch, heads=heads, kv_heads=kv_heads, head_dim=dim, kv=batch * context
    )
    return Timed(op, "torch scaled_dot_product_attention", calls)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Call:
    return lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _gemm(device: torch.device, dtype: str, m: int, n: int, k: int) -> Timed:
    """Weights [n, k], activations [m, k]. int8 wants more than 16 rows on CUDA: fewer are padded, as engines do."""
    op = Op.of("gemm", dtype, m=m, n=n, k=k)
    copies = _copies(n * k * (2 if dtype == "bf16" else 1))
    if dtype == "int8":
        rows = torch.randint(-8, 8, (max(m, 17), k), device=device, dtype=torch.int8)
        ints = [torch.randint(-8, 8, (n, k), device=device, dtype=torch.int8) for _ in range(copies)]
        return Timed(op, "torch._int_mm", [partial(torch._int_mm, rows, w.t()) for w in ints])
    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    weights = [torch.randn(n, k, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    if dtype == "fp8":
        return Timed(op, "torch._scaled_mm", [_scaled(x, w) for w in weights])
    return Timed(op, "torch linear", [partial(functional.linear, x, w) for w in weights])


def _scaled(x: torch.Tensor, weight: torch.Tensor) -> Call:
    x8, w8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=x.device)
    return lambda: torch._scaled_mm(x8, w8, one, one, out_dtype=torch.bfloat16)


def _copy(device: torch.device, size: int) -> Timed:
    copies = _copies(2.0 * size)
    pairs = [tuple(torch.zeros(size, device=device, dtype=torch.uint8) for _ in "st") for _ in range(copies)]
    return Timed(Op.of("memcpy", "int32", bytes=size), "torch copy_", [partial(t.copy_, s) for s, t in pairs])


def _launch(device: torch.device, in_graph: bool) -> Timed:
    """The smallest kernel there is: what a call costs beyond its work."""
    one = torch.zeros(1, device=device, dtype=torch.bfloat16)
    how = "a node of a graph" if in_graph else "launched one by one"
    return Timed(
        Op.of("elementwise", "bf16", elements=1), f"torch add_, {how}", [partial(one.add_, 1)] * 64, in_graph
    )


@torch.no_grad()
def time_op(timed: Timed, device: torch.device) -> np.ndarray:
    """Seconds of a call, [samples]: each the mean over a sample of all copies, as often as takes about 2 ms."""
    run, wait = _runner(timed, device)
    run()
    wait()
    began = time.perf_counter()
    run()
    wait()
    once = max(time.perf_counter() - began, 1e-7)
    times = max(1, int(_SAMPLE_S / once))
    samples = []
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        for _ in range(times):
            run()
        wait()
        samples.append((time.perf_counter() - began) / (times * len(timed.calls)))
    return np.array(samples)


def _runner(timed: Timed, device: torch.device) -> tuple[Callable[[], object], Callable[[], None]]:
    def every() -> None:
        for call in timed.calls:
            call()

    if device.type != "cuda":
        return every, lambda: None
    every()  # kernels are chosen and workspaces made before a capture
    torch.cuda.synchronize()
    if not timed.in_graph:
        return every, torch.cuda.synchronize
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        every()
    return graph.replay, torch.cuda.synchronize
