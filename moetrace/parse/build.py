"""From resolved rows to the Run's op table: distinct facts -> Ops, Ops -> work, work spread over the rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace import ops
from moetrace.formats.events import Events, Tensors
from moetrace.forward import expert_padding
from moetrace.grouping import distinct_rows
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops import Seen
from moetrace.ops.moe_dims import FUSED
from moetrace.parse.facts import Split
from moetrace.parse.nesting import IntArray
from moetrace.parse.order import ATTENTION, DRAFT
from moetrace.parse.rows import ANNOTATION, CAPTURE, MODEL, NAME, NONE, PERIOD, SHAPES, SOURCES, Rows
from moetrace.parse.steps import Attended, StepName

_NO_TENSORS = Tensors()
# Sets of facts that are remembered with their op: a trace has more only where names are numbered.
_MANY = 1 << 15
_BY_TP = ("all_reduce", "all_gather", "reduce_scatter")
_BY_EP = ("moe_dispatch", "moe_collect", "all_to_all")


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


# (op of each row, ops, step and layer of each row) -> (op of each row, ops)
Put = Callable[[IntArray, list[Op], IntArray, IntArray], tuple[IntArray, list[Op]]]


class Ops:
    """The distinct ops of a run, which grow batch by batch: one call of the op families per distinct set of facts."""

    def __init__(
        self,
        events: Events,
        steps: Sequence[StepName],
        model: ModelSpec | None,
        split: Split,
        tensors: Sequence[int],
        routed: Put | None = None,
    ) -> None:
        """`tensors` are the codes of all tensor sets that rows have; `routed` puts in what is known of distinct experts."""
        self._events, self._steps, self._model, self._split = events, steps, model, split
        self._pad = _padding(events, tensors, model)
        self._routed = routed
        self.found: dict[Op, int] = {}
        self._known: dict[tuple[int, ...], tuple[Op, int]] = {}

    def build(self, rows: Rows, placed: Placed, halves: IntArray) -> tuple[IntArray, npt.NDArray[np.int8]]:
        """(op index per row, source per row); the ops are the keys of `found`."""
        window = _windows(placed.layer, self._model)
        columns = (
            placed.kind_index, rows.kernel, rows.operator, rows.tensors, rows.message, rows.nbytes,
            placed.role, placed.part, window, halves, _step_facts(placed.step, self._steps), rows.source.astype(np.int64),
        )  # fmt: skip
        first, inverse = distinct_rows(*columns)
        index = np.zeros(len(first), dtype=np.int64)
        source = np.zeros(len(first), dtype=np.int8)
        found = self.found if self._routed is None else {}
        for low in range(0, len(first), _MANY):
            some = first[low : low + _MANY]
            if len(self._known) > _MANY:
                self._known.clear()
            keys = zip(*(column[some].tolist() for column in columns), strict=True)
            for i, (row, key) in enumerate(zip(some.tolist(), keys, strict=True), low):
                if key not in self._known:
                    self._known[key] = self._learn(rows, placed, row, int(window[row]), int(halves[row]))
                op, source[i] = self._known[key]
                index[i] = found.setdefault(op, len(found))
        spread = index[inverse]
        if self._routed is not None:
            spread, routed = self._routed(spread, list(found), placed.step, placed.layer)
            table = np.array([self.found.setdefault(op, len(self.found)) for op in routed], dtype=np.int64)
            spread = table[spread] if len(table) else spread
        return spread, source[inverse]

    def _learn(self, rows: Rows, placed: Placed, row: int, window: int, half: int) -> tuple[Op, int]:
        """(the op of a row, its source)."""
        step = self._steps[placed.step[row]] if placed.step[row] >= 0 else None
        kind, seen = _seen(
            self._events, rows, placed, row, step, self._model, self._split, self._pad, window, half
        )
        op = ops.build(kind, seen)
        return op, _source(op, rows, row)


def _seen(
    events: Events,
    rows: Rows,
    placed: Placed,
    row: int,
    step: StepName | None,
    model: ModelSpec | None,
    split: Split,
    pad: int,
    window: int,
    half: int,
) -> tuple[str, Seen]:
    tensors = events.tensor_sets[rows.tensors[row]] if rows.tensors[row] >= 0 else _NO_TENSORS
    message = events.tensor_sets[rows.message[row]] if rows.message[row] >= 0 else _NO_TENSORS
    role = placed.labels[placed.role[row]] if placed.role[row] >= 0 else ""
    if role.startswith(DRAFT):  # the draft model's widths are its own
        role, model = role.removeprefix(DRAFT).strip(), None
    if step is not None and step.phase == "draft":
        model = None
    kind = placed.kind[placed.kind_index[row]]
    tp, ep = split.tp or 1, split.ep or 1
    facts = _facts(step, half)
    seen = Seen(
        kernel=events.texts[rows.kernel[row]],
        operator=events.texts[rows.operator[row]] if rows.operator[row] >= 0 else "",
        shapes=tensors.shapes,
        dtypes=tensors.dtypes,
        nbytes=int(rows.nbytes[row]) or message.nbytes,
        group=message.group or {**dict.fromkeys(_BY_TP, tp), **dict.fromkeys(_BY_EP, ep)}.get(kind, 0),
        stride=message.stride if message.group else 0,
        part=placed.labels[placed.part[row]] if placed.part[row] >= 0 else "",
        role=role,
        phase=step.phase if step else None,
        batch=facts.batch,
        tokens=facts.tokens,
        kv_tokens=facts.kv_tokens,
        pairs=facts.pairs,
        window=window,
        model=model,
        tp=tp,
        ep=ep,
        collective=message.collective,
        pad=pad,
    )
    return next((said for said in (role, role.removesuffix(f" {FUSED}")) if said in ops.KINDS), kind), seen


# What an attention op of a mixed step works on: all sequences, its prefills, its decodes, or one cannot tell.
_ALL, _PREFILLS, _DECODES, _UNTOLD = range(4)
_OF_PREFILLS = re.compile(r"(?i)prefill|context_?attention|contextfmha|varlen")
_OF_DECODES = re.compile(r"(?i)decode|paged_attention|masked_multihead|mmha|splitkv|flash_?mla|cutlass_mla")


def attended_halves(
    events: Events, rows: Rows, placed: Placed, steps: Sequence[StepName]
) -> tuple[IntArray, list[str]]:
    """(which sequences each row attends to, remarks): in a mixed step two attention ops of a layer share them.

    By name, where one of the two says prefill or decode; else the first has the prefills, as engines run them. One op has
    all; more than two are not told apart, and two neither where the step does not state its halves.
    """
    halves = np.zeros(len(rows), dtype=np.int64)
    mixed = np.array([s.phase == "mixed" for s in steps] + [False], dtype=bool)[placed.step]
    attends = np.array([k in ATTENTION for k in placed.kind], dtype=bool)[placed.kind_index]
    at = np.flatnonzero(mixed & attends & (placed.layer >= 0))
    if not len(at):
        return halves, []
    layer = placed.step[at] * (int(placed.layer.max()) + 1) + placed.layer[at]
    at, layer = at[order := np.argsort(layer, kind="stable")], layer[order]
    _, first, inverse, count = np.unique(layer, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    stated = np.array([s.halves is not None for s in steps], dtype=bool)[placed.step[at]]
    pair = (count[inverse] == 2) & stated
    second = np.arange(len(at)) - first[inverse]
    named = _named_halves(events, rows.kernel[at])
    other = named[np.clip(first[inverse] + 1 - second, 0, len(at) - 1)]
    by_name = np.where(named != _ALL, named, np.where(other != _ALL, _PREFILLS + _DECODES - other, _ALL))
    by_name = np.where((named == other) & pair, _ALL, by_name)
    halves[at] = np.where(
        count[inverse] == 1,
        _ALL,
        np.where(pair, np.where(by_name != _ALL, by_name, _PREFILLS + second), _UNTOLD),
    )
    notes = []
    if (pair & (by_name == _ALL)).any():
        notes.append("mixed steps: of two attention ops of a layer the first is taken to have the prefills")
    if ((count[inverse] == 1) & ~stated).any():
        notes.append(
            "mixed steps: attention's FLOPs take all sequences as equally long, for their lengths are not stated"
        )
    if (halves == _UNTOLD).any():
        notes.append(
            "mixed steps: which sequences each of a layer's attention ops reads is not known, so no bytes for them"
        )
    return halves, notes


def _named_halves(events: Events, kernel: IntArray) -> IntArray:
    codes, inverse = np.unique(kernel, return_inverse=True)
    said = [
        _PREFILLS if _OF_PREFILLS.search(name) else _DECODES if _OF_DECODES.search(name) else _ALL
        for name in (events.texts[c] for c in codes.tolist())
    ]
    return np.array(said, dtype=np.int64)[inverse.reshape(-1)]


def _facts(step: StepName | None, half: int) -> StepName | Attended:
    """The counts of a step, or of the part of its sequences that an op attends to."""
    if step is None:
        return StepName(None)
    if half == _UNTOLD:
        return StepName(step.phase, step.batch, step.tokens)
    return step if half == _ALL or step.halves is None else step.halves[half - _PREFILLS]


def _source(op: Op, rows: Rows, row: int) -> int:
    if op.kind == ops.OTHER:
        return NONE
    if not op.dims:
        return NAME
    if rows.tensors[row] >= 0 or rows.nbytes[row] or rows.message[row] >= 0:
        return int(rows.source[row]) if rows.source[row] in (CAPTURE, ANNOTATION) else SHAPES
    return PERIOD if rows.source[row] == PERIOD else MODEL


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


def _padding(events: Events, tensors: Sequence[int], model: ModelSpec | None) -> int:
    """The multiple to which the MoE's hidden size is padded: the smallest of 64, 128, 256 that explains what is seen.

    Where no shape shows the experts, it is that of the kernels whose sizes are public.
    """
    if model is None or not model.experts:
        return 0
    seen = {
        s[0][1]
        for s in (events.tensor_sets[t].shapes for t in tensors)
        if len(s) >= 2
        and len(s[0]) == 2
        and len(s[1]) == 2
        and s[0][0] == s[1][0]
        and s[1][1] == model.experts
    }
    if not seen:
        return expert_padding(model)
    for multiple in (64, 128, 256):
        wide = -(-model.hidden // multiple) * multiple
        if wide != model.hidden and wide in seen:
            return multiple
    return 0


def sources() -> Sequence[str]:
    """Texts of the op_source column, by code."""
    return SOURCES
