"""From resolved rows to the Run's op table: distinct facts -> Ops, Ops -> work, work spread over the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace import ops
from moetrace.formats.events import Events, Tensors
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops import Seen
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import CAPTURE, MODEL, NAME, NONE, SHAPES, SOURCES, Rows
from moetrace.parse.steps import StepName
from moetrace.routing import Routing
from moetrace.run import nullable, text_column

_NO_TENSORS = Tensors()
_ROUTED = ("moe_gate_up", "moe_down", "moe_experts")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where each row lies: step and layer (-1: none), and the code of its role and its part in `labels`."""

    step: IntArray
    layer: IntArray
    kind: Sequence[str]  # per distinct (kernel, operator): see kind_index
    kind_index: IntArray
    role: IntArray
    part: IntArray
    labels: Sequence[str]


def build_ops(
    events: Events, rows: Rows, placed: Placed, steps: Sequence[StepName], model: ModelSpec | None, tp: int
) -> tuple[IntArray, list[Op], npt.NDArray[np.int8]]:
    """(op index per row, the distinct ops, source per row): one call of the op families per distinct set of facts."""
    pad = _padding(events, rows, model)
    window = _windows(placed.layer, model)
    key = np.stack(
        [
            placed.kind_index,
            rows.kernel,
            rows.operator,
            rows.tensors,
            rows.message,
            rows.nbytes,
            placed.role,
            placed.part,
            window,
            _step_facts(placed.step, steps),
        ],
        axis=1,
    )
    distinct, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    found: dict[Op, int] = {}
    index = np.zeros(len(distinct), dtype=np.int64)
    source = np.zeros(len(distinct), dtype=np.int8)
    for i, row in enumerate(first.tolist()):
        step = steps[placed.step[row]] if placed.step[row] >= 0 else None
        kind, seen = _seen(events, rows, placed, row, step, model, tp, pad, int(window[row]))
        op = ops.build(kind, seen)
        index[i] = found.setdefault(op, len(found))
        source[i] = _source(op, rows, row)
    flat = inverse.reshape(-1)
    return index[flat], list(found), source[flat]


def _seen(
    events: Events,
    rows: Rows,
    placed: Placed,
    row: int,
    step: StepName | None,
    model: ModelSpec | None,
    tp: int,
    pad: int,
    window: int,
) -> tuple[str, Seen]:
    tensors = events.tensor_sets[rows.tensors[row]] if rows.tensors[row] >= 0 else _NO_TENSORS
    message = events.tensor_sets[rows.message[row]] if rows.message[row] >= 0 else _NO_TENSORS
    role = placed.labels[placed.role[row]] if placed.role[row] >= 0 else ""
    kind = placed.kind[placed.kind_index[row]]
    seen = Seen(
        kernel=events.texts[rows.kernel[row]],
        operator=events.texts[rows.operator[row]] if rows.operator[row] >= 0 else "",
        shapes=tensors.shapes,
        dtypes=tensors.dtypes,
        nbytes=int(rows.nbytes[row]) or message.nbytes,
        group=message.group or (tp if kind in ("all_reduce", "all_gather", "reduce_scatter") else 0),
        part=placed.labels[placed.part[row]] if placed.part[row] >= 0 else "",
        role=role,
        phase=step.phase if step else None,
        batch=step.batch if step else None,
        tokens=step.tokens if step else None,
        kv_tokens=step.kv_tokens if step else None,
        window=window,
        model=model,
        tp=tp,
        pad=pad,
    )
    return (role if role in ops.KINDS else kind), seen


def _source(op: Op, rows: Rows, row: int) -> int:
    if op.kind == ops.OTHER:
        return NONE
    if not op.dims:
        return NAME
    if rows.tensors[row] >= 0 and any(op.kind.startswith(p) for p in ("moe_", "topk")):
        return CAPTURE if rows.source[row] == CAPTURE else SHAPES
    if rows.tensors[row] >= 0 or rows.nbytes[row] or rows.message[row] >= 0:
        return CAPTURE if rows.source[row] == CAPTURE else SHAPES
    return MODEL


def _windows(layer: IntArray, model: ModelSpec | None) -> IntArray:
    """The sliding window of each row's layer, 0 where there is none."""
    if model is None or not any(model.windows):
        return np.zeros(len(layer), dtype=np.int64)
    table = np.array([model.window(i) for i in range(model.layers)] + [0], dtype=np.int64)
    return table[np.where((layer >= 0) & (layer < model.layers), layer, model.layers)]


def _step_facts(step: IntArray, steps: Sequence[StepName]) -> IntArray:
    """A code per row for what is known of its step, equal for steps with equal facts."""
    codes: dict[StepName | None, int] = {None: 0}
    table = np.array([codes.setdefault(s, len(codes)) for s in steps] + [0], dtype=np.int64)
    return table[step]


def _padding(events: Events, rows: Rows, model: ModelSpec | None) -> int:
    """The multiple to which the MoE's hidden size is padded: the smallest of 64, 128, 256 that explains what is seen."""
    if model is None or not model.experts:
        return 0
    seen = {
        s[0][1]
        for s in (events.tensor_sets[t].shapes for t in np.unique(rows.tensors[rows.tensors >= 0]).tolist())
        if len(s) >= 2
        and len(s[0]) == 2
        and len(s[1]) == 2
        and s[0][0] == s[1][0]
        and s[1][1] == model.experts
    }
    for multiple in (64, 128, 256):
        wide = -(-model.hidden // multiple) * multiple
        if wide != model.hidden and wide in seen:
            return multiple
    return 0


def count_distinct(
    index: IntArray, found: list[Op], step: IntArray, layer: IntArray, routing: Routing
) -> tuple[IntArray, list[Op]]:
    """Puts the counted distinct experts into the expert ops of the steps and layers that were recorded."""
    cells = routing.distinct()
    keyed = np.array([(s, k, d) for (s, k), d in cells.items()], dtype=np.int64).reshape(-1, 3)
    steps, layers, counts = keyed[:, 0], keyed[:, 1], keyed[:, 2]
    routed = np.array([op.kind in _ROUTED for op in found], dtype=bool)
    at = np.flatnonzero(routed[index] & (step >= 0) & (layer >= 0))
    if not len(at) or not len(steps):
        return index, found
    span = int(max(layers.max(), layer.max())) + 1
    keys = steps * span + layers
    order = np.argsort(keys)
    asked = step[at] * span + layer[at]
    place = np.clip(np.searchsorted(keys[order], asked), 0, len(keys) - 1)
    hit = keys[order][place] == asked
    at, distinct = at[hit], counts[order][place[hit]]
    pairs, inverse = np.unique(np.stack([index[at], distinct], axis=1), axis=0, return_inverse=True)
    known = {op: i for i, op in enumerate(found)}
    codes = [known.setdefault(found[i].with_dims(distinct=int(d)), len(known)) for i, d in pairs.tolist()]
    index = index.copy()
    index[at] = np.array(codes, dtype=np.int64)[inverse.reshape(-1)]
    return index, list(known)


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


def sources() -> Sequence[str]:
    """Texts of the op_source column, by code."""
    return SOURCES
