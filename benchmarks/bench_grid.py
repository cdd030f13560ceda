"""Whole-model scenarios per second and core of a grid, and the memory it takes: one process, tables written.

    python benchmarks/bench_grid.py [mixed|numbers] [--small] [--keep DIR] [--workers N [--kill]]

`numbers`: a model on four H100s and on four H200s; batch, lengths and n_a varied together, routing over tp and ep, types of
weights and cache: 1,048,576 scenarios, or 65,536 with --small. `mixed`: what a planner asks, twelve knobs of four machines
(how many GPUs, tp, ep, dp, pp, types of weights and cache, batch, lengths, n_a): 202,752 scenarios of 704 layouts, or 50,688
with --small. With --workers the same is worked out on a LocalCluster, which with --kill loses a worker on the way.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from moetrace.replay.grid.choose import Limits, front
from moetrace.replay.grid.plan import Ask, Task
from moetrace.replay.grid.store import Grid, Made, open_grid, run_grid

MODEL = ("qwen3-30b-a3b",)
NUMBERS = (
    "batch=" + ",".join(str(4 * i) for i in range(1, 65)),
    "input_len=" + ",".join(str(256 * i) for i in range(1, 17)),
    "output_len=" + ",".join(str(2**i) for i in range(4, 12)),
    "n_a=" + ",".join(map(str, range(1, 9))),
    "tp=4",
)
SHAPES = ("ep=1,4", "dtype=bf16,fp8", "kv=bf16,fp8")
LAYOUTS = (
    *(f"{name}=1,2,4,8" for name in ("gpus", "tp", "ep", "dp")), "pp=1,2", "dtype=bf16,fp8", "kv=bf16,fp8",
)  # fmt: skip
LOADS = ("batch=1,2,4,8,16,32,64,128", "input_len=256,1024,4096", "output_len=128,512,1024", "n_a=2,4,6,8")


def asked(kind: str, small: bool) -> Ask:
    """The grid of a kind."""
    if kind == "mixed":
        few = ("h100-sxm",) if small else ("h100-sxm", "h200-sxm", "a100-sxm", "b200")
        return Ask(MODEL, few, (*LAYOUTS, *LOADS))
    machines = ("h100-sxm-x4",) if small else ("h100-sxm-x4", "h200-sxm-x4")
    return Ask(MODEL, machines, (*NUMBERS, *(() if small else SHAPES)))


def on_workers(grid: Grid, count: int, kill: bool) -> None:
    """Works the grid out on a LocalCluster of so many processes."""
    from distributed import Client, LocalCluster

    from moetrace.replay.grid.spread import on_cluster

    with LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster:

        def work(ask: Ask, waiting: list[tuple[int, Task]]) -> Iterator[Made]:
            for done, made in enumerate(on_cluster(cluster.scheduler_address, ask, waiting)):
                if kill and done == len(waiting) // 2:
                    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
                    print(f"a worker was killed after {done + 1} of {len(waiting)} tasks")
                yield made

        run_grid(grid, work=work)
        with Client(cluster) as client:
            peaks = client.run(_peak_gb)
            print("peak memory of each worker", " and ".join(f"{peak:.2f} GB" for peak in peaks.values()))


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("kind", nargs="?", choices=("mixed", "numbers"), default="mixed")
    options.add_argument("--small", action="store_true")
    options.add_argument("--keep", type=Path)
    options.add_argument("--workers", type=int)
    options.add_argument("--kill", action="store_true")
    said = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = said.keep or Path(made) / "grid"
        wall, cpu = time.perf_counter(), time.process_time()
        grid = open_grid(root, asked(said.kind, said.small))
        planned = time.process_time() - cpu
        if said.workers:
            on_workers(grid, said.workers, said.kill)
        else:
            run_grid(grid)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        begin = time.process_time()
        best, met = front(grid.parts(), Limits())
        chosen = time.process_time() - begin
        size = sum(file.stat().st_size for file in root.rglob("*.parquet"))
    print(f"{grid.plan.size:,} scenarios of {len(grid.plan.cases)} cases in {wall:.1f} s")
    if not said.workers:
        print(
            f"{cpu:.1f} CPU seconds, {planned:.1f} of them the plan: {grid.plan.size / cpu:,.0f} per CPU second"
        )
    print(f"peak memory of this process {_peak_gb():.2f} GB, tables {size / 1e6:.0f} MB")
    print(f"Pareto front in {chosen:.1f} CPU seconds: {best.num_rows if best else 0} of {met:,} that fit")


if __name__ == "__main__":
    main()
