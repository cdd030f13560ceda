"""Whole-model scenarios per second and core of a grid, and the memory it takes: one process, tables written.

    python benchmarks/bench_grid.py [--small] [--keep DIR]

A model on four H100s and on four H200s: batch, lengths and n_a varied together, routing over tp and ep, types of weights and
cache. 1,048,576 scenarios, or 65,536 with --small.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from moetrace.replay.grid.choose import Limits, front
from moetrace.replay.grid.plan import Ask
from moetrace.replay.grid.store import open_grid, run_grid

VARIED = (
    "batch=" + ",".join(str(4 * i) for i in range(1, 65)),
    "input_len=" + ",".join(str(256 * i) for i in range(1, 17)),
    "output_len=" + ",".join(str(2**i) for i in range(4, 12)),
    "n_a=" + ",".join(map(str, range(1, 9))),
    "tp=4",
)
SHAPES = ("ep=1,4", "dtype=bf16,fp8", "kv=bf16,fp8")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--small", action="store_true")
    options.add_argument("--keep", type=Path)
    asked = options.parse_args()
    machines = ("h100-sxm-x4",) if asked.small else ("h100-sxm-x4", "h200-sxm-x4")
    ask = Ask("qwen3-30b-a3b", machines, (*VARIED, *(() if asked.small else SHAPES)))
    with tempfile.TemporaryDirectory() as made:
        root = asked.keep or Path(made) / "grid"
        wall, cpu = time.perf_counter(), time.process_time()
        grid = open_grid(root, ask)
        run_grid(grid)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        begin = time.process_time()
        best, met = front(grid.parts(), Limits())
        chosen = time.process_time() - begin
        size = sum(file.stat().st_size for file in root.rglob("*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{grid.plan.size:,} scenarios in {wall:.1f} s, {cpu:.1f} CPU seconds: {grid.plan.size / cpu:,.0f} per CPU second"
    )
    print(f"peak memory {peak:.2f} GB, tables {size / 1e6:.0f} MB")
    print(f"Pareto front in {chosen:.1f} CPU seconds: {best.num_rows if best else 0} of {met:,} that fit")


if __name__ == "__main__":
    main()
