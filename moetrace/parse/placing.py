"""Layer and role of each row from the order of kinds in its step, and what the model says against it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from moetrace import ops
from moetrace.formats.events import BoolArray, Events
from moetrace.grouping import distinct_rows, rows_of_groups
from moetrace.model import ModelSpec
from moetrace.ops import gemm
from moetrace.parse.nesting import IntArray
from moetrace.parse.order import GEMMS, NO_HINTS, Hints
from moetrace.parse.period import layers_by_period
from moetrace.parse.roles import resolve
from moetrace.parse.rows import Rows

_VAGUE = (
    "other",
    "elementwise",
    "gemm",
    "copy",
    "sampling",
)  # kinds that name an op less well than its kernel
_SOLVED = (
    256  # sequences of kinds that are remembered at a time: a graph has one, steps run op by op have many
)


class Order:
    """Layers and roles by the order of kinds in a step; a sequence that repeats is resolved once."""

    def __init__(
        self, events: Events, kinds: Sequence[str], labels: list[str], model: ModelSpec | None = None
    ) -> None:
        """`kinds` and `labels` may grow between calls; the latter gets the roles that are found."""
        self._events, self._kinds, self._labels, self._hints = events, kinds, labels, _hints(model)
        self._depth = model.layers if model else 0
        self._solved: dict[bytes, tuple[IntArray, IntArray, bool]] = {}

    def place(self, rows: Rows, kind_index: IntArray) -> tuple[IntArray, IntArray, BoolArray]:
        """(layer, role) per row, -1 for none, and whether the layer is by repetition alone."""
        layer, role = np.full(len(rows), -1, dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
        repeated = np.zeros(len(rows), dtype=bool)
        width, sizes = _widths(self._events, rows, kind_index, self._kinds)
        shapes = np.array(sizes, dtype=np.int64)
        inside = rows.step[rows.step >= 0]
        first = int(inside.min()) if len(inside) else 0
        for at in rows_of_groups(rows.step - first, int(rows.step.max(initial=-1)) + 1 - first):
            if not len(at):
                continue
            names = np.where(self._unnamed()[kind_index[at]], rows.kernel[at], -1)
            said = np.stack([kind_index[at], names, *shapes[width[at]].T])
            key = hashlib.blake2b(said.tobytes(), digest_size=16).digest()
            if key not in self._solved:
                if len(self._solved) >= _SOLVED:
                    self._solved.clear()
                self._solved[key] = self._resolve(
                    kind_index[at], names, [sizes[w] for w in width[at].tolist()]
                )
            layer[at], role[at], repeated[at] = self._solved[key]
        return layer, role, repeated

    def _unnamed(self) -> BoolArray:
        """Which kinds say nothing of an op, so that its name has to."""
        return np.array([kind in _VAGUE for kind in self._kinds], dtype=bool)

    def _resolve(
        self, kind_index: IntArray, names: IntArray, shapes: list[tuple[int, int]]
    ) -> tuple[IntArray, IntArray, bool]:
        layers, roles = resolve([self._kinds[k] for k in kind_index.tolist()], shapes, self._hints)
        self._labels += sorted(set(roles) - {""} - set(self._labels))
        codes = {said: n for n, said in enumerate(self._labels)}
        layer = np.array(layers, dtype=np.int64)
        role = np.array([codes[r] if r else -1 for r in roles], dtype=np.int64)
        if (layer >= 0).any():
            return layer, role, False
        norm = self._kinds.index("norm") if "norm" in self._kinds else -1
        alike = np.where(names >= 0, names + len(self._kinds), kind_index)
        return layers_by_period(alike, self._depth, norm), role, True


def needs_model(layers: int, model: ModelSpec | None) -> bool:
    """Whether the order, which shows so many layers, reads otherwise once the model is known.

    So it does for MLA, a shared expert, and another number of layers than the model has.
    """
    if model is None or not layers:
        return False
    return model.attention == "mla" or model.shared_inter > 0 or layers != model.layers


def remarks(count: int, layers: int, model: ModelSpec | None) -> list[str]:
    """What to say where the order shows another number of layers (`count`: without the model) than the model has."""
    if model is None or count in (0, model.layers):
        return []
    if layers == model.layers:
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
