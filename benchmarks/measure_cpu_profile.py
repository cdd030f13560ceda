"""Measures this machine's copy bandwidth and GEMM ceilings and prints them as the TOML of a `cpu` profile.

    python benchmarks/measure_cpu_profile.py [--threads N] > my-cpu.toml

Takes about a minute on an idle machine: the best of several runs is kept, as a ceiling should be. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

BUFFER = 1 << 28  # bytes; far beyond any last-level cache
GEMMS = (
    ("fp32", torch.float32, 2048),
    ("bf16", torch.bfloat16, 2048),
    ("fp64", torch.float64, 1024),
    ("fp16", torch.float16, 384),
)


def best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth() -> tuple[float, float]:
    """(copy, read) bytes/s; a copy counts what it reads and what it writes."""
    source, target = torch.ones(BUFFER, dtype=torch.uint8), torch.zeros(BUFFER, dtype=torch.uint8)
    words = source.view(torch.int64)
    return 2 * BUFFER / best(lambda: target.copy_(source), 12), BUFFER / best(lambda: words.sum(), 12)


def gemm(dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square matrix multiply."""
    matrix = torch.randn(size, size).to(dtype)
    return 2 * size**3 / best(lambda: matrix @ matrix, 8)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(
        line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    value = {key.strip(): text.strip() for key, text in fields.items()}
    return f"{value.get('model name', '?')}, family {value.get('cpu family', '?')} model {value.get('model', '?')}"


def cache_bytes() -> int:
    """Bytes of the last-level cache; 32 MB where the system does not say."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(
        (int(s[:-1]) * {"K": 1024, "M": 1 << 20}[s[-1]] for s in sizes if s[-1] in "KM"), default=32_000_000
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    notes = []
    for threads in sorted({1, args.threads}):
        torch.set_num_threads(threads)
        copy, read = bandwidth()
        peak = {name: gemm(dtype, size) for name, dtype, size in GEMMS}
        rates = ", ".join(f"{name} {flops / 1e9:.1f}" for name, flops in peak.items())
        notes.append(
            f"{threads} thread(s): copy {copy / 1e9:.1f} GB/s, read {read / 1e9:.1f} GB/s, GEMM {rates} GFLOP/s"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"# {cpu_name()}, {datetime.now(timezone.utc):%Y-%m-%d}, PyTorch {torch.__version__}")
    print("".join(f"# {note}\n" for note in notes))
    print(f'[measured]\nsource = "benchmarks/measure_cpu_profile.py on {cpu_name()}, {args.threads} threads, '
          f'{datetime.now(timezone.utc):%Y-%m-%d}"')  # fmt: skip
    print("peak_flops = { " + ", ".join(f"{name} = {flops:.3g}" for name, flops in peak.items()) + " }")
    print(
        f"memory_bytes = {memory}\nmemory_bytes_per_s = {max(copy, read):.3g}\ncache_bytes = {cache_bytes()}"
    )
    print(f"# copy at {copy / max(copy, read):.2f} of the best bandwidth")


if __name__ == "__main__":
    main()
