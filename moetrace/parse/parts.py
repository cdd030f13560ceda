"""What the recorder's annotations say: the layer and the part of the block that an op lies in, and so its role.

Parts are the recorder's words (see docs/recording.md); `role_in_part` is the only place that knows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from moetrace.formats.events import MODULE, RANGE, BoolArray, Events
from moetrace.formats.texts import Told
from moetrace.grouping import distinct_rows
from moetrace.parse.aside import RANGE_NAME
from moetrace.parse.nesting import IntArray, Ranges, lookup
from moetrace.parse.order import ATTENTION
from moetrace.parse.rows import Rows

_LAYER = re.compile(r"moetrace\.layer#(\d{1,4})(?!\d)")  # a deeper model is damage (model.config.MAX_LAYERS)
_PART = re.compile(r"moetrace\.part:(\w+)")
# As in model.layers.3.mlp, which a graph's nodes were annotated with.
_LISTED = re.compile(r"\blayers?[._](\d{1,4})\b")
_MODULE_LAYER = re.compile(r"nn\.Module: \w*(?:DecoderLayer|Block|TransformerLayer)_(\d{1,9})(?!\d)")

_SIMPLE = {
    "input_norm": "norm", "post_norm": "norm", "final_norm": "norm", "embedding": "embedding", "sampling": "sampling",
}  # fmt: skip
_GEMM = {"router": "router", "lm_head": "lm_head"}
# Experts run one by one.
_ONE_EXPERT = re.compile(r"aten::(mm|addmm|_scaled_mm|linear|mkldnn_linear)$|mkldnn::_linear")
_MLP = {
    "shared_expert": ("shared_gate_up", "shared_down", "shared_act"),
    "dense_mlp": ("dense_gate_up", "dense_down", "activation"),
}


_ASIDE = "aside"


class Marks:
    """What the ranges of a trace say of layers and parts, by the code of their name."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._labels: dict[str, int] = {}
        self.aside = -1  # the code that stands for a part of the run that is no request's
        self._layer, self._module = (
            Told(texts, _number(_LAYER.match)),
            Told(texts, _number(_MODULE_LAYER.match)),
        )
        self._part = Told(texts, self._part_of)
        self._noted_layer = Told(texts, _number(lambda text: _LAYER.search(text) or _LISTED.search(text)))
        self._noted_part = Told(texts, lambda text: self._label(_PART.search(text)))
        self._layers = False
        self._modules: IntArray = np.zeros(0, dtype=np.int64)

    @property
    def labels(self) -> list[str]:
        """The parts that were seen so far, by code."""
        return list(self._labels)

    def _label(self, said: re.Match[str] | None) -> int:
        return self._labels.setdefault(said[1], len(self._labels)) if said else -1

    def _part_of(self, text: str) -> int:
        if not RANGE_NAME.fullmatch(text):
            return self._label(_PART.match(text))
        self.aside = self._labels.setdefault(_ASIDE, len(self._labels))
        return self.aside

    def saw(self, cls: int, name: IntArray) -> None:
        """Takes note of the names that ranges of a class have."""
        if cls == RANGE:
            self._layers |= bool((self._layer.of(name) >= 0).any())
        elif cls == MODULE:
            numbers = self._module.of(name)
            self._modules = np.union1d(self._modules, numbers[numbers >= 0])

    @property
    def layer_source(self) -> str:
        """Where layers come from: the recorder's ranges, else module calls."""
        return "annotation" if self._layers else "module" if len(self._modules) else "none"

    def place(self, rows: Rows, events: Events) -> None:
        """Puts into the rows the layer and the part of the innermost range around each one's launch; -1 for none.

        Modules are numbered by their own number's place among all. What the node of a replayed graph was annotated with
        goes before.
        """
        rows.part = _covered(events, rows, self._part, RANGE)
        if self._layers:
            rows.layer = _covered(events, rows, self._layer, RANGE)
        elif len(self._modules):
            found = _covered(events, rows, self._module, MODULE)
            rows.layer = np.where(found >= 0, np.searchsorted(self._modules, found), -1)
        if (rows.note >= 0).any():
            layer, part = self._noted_layer.of(rows.note), self._noted_part.of(rows.note)
            rows.layer, rows.part = (
                np.where(layer >= 0, layer, rows.layer),
                np.where(part >= 0, part, rows.part),
            )
            self._layers |= bool((layer >= 0).any())


def _number(find: Callable[[str], re.Match[str] | None]) -> Callable[[str], int]:
    """What finds a layer's number in a name: -1 for none."""
    return lambda text: int(said[1]) if (said := find(text)) else -1


def _covered(events: Events, rows: Rows, table: Told, cls: int) -> IntArray:
    """What the table has for the innermost range of a class around each row's launch that it knows; -1 for none."""
    ranges = events.where(cls)
    said = table.of(events.name[ranges])
    ranges, said = ranges[said >= 0], said[said >= 0]
    start = events.start[ranges]
    around = Ranges(events.lane[ranges], start, start + events.dur[ranges])
    return lookup(said, around.covering(rows.host_lane, rows.host_time))


def role_in_part(
    part: str, kind: str, operator: str, before_attention: bool, shape: tuple[int, ...], hidden: int
) -> str:
    """The kind that an op of some kind has inside a part; empty where the part does not change it."""
    if part in _SIMPLE:
        return (
            _SIMPLE[part]
            if kind in ("elementwise", "norm", "activation", "sampling", "embedding", "topk")
            else ""
        )
    if kind in ("gemm", "moe_gemm"):
        role = _gemm_role(part, before_attention, shape, hidden)
        one = kind == "gemm" and _ONE_EXPERT.search(operator)
        return {"moe_gate_up": "expert_up", "moe_down": "expert_down"}.get(role, role) if one else role
    if (
        part == "attention" and operator == "aten::rsqrt"
    ):  # inside q's or k's norm, whose other ops are element-wise too
        return "elementwise"
    if part == "attention" and kind in ("elementwise", "sampling"):
        return (
            "kv_write"
            if "index_copy" in operator
            else "rope"
            if re.search(r"mul|neg|cat|add|sub|cos|sin", operator)
            else ""
        )
    if part == "router" and kind in ("elementwise", "sampling", "topk", "activation"):
        return "topk"
    if part in ("experts", "moe") and kind in ("elementwise", "activation", "sampling", "topk"):
        return _expert_role(kind, operator, shape, hidden)
    if part in _MLP and kind in ("elementwise", "activation"):
        return _MLP[part][2]
    return ""


def _gemm_role(part: str, before_attention: bool, shape: tuple[int, ...], hidden: int) -> str:
    if part in _GEMM:
        return _GEMM[part]
    if part == "attention":
        return "qkv_proj" if before_attention else "o_proj"
    narrow = bool(shape) and shape[-1] != hidden  # the input is the block's own width: this is the way down
    if part in _MLP:
        return _MLP[part][1] if narrow else _MLP[part][0]
    if part == "experts":
        return "moe_down" if narrow else "moe_gate_up"
    return ""


def _expert_role(kind: str, operator: str, shape: tuple[int, ...], hidden: int) -> str:
    if re.search(r"index_add|scatter_add|aten::sum$", operator):
        return "moe_combine"
    if kind == "activation" or (
        re.search(r"mul|chunk|silu|clamp|sigmoid|add", operator) and shape and shape[-1] != hidden
    ):
        return "moe_act"
    if re.search(r"aten::(mul|add)_?$", operator) and shape and shape[-1] == hidden:
        return "moe_combine"
    return "moe_align"


def part_roles(
    events: Events,
    rows: Rows,
    step: IntArray,
    layer: IntArray,
    kind_index: IntArray,
    kinds: list[str],
    part: IntArray,
    role: IntArray,
    labels: list[str],
    hidden: int,
) -> tuple[IntArray, list[str]]:
    """(role per row, labels): annotations go before the order of ops; one decision per distinct set of facts."""
    if not (part >= 0).any():
        return role, labels
    labels = list(labels)
    is_attention = np.array([k in ATTENTION for k in kinds], dtype=bool)[kind_index]
    before = _before_first(is_attention, step, layer)
    first, inverse = distinct_rows(part, kind_index, rows.operator, rows.tensors, before)
    codes = np.full(len(first), -1, dtype=np.int64)
    for i, row in enumerate(first.tolist()):
        if part[row] < 0:
            continue
        tensors = events.tensor_sets[rows.tensors[row]] if rows.tensors[row] >= 0 else None
        shape = next((s for s in tensors.shapes if s), ()) if tensors else ()
        operator = events.texts[rows.operator[row]] if rows.operator[row] >= 0 else ""
        said = role_in_part(
            labels[part[row]], kinds[kind_index[row]], operator, bool(before[row]), shape, hidden
        )
        if said:
            if said not in labels:
                labels.append(said)
            codes[i] = labels.index(said)
    # Which expert GEMM is first is for the order to say: hidden and expert width may be equal.
    paired = np.array([k == "moe_gemm" for k in kinds], dtype=bool)[kind_index]
    return np.where((part >= 0) & ~paired, codes[inverse], role), labels


def _before_first(marked: BoolArray, step: IntArray, layer: IntArray) -> IntArray:
    """1 for rows before the first marked row of their step and layer (rows are in order of time), else 0."""
    group = (step + 1) * (int(layer.max()) + 2) + layer + 1
    codes, inverse = np.unique(group, return_inverse=True)
    first = np.full(len(codes), len(group), dtype=np.int64)
    np.minimum.at(first, inverse.reshape(-1)[marked], np.flatnonzero(marked))
    before: IntArray = (np.arange(len(group)) < first[inverse.reshape(-1)]).astype(np.int64)
    return before
