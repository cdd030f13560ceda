"""The columns of an op table that follow from its ops alone: family, kind, FLOPs, bytes, achieved rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace import ops
from moetrace.op import Op
from moetrace.run import nullable, text_column

IntArray = npt.NDArray[np.int64]


def record_columns(found: Sequence[Op], index: IntArray, dur_ns: IntArray) -> Mapping[str, pa.Array]:
    """The memory and compute record of each row: family, kind, op, FLOPs, bytes, intensity, achieved rates."""
    works = ops.works(found)
    families = [ops.family(op.kind) for op in found]
    names, kinds = sorted(set(families)), sorted({op.kind for op in found})
    unknown = ~works.known[index]
    total, flops = works["bytes"][index], works["flops"][index]
    seconds = np.maximum(dur_ns, 1) / 1e9
    idle = dur_ns <= 0
    out: dict[str, Any] = {
        "family": text_column(np.array([names.index(f) for f in families], dtype=np.int64)[index], names),
        "kind": text_column(np.array([kinds.index(op.kind) for op in found], dtype=np.int64)[index], kinds),
        "op": text_column(index, [str(op) for op in found]),
        "intensity": nullable(flops / np.maximum(total, 1e-300), unknown | (total <= 0), pa.float64()),
        "bytes_per_s": nullable(total / seconds, unknown | idle, pa.float64()),
        "flop_per_s": nullable(flops / seconds, unknown | idle, pa.float64()),
    }
    for column in ("flops", "weight_bytes", "kv_bytes", "act_bytes", "net_bytes"):
        out[column] = nullable(works[column][index], unknown, pa.float64())
    return out
