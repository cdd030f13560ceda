"""Counter tracks of a timeline: memory bandwidth, FLOP rate and distinct experts of each rank, as they change over time.

A rate is the sum over the ops that run at that moment, each at its own mean rate; ops whose bytes or FLOPs are not known add
nothing. Distinct experts are those of the expert op that began last.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import orjson

from moetrace.run import Run

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_DIMS = ("distinct", "distinct_est")


def counters(run: Run, pid: Ints, start: Ints, dur: Ints) -> Iterator[bytes]:
    """Counter events of each process, `pid` per row; times in ns from the start of the timeline."""
    nbytes = sum((run.numpy(n, 0.0) for n in ("weight_bytes", "kv_bytes", "act_bytes")), np.zeros(len(pid)))
    experts = _distinct(run)
    for number in np.unique(pid).tolist():
        at = (pid == number) & (dur > 0)
        yield from _rate(number, "memory GB/s", start[at], dur[at], nbytes[at])
        yield from _rate(number, "TFLOP/s", start[at], dur[at], run.numpy("flops", 0.0)[at] / 1e3)
        rows = np.flatnonzero((pid == number) & (experts > 0))
        rows = rows[np.argsort(start[rows], kind="stable")]
        for begin, count in zip(start[rows].tolist(), experts[rows].tolist(), strict=True):
            yield _counter(number, "distinct experts", begin, count)


def _rate(pid: int, name: str, start: Ints, dur: Ints, amount: Floats) -> Iterator[bytes]:
    """Events at each moment where the sum of amount per ns over the running ops changes; one at the last end says 0."""
    some = amount > 0
    if not some.any():
        return
    start, dur, rate = start[some], dur[some], amount[some] / dur[some]
    times, place = np.unique(np.concatenate([start, start + dur]), return_inverse=True)
    level = np.cumsum(np.bincount(place.reshape(-1), weights=np.concatenate([rate, -rate])))
    running = np.cumsum(np.bincount(place.reshape(-1), weights=np.repeat([1.0, -1.0], len(start))))
    level = np.where(running > 0.5, level, 0.0)  # sums of rates leave a rest of rounding where nothing runs
    for at, value in zip(times.tolist(), level.tolist(), strict=True):
        yield _counter(pid, name, at, float(f"{value:.6g}"))


def _counter(pid: int, name: str, at_ns: int, value: float) -> bytes:
    return orjson.dumps(
        {"ph": "C", "pid": pid, "tid": 0, "ts": at_ns / 1e3, "name": name, "args": {"value": value}}
    )


def _distinct(run: Run) -> Floats:
    """Distinct experts that each row's op touches; 0 where it says none."""
    index, found = run.distinct_ops
    touched = [max((value for name, value in op.dims if name in _DIMS), default=0.0) for op in found]
    return np.array([*touched, 0.0])[index]
