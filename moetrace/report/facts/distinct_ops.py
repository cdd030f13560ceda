"""Every distinct op of a run's steps as columns: how often, how long, its work, and what the machine's law says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.attribute import Attribution
from moetrace.report.tables import shorten
from moetrace.run import Run, codes_of

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
_NAME = 96


def distinct_ops(run: Run, attribution: Attribution) -> dict[str, Any]:
    """Columns of one entry per (op, phase) inside the steps, most time first; unknown figures are nan.

    `op`, `kernel` (the first seen), `family`, `phase`, `bound`, `provenance`, `flag` are indices into `texts` of that name, -1
    for none. `count` executions, `total_s` their time (all devices), `median_s` of one; `flops`, `bytes`, `expected_s`,
    `lower_s` of one execution, `error` of its 80 % interval.
    """
    table = attribution.table
    step = run.numpy("step").astype(np.int64)
    inside = np.flatnonzero(step >= 0)
    codes, texts = {}, {}
    for name in ("op", "phase", "kernel", "family", "bound", "provenance", "flag"):
        code, names = codes_of(table.column(name))
        codes[name], texts[name] = code[inside], names
    pair = codes["op"] * (len(texts["phase"]) + 1) + codes["phase"] + 1
    _, first, group, count = np.unique(pair, return_index=True, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    seconds = np.asarray(table.column("dur_ns").to_numpy())[inside] / 1e9
    total = np.bincount(group, weights=seconds, minlength=len(first))
    order = np.argsort(-total, kind="stable")
    chosen = inside[first[order]]
    columns: dict[str, Any] = {
        "count": count[order],
        "total_s": total[order],
        "median_s": _medians(group, seconds, count)[order],
        "flops": run.numpy("flops", np.nan)[chosen],
        "bytes": _bytes(run)[chosen],
        **{
            to: _floats(table.column(name))[chosen]
            for name, to in (("expected_s", "expected_s"), ("lower_bound_s", "lower_s"), ("error", "error"))
        },
    }
    for name, code in codes.items():
        used, place = np.unique(code[first[order]], return_inverse=True)
        known = used[used >= 0]
        columns[name] = place.reshape(-1) - (1 if used.size > known.size else 0)
        texts[name] = [shorten(texts[name][i], _NAME if name == "kernel" else 300) for i in known.tolist()]
    return {"columns": columns, "texts": texts}


def _medians(group: IntArray, values: FloatArray, count: IntArray) -> FloatArray:
    """The median of the values of each group; groups are numbered from 0 and none is empty."""
    ordered = values[np.lexsort((values, group))]
    begin = np.concatenate(([0], np.cumsum(count)[:-1]))
    low, high = begin + (count - 1) // 2, begin + count // 2
    return np.asarray((ordered[low] + ordered[high]) / 2 if ordered.size else ordered)


def _bytes(run: Run) -> FloatArray:
    parts = (run.numpy(name, np.nan) for name in ("weight_bytes", "kv_bytes", "act_bytes"))
    return np.asarray(sum(parts))


def _floats(column: Any) -> FloatArray:
    return np.asarray(column.to_numpy(), dtype=np.float64)
