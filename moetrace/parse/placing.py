"""Layer and role of each row from the order of kinds in its step, and what the model says against it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from moetrace import ops
from moetrace.formats.events import BoolArray, Events
from moetrace.formats.texts import alike
from moetrace.grouping import distinct_rows, rows_of_groups
from moetrace.model import ModelSpec
from moetrace.ops import OTHER, gemm
from moetrace.ops.moe_dims import FUSED
from moetrace.parse import passes
from moetrace.parse.expected import told
from moetrace.parse.kinds import Kinds
from moetrace.parse.nesting import IntArray
from moetrace.parse.order import EXPERT_GEMMS, GEMMS, NO_HINTS, Hints
from moetrace.parse.passes import MOST_LAYERS, starts_of_passes
from moetrace.parse.period import layers_by_period
from moetrace.parse.roles import resolve
from moetrace.parse.rows import Rows
from moetrace.parse.steps import StepName

# Kinds that name an op less well than its kernel.
_VAGUE = ("other", "elementwise", "gemm", "copy", "sampling")
_ONCE = ("topk", "moe_combine", "activation")  # kinds of which a layer has one: the first that the step has
# Sequences of kinds that are remembered at a time, and their ops: a graph has one, steps run op by op have many.
_SOLVED, _ROWS = 256, 1 << 17


class Located(NamedTuple):
    """Layer and role of each op (-1: none), whether the layer rests on repetition, and its kind as it is now known."""

    layer: IntArray
    role: IntArray
    repeated: BoolArray
    kind: IntArray


class Order:
    """Layers and roles by the order of kinds in a step; a sequence that repeats is resolved once.

    With the model known, its order also tells what kernels are whose names say nothing.
    """

    def __init__(
        self, events: Events, kinds: Kinds, labels: list[str], steps: Sequence[StepName], model: ModelSpec | None = None
    ) -> None:  # fmt: skip
        """`kinds` and `labels` may grow between calls; the latter gets the roles that are found.

        Of the `steps` that are a draft's `model` tells nothing. In one that is not stated what repeats may as well be steps as
        layers, unless one graph replays it all.
        """
        self._stated = [name.stated for name in steps]
        self._drafts = np.array(drafts_among(steps), dtype=np.int64)
        self._events, self._kinds, self._labels, self._hints = events, kinds, labels, _hints(model)
        self._model, self._depth = model, model.layers if model else 0
        self._solved: dict[bytes, Located] = {}
        self._rows = 0  # of the sequences that are remembered
        self.layers, self.passes = 0, 1  # the most that a step showed, of a pass if there are several in it

    def place(self, rows: Rows, kind_index: IntArray) -> Located:
        """Where each row lies, and what it is."""
        size = len(rows)
        out = Located(np.full(size, -1), np.full(size, -1), np.zeros(size, dtype=bool), kind_index.copy())
        width, sizes = _widths(self._events, rows, kind_index, self._kinds.names)
        shapes = np.array(sizes, dtype=np.int64).T
        bare = np.zeros(size, dtype=bool) if rows.on_cpu else (rows.operator < 0) & ~rows.copied
        bare &= ~np.isin(rows.step, self._drafts)
        kernel = alike(self._events.texts, np.where(self._unnamed()[kind_index], rows.kernel, -1))
        inside = rows.step[rows.step >= 0]
        first = int(inside.min()) if len(inside) else 0
        for at in rows_of_groups(rows.step - first, int(rows.step.max(initial=-1)) + 1 - first):
            if not len(at):
                continue
            names = kernel[at]
            one = self._stated[int(rows.step[at[0]])] or self._depth > 0 or _one_graph(rows.graph[at])
            key = _digest(one, kind_index[at], names, bare[at], *(side[width[at]] for side in shapes))
            if key not in self._solved:
                if len(self._solved) >= _SOLVED or self._rows + len(at) > _ROWS:
                    self._solved.clear()
                    self._rows = 0
                self._rows += len(at)
                widths = [sizes[w] for w in width[at].tolist()]
                found = self._resolve(kind_index[at], names, widths, bare[at], rows.dur[at], one)
                self._solved[key] = self._bounded(found)
            for column, values in zip(out, self._solved[key], strict=True):
                column[at] = values
        return out

    def _bounded(self, found: Located) -> Located:
        """The same without layers, where there are more than a forward pass has."""
        layers = int(found.layer.max(initial=-1)) + 1
        self.layers = max(self.layers, layers)
        if layers <= MOST_LAYERS:
            return found
        return found._replace(
            layer=np.full(len(found.layer), -1), repeated=np.zeros(len(found.layer), dtype=bool)
        )

    def _unnamed(self) -> BoolArray:
        """Which kinds say nothing of an op, so that its name has to."""
        return np.array([kind in _VAGUE for kind in self._kinds.names], dtype=bool)

    def _resolve(
        self, index: IntArray, names: IntArray, widths: list[tuple[int, int]], bare: BoolArray, dur: IntArray, one: bool
    ) -> Located:  # fmt: skip
        kinds = [self._kinds.names[k] for k in index.tolist()]
        layers, roles = resolve(kinds, widths, self._hints)
        if begin := starts_of_passes(layers, kinds, self._depth):
            self.passes = max(self.passes, len(begin) + 1)
            return self._by_pass(begin, index, names, widths, bare, dur)
        layer = np.array(layers, dtype=np.int64)
        repeated = one and not (layer >= 0).any()
        if repeated:
            layer = self._by_period(index, names)
        elif one and self._hidden(kinds, layers):
            found = self._by_period(index, names)
            if (
                int(found.max(initial=-1)) + 1 == self._depth
            ):  # else what the order shows stands, and is remarked on
                layer, roles, repeated = found, [""] * len(kinds), True
        if self._model is not None and OTHER in kinds and (layer >= 0).any():
            known = told(kinds, names, dur, layer, self._model)
            open_ = [i for i in np.flatnonzero(bare).tolist() if kinds[i] == OTHER and int(names[i]) in known]
            for i in open_:
                kinds[i] = known[int(names[i])]
            layers, now = resolve(kinds, widths, self._hints)
            if open_ and (layers == layer.tolist() or max(layers) + 1 == self._depth):
                layer, roles = np.array(layers, dtype=np.int64), now
                _fuse(kinds, roles, open_)
                index = index.copy()
                index[open_] = [self._kinds.code(kinds[i]) for i in open_]
        return Located(layer, self._codes(roles), np.full(len(index), repeated), index)

    def _by_pass(
        self, begin: list[int], index: IntArray, names: IntArray, widths: list[tuple[int, int]], bare: BoolArray, dur: IntArray
    ) -> Located:  # fmt: skip
        """The same of several passes, which begin there: each by itself."""
        solved: dict[bytes, Located] = {}
        found = []
        for low, high in pairwise([0, *begin, len(index)]):
            at = slice(low, high)
            key = _digest(True, index[at], names[at], bare[at], *np.array(widths[at]).T)
            if key not in solved:
                solved[key] = self._resolve(index[at], names[at], widths[at], bare[at], dur[at], True)
            found.append(solved[key])
        return Located(*(np.concatenate(columns) for columns in zip(*found, strict=True)))

    def _hidden(self, kinds: Sequence[str], layers: Sequence[int]) -> bool:
        """Whether layers of a model with two kinds of attention hide behind those of which the order knows the attention.

        All of the model's layers must be there, by what each has one of: a pipeline stage has fewer.
        """
        if self._model is None or not self._model.full_every or OTHER not in kinds:
            return False
        once = next((kinds.count(kind) for kind in _ONCE if kind in kinds), 0)
        # All layers have one, or all and the sampler.
        return max(layers) + 1 < self._depth and once in (self._depth, self._depth + 1)

    def _by_period(self, index: IntArray, names: IntArray) -> IntArray:
        kinds = self._kinds.names
        alike = np.where(names >= 0, names + len(kinds), index)
        marks = ["norm", *(kind for kind in _ONCE if kind in kinds)][:2]
        norm, once = ([kinds.index(kind) if kind in kinds else -1 for kind in marks] + [-1])[:2]
        return layers_by_period(alike, self._depth, norm, once)

    def _codes(self, roles: list[str]) -> IntArray:
        self._labels += sorted(set(roles) - {""} - set(self._labels))
        codes = {said: n for n, said in enumerate(self._labels)}
        return np.array([codes[r] if r else -1 for r in roles], dtype=np.int64)


def drafts_among(steps: Sequence[StepName]) -> list[int]:
    """The steps that are the draft model's."""
    return [i for i, name in enumerate(steps) if name.phase == "draft"]


def _digest(one: bool, *columns: IntArray | BoolArray) -> bytes:
    """What is equal for sequences with equal columns, of one length each."""
    found = hashlib.blake2b(bytes([one]), digest_size=16)
    for column in columns:
        found.update(np.ascontiguousarray(column).data)
    return found.digest()


def _one_graph(graph: IntArray) -> bool:
    """Whether most of these ops are one replay of one graph, which is one step."""
    replayed = graph[graph >= 0]
    return 2 * len(replayed) > len(graph) and len(np.unique(replayed)) == 1


def _fuse(kinds: Sequence[str], roles: list[str], told: Sequence[int]) -> None:
    """Says of a told gate_up that it applies the activation itself, where none stands between it and the way down."""
    for i in told:
        role = roles[i] or kinds[i]
        behind = next((k for k in kinds[i + 1 :] if k in ("activation", "moe_act", *EXPERT_GEMMS)), "")
        if role == "moe_gate_up" and behind in EXPERT_GEMMS:
            roles[i] = f"{role} {FUSED}"


def needs_model(layers: int, model: ModelSpec | None, kinds: Sequence[str]) -> bool:
    """Whether the order, which shows so many layers of ops of these kinds, reads otherwise once the model is known.

    So it does for MLA, a shared expert, another number of layers than the model has, and kernels that nothing else names.
    """
    if model is None or not layers:
        return False
    return model.attention == "mla" or model.shared_inter > 0 or layers != model.layers or OTHER in kinds


def remarks(count: int, order: Order, model: ModelSpec | None, repeated: bool) -> list[str]:
    """What to say where the order shows another number of layers (`count`: without the model) than the model has.

    `repeated`: it shows them by repetition alone, which a draft has no part in.
    """
    layers = order.layers
    said = passes.remarks(order.passes, layers, model)
    if layers > MOST_LAYERS or model is None or count in (0, model.layers):
        return said
    if (repeated or order.passes > 1) and layers == model.layers:
        return said
    if layers == model.layers:
        return [
            f"the order of ops shows {count} layers and {model.name} has {model.layers}: the rest is taken as a draft "
            "model's, without layer and without bytes"
        ]
    shown = count if order.passes == 1 else layers  # without the model passes are not told apart
    return [
        *said,
        f"the order of ops shows {shown} layers in a step and {model.name} has {model.layers}: layers and roles by order are "
        "not to be trusted (several passes in one step, a pipeline stage, or another model?)",
    ]


def _hints(model: ModelSpec | None) -> Hints:
    if model is None:
        return NO_HINTS
    shared = model.shared_inter > 0
    return Hints(
        model.layers,
        model.attention == "mla",
        model.q_lora > 0,
        shared,
        shared and model.shared_gate,
        model.index_topk > 0,
    )


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
