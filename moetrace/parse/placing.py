"""Layer and role of each row from the order of kinds in its step, and what the model says against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetrace import ops
from moetrace.formats.events import Events
from moetrace.model import ModelSpec
from moetrace.ops import gemm
from moetrace.parse.distinct import distinct_rows, rows_of_groups
from moetrace.parse.nesting import IntArray
from moetrace.parse.order import GEMMS, NO_HINTS, Hints
from moetrace.parse.roles import resolve
from moetrace.parse.rows import Rows


def by_order(
    events: Events,
    rows: Rows,
    step: IntArray,
    kind_index: IntArray,
    kinds: Sequence[str],
    labels: Sequence[str],
    model: ModelSpec | None = None,
) -> tuple[IntArray, IntArray, list[str]]:
    """(layer, role) per row, -1 for none, and the roles' labels; a sequence that repeats is resolved once."""
    layer, role = np.full(len(rows), -1, dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
    labels = list(labels)
    width, sizes = _widths(events, rows, kind_index, kinds)
    hints = _hints(model)
    solved: dict[bytes, tuple[IntArray, IntArray]] = {}
    for at in rows_of_groups(step, int(step.max(initial=-1)) + 1):
        key = np.stack([kind_index[at], width[at]]).tobytes()
        if key not in solved:
            shapes = [sizes[w] for w in width[at].tolist()]
            layers, roles = resolve([kinds[k] for k in kind_index[at].tolist()], shapes, hints)
            labels += sorted(set(roles) - {""} - set(labels))
            codes = {said: n for n, said in enumerate(labels)}
            solved[key] = (
                np.array(layers, dtype=np.int64),
                np.array([codes[r] if r else -1 for r in roles], dtype=np.int64),
            )
        layer[at], role[at] = solved[key]
    return layer, role, labels


def needs_model(layer: IntArray, model: ModelSpec | None) -> bool:
    """Whether the order reads otherwise once the model is known: MLA, a shared expert, more layers than it has."""
    if model is None or not (layer >= 0).any():
        return False
    return model.attention == "mla" or model.shared_inter > 0 or int(layer.max()) + 1 > model.layers


def remarks(found: IntArray, layer: IntArray, model: ModelSpec | None) -> list[str]:
    """What to say where the order of ops (`found`: without the model) shows another number of layers than the model has."""
    count = int(found.max(initial=-1)) + 1
    if model is None or count in (0, model.layers):
        return []
    if int(layer.max()) + 1 == model.layers:
        return [
            f"the order of ops shows {count} layers and {model.name} has {model.layers}: the rest is taken as a draft "
            "model's, without layer and without bytes"
        ]
    return [
        f"the order of ops shows {count} layers in a step and {model.name} has {model.layers}: layers and roles by order are "
        "not to be trusted (several passes in one step, a pipeline stage, or another model?)"
    ]


def _hints(model: ModelSpec | None) -> Hints:
    if model is None:
        return NO_HINTS
    return Hints(model.layers, model.attention == "mla", model.q_lora > 0, model.shared_inter > 0)


def _widths(
    events: Events, rows: Rows, kind_index: IntArray, kinds: Sequence[str]
) -> tuple[IntArray, list[tuple[int, int]]]:
    """(code per row, (outputs, inputs) per code) of GEMMs whose operands are known; code 0 is (0, 0)."""
    sizes: dict[tuple[int, int], int] = {(0, 0): 0}
    first, inverse = distinct_rows(kind_index, rows.operator, rows.tensors)
    codes = np.zeros(len(first), dtype=np.int64)
    for i, row in enumerate(first.tolist()):
        if kinds[kind_index[row]] not in GEMMS or rows.tensors[row] < 0 or rows.operator[row] < 0:
            continue
        tensors = events.tensor_sets[rows.tensors[row]]
        seen = ops.Seen("", events.texts[rows.operator[row]], tensors.shapes, tensors.dtypes)
        codes[i] = sizes.setdefault(gemm.width(seen), len(sizes))
    return codes[inverse], list(sizes)
