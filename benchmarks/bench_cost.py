"""Op costs per second and core of `moetrace.cost`, with and without its routing known: CPU seconds of one process.

    python benchmarks/bench_cost.py [--rows 1000000] [--hw h100-sxm] [--repeat 3]

Two tables: whole MoE ops of many shapes under four routings and every TP x EP of a node, and a mixture of MoE, GEMM,
attention and norm ops. The first pass over the MoE table works the routing out and is reported apart.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyarrow as pa

import moetrace


def moe_table(rows: int, random: np.random.Generator) -> pa.Table:
    """Whole MoE ops: shapes, routings and ranks drawn independently."""

    def some(*values: object) -> np.ndarray:
        return np.array(values)[random.integers(0, len(values), rows)]

    return pa.table(
        {
            "kind": some("moe_experts"),
            "dtype": some("bf16", "fp8"),
            "tokens": some(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            "hidden": some(2048, 4096, 7168),
            "inter": some(768, 1408, 2048),
            "experts": some(64, 128, 256),
            "topk": some(2, 4, 6, 8),
            "moe_tp": some(1, 2, 4),
            "moe_ep": some(1, 2, 4, 8),
            "routing": some("uniform", "balanced", "power_law:1.2", "power_law:1.01"),
        }
    )


def mixed_table(rows: int, random: np.random.Generator) -> pa.Table:
    """Ops of four kinds, each with its own dims, null elsewhere."""
    kind = random.integers(0, 4, rows)
    tokens = 2.0 ** random.integers(0, 10, rows)
    dims: dict[str, tuple[int, np.ndarray]] = {
        "m": (0, tokens), "n": (0, random.integers(1, 64, rows) * 128.0), "k": (0, random.integers(1, 64, rows) * 128.0),
        "batch": (2, tokens), "heads": (2, np.full(rows, 32.0)), "kv_heads": (2, np.full(rows, 8.0)),
        "head_dim": (2, np.full(rows, 128.0)), "context": (2, random.integers(1, 64, rows) * 256.0),
        "width": (3, np.full(rows, 4096.0)),
        "hidden": (1, np.full(rows, 4096.0)), "inter": (1, np.full(rows, 1536.0)), "experts": (1, np.full(rows, 128.0)),
        "topk": (1, np.full(rows, 8.0)),
    }  # fmt: skip
    columns = {name: np.where(kind == at, values, np.nan) for name, (at, values) in dims.items()}
    return pa.table(
        {
            "kind": np.array(["gemm", "moe_experts", "attention", "norm"])[kind],
            "dtype": np.full(rows, "bf16"),
            "tokens": np.where((kind == 1) | (kind == 3), tokens, np.nan),
            **columns,
        }
    )


def cpu_seconds(table: pa.Table, hw: str) -> float:
    """CPU seconds of one pricing."""
    begin = time.process_time()
    moetrace.cost(table, hw)
    return time.process_time() - begin


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--hw", default="h100-sxm")
    options.add_argument("--repeat", type=int, default=3)
    asked = options.parse_args()
    random = np.random.default_rng(0)
    for name, table in (("MoE", moe_table(asked.rows, random)), ("mixed", mixed_table(asked.rows, random))):
        first = cpu_seconds(table, asked.hw)
        best = min(cpu_seconds(table, asked.hw) for _ in range(asked.repeat))
        print(
            f"{name}: {asked.rows / best:,.0f} op costs per CPU second; the first pass took {first - best:.1f} s more"
        )


if __name__ == "__main__":
    main()
