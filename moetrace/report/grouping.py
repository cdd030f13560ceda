"""The rows of an attribution's table: the summary's own, with the bytes that the run knows of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.attribute import Attribution
from moetrace.run import Run, codes_of

SUMMARISED = {"family": "families", "kind": "kinds", "kernel": "kernels", "layer": "layers", "step": "steps"}


def groups(run: Run, attribution: Attribution, by: str) -> list[dict[str, Any]]:
    """One dict per group, as in the summary, named at key `by`, with `bytes` and achieved `bytes_per_s` added.

    `count` and `halving_saves_share` are filled in where the summary leaves them out.

    Bytes per second are over the durations of ops whose bytes are known, None where there are none.
    """
    rows = attribution.summary[SUMMARISED[by]]
    if by == "step":
        return [{**row, "step": row["index"]} for row in rows]
    code, names = _codes(attribution, by)
    weight, kv, act = (run.numpy(f"{what}_bytes", np.nan) for what in ("weight", "kv", "act"))
    moved = weight + kv + act
    at = (run.numpy("step") >= 0) & (code >= 0) & ~np.isnan(moved)
    size = np.bincount(code[at], weights=moved[at], minlength=len(names))
    time = np.bincount(code[at], weights=run.numpy("dur_ns")[at] / 1e9, minlength=len(names))
    count = np.bincount(code[(run.numpy("step") >= 0) & (code >= 0)], minlength=len(names))
    place = {name: i for i, name in enumerate(names)}
    return [
        {
            "count": int(count[i]),
            "halving_saves_share": row["share"] / 2,
            **row,
            **_achieved(size[i], time[i]),
        }
        for row in rows
        for i in (place[row[by]],)
    ]


def _codes(attribution: Attribution, by: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """(group per row, -1 for none; the groups' names)."""
    if by != "layer":
        return codes_of(attribution.table.column(by))
    layer = attribution.table.column("layer").fill_null(-1).to_numpy().astype(np.int64)
    return layer, list(range(int(layer.max(initial=-1)) + 1))


def _achieved(size: float, time: float) -> dict[str, float | None]:
    return {"bytes": float(size), "bytes_per_s": float(size / time) if time else None}
