"""Memory does not grow with a trace: of plain steps, with names that are all different, and with one step around everything.

The limits of what is held are made small, so that a small trace is as a long one is; what is compared are the peaks of whole
processes, with room for what the allocator does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="peaks are read from Linux's /proc"
)
_FEW, _MANY = 12_000, 48_000  # kernels
# Bytes: 36,000 more kernels with all that is made of them take 60 MB and more where they are held.
_ROOM = 20 << 20
_RUN = """
import sys
from moetrace.formats import events, piles, texts
from moetrace.parse import batches, build, kinds, long
events.IN_MEMORY, piles._HELD, batches.LONGEST = 2048, 1 << 18, 8192
for module in (events, long, piles):
    module.ROWS = 4096
for name, size in (("_PAGE", 64), ("_HELD", 1 << 16), ("_MANY", 512)):
    setattr(texts, name, size)
for module in (build, kinds):
    module._MANY = 512
sys.modules["moetrace.parse.summary"]._MOST = 512
from moetrace.attribute import attribute
from moetrace.parse import parse, summary
from moetrace.replay import replay
run = parse(sys.argv[1])
summary(run)
attribute(run, "h100-sxm")
try:
    replay(run, "h100-sxm")
finally:
    print(max(len(part.column("op")) for part in run.parts(["op"])))
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _trace(path: Path, kernels: int, kind: str) -> Path:
    """A trace of so many kernels, each launched by itself, in steps of 100 or in one."""
    numbered = kind == "names"
    with path.open("w") as file:
        file.write('{"traceEvents": [\n')
        for i in range(kernels):
            name = f"nvjet_gemm_{'x' * 80}_{1000000 + i}" if numbered else "nvjet_gemm"
            launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 10 * i, "dur": 2, "pid": 1, "tid": 7,
                      "args": {"correlation": i}}  # fmt: skip
            kernel = {"ph": "X", "cat": "kernel", "name": name, "ts": 10 * i + 3, "dur": 5, "pid": 0, "tid": 7,
                      "args": {"correlation": i, "stream": 7, "device": 0}}  # fmt: skip
            file.write(json.dumps(launch) + ",\n" + json.dumps(kernel) + ",\n")
        steps = [0] if kind == "step" else range(0, kernels, 100)
        size = 10 * kernels if kind == "step" else 1000
        one = {
            "ph": "X",
            "cat": "user_annotation",
            "name": "step[DECODE bs=4]",
            "dur": size - 1,
            "pid": 1,
            "tid": 7,
        }
        ranges = [{**one, "ts": 10 * i} for i in steps]
        file.write(",\n".join(map(json.dumps, ranges)) + "\n]}\n")
    return path


def _peak(trace: Path) -> tuple[int, int]:
    """(rows of the longest part, peak in bytes) of a process that parses, attributes and replays a trace."""
    out = subprocess.run(
        [sys.executable, "-c", _RUN, str(trace)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        check=False,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    rows, peak = out.stdout.split()
    return int(rows), int(peak) << 10


@pytest.mark.parametrize("kind", ["steps", "names", "step"])
def test_four_times_the_trace_takes_no_more_memory(tmp_path: Path, kind: str) -> None:
    few = _peak(_trace(tmp_path / "few.json", _FEW, kind))
    many = _peak(_trace(tmp_path / "many.json", _MANY, kind))
    assert many[0] <= 8192 and many[1] - few[1] < _ROOM, (few, many)
