"""Kernels whose names say nothing, told by the model: a layer has its GEMMs, its attention and its experts, in their order.

Each layer's kernels are laid beside the ops that `forward` has for it, such that as many as can be fall on ops of their
own family in order. A kernel of no known kind that falls on an op that every layer must have is that op.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from moetrace.forward import step_ops
from moetrace.model import ModelSpec
from moetrace.ops import OTHER
from moetrace.parse.nesting import IntArray
from moetrace.parse.order import ATTENTION, LINEAR

_GEMM, _ATTENTION, _UP, _DOWN = "gemm", "attention", "moe_gate_up", "moe_down"
_NEEDED = frozenset({_GEMM, _ATTENTION, LINEAR, _UP, _DOWN})  # what no engine can leave out of a layer
_SLOT = {
    **dict.fromkeys(("qkv_proj", "o_proj", "dense_gate_up", "dense_down"), _GEMM),
    **dict.fromkeys(("shared_gate_up", "shared_down", "shared_gate"), _GEMM),
    **{kind: _ATTENTION for kind in ATTENTION if kind != LINEAR},
    **dict.fromkeys(("moe_act", "shared_act"), "activation"),
}  # fmt: skip
_BOTH = {"moe_gemm": (_UP, _DOWN), "moe_experts": (_UP, _DOWN), _GEMM: (_GEMM, "router")}
# What a kernel on an op of its kind is worth, the more the less it can be missing.
_KNOWN, _LIGHT, _GUESSED = 3, 1, 2
_LONGEST = 4  # times as long as all that could be in its place: then the longest is taken


def told(
    kinds: Sequence[str], names: IntArray, dur: IntArray, layers: IntArray, model: ModelSpec
) -> dict[int, str]:
    """The kind of each name that `kinds` do not know and the model tells, from one step's ops; empty where nothing fits.

    `names` are codes of kernels of unknown kind, `dur` ns, `layers` the layer of each op, -1 for none. A name is told only
    where all its places in layers say the same, and only if then no layer lacks an op.
    """
    if model.experts and not model.gated:
        return {}
    seconds: dict[int, int] = {}
    for i in np.flatnonzero(np.array(kinds, dtype=object) == OTHER).tolist():
        seconds[int(names[i])] = seconds.get(int(names[i]), 0) + int(dur[i])
    said: dict[int, set[frozenset[str]]] = {}
    for ops, needs in _distinct(kinds, names, layers, model):
        fit = _laid(ops, needs, seconds)
        if fit is None:
            return {}
        for i, (kind, name) in enumerate(ops):
            if kind == OTHER:
                said.setdefault(name, set()).add(fit.get(i, frozenset()))
    found = {name: _kind(places, model) for name, places in said.items()}
    return {name: kind for name, kind in found.items() if kind}


def _kind(places: set[frozenset[str]], model: ModelSpec) -> str:
    """The one kind that a name has in all its places; empty for none."""
    if places <= {frozenset({_UP}), frozenset({_DOWN})}:
        return "moe_gemm" if len(places) > 1 else next(iter(next(iter(places))))
    if places == {frozenset({_UP, _DOWN})}:
        return "moe_experts"
    if len(places) != 1 or len(only := next(iter(places))) != 1:
        return ""
    kind = next(iter(only))
    mla = kind == _ATTENTION and model.attention == "mla"
    return ("sparse_mla" if model.index_topk else "mla_attention") if mla else kind


def _distinct(
    kinds: Sequence[str], names: IntArray, layers: IntArray, model: ModelSpec
) -> Iterator[tuple[tuple[tuple[str, int], ...], tuple[str, ...]]]:
    """(kind and name of each op, what the model has) of each distinct layer that lies in one piece."""
    slots = _slots(model)
    edges = np.flatnonzero(np.diff(layers, prepend=-2, append=-2))
    found = dict.fromkeys(
        (tuple(zip(kinds[low:high], names[low:high].tolist(), strict=True)), slots[layers[low]])
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        if 0 <= layers[low] < len(slots)
    )
    yield from found


@lru_cache(maxsize=8)
def _slots(model: ModelSpec) -> list[tuple[str, ...]]:
    """What each layer of the model has in a decode step, in order."""
    out: list[list[str]] = [[] for _ in range(model.layers)]
    for layer, op in step_ops(model, 1, 1, 1):
        if layer >= 0:
            out[layer].append(_SLOT.get(op.kind, op.kind))
    return [tuple(slots) for slots in out]


def _laid(
    ops: tuple[tuple[str, int], ...], needs: tuple[str, ...], seconds: Mapping[int, int]
) -> dict[int, frozenset[str]] | None:
    """What each op of unknown kind can be, by its place; None where then the layer still lacks something it needs."""
    worth = [[_worth(kind, slot) for slot in needs] for kind, _ in ops]
    to, back = _best(worth), _best([row[::-1] for row in worth[::-1]])
    most, n, m = to[-1][-1], len(ops), len(needs)
    sure: set[int] = set()
    open_: dict[int, set[int]] = {}  # slot -> ops of unknown kind that may be it
    for j, slot in enumerate(needs):
        if slot not in _NEEDED:
            continue
        on = [
            i for i in range(n) if worth[i][j] and to[i][j] + worth[i][j] + back[n - 1 - i][m - 1 - j] == most
        ]
        strange = {i for i in on if ops[i][0] == OTHER}
        if not on:
            if slot != _DOWN or not any(needs[k] == _UP and (k in sure or k in open_) for k in range(j)):
                return None
        elif len(strange) < len(on):
            sure.add(j)
        else:
            open_[j] = _longest(strange, ops, seconds)
    out: dict[int, frozenset[str]] = {}
    for j, places in open_.items():
        if len(places) == 1:
            i = next(iter(places))
            out[i] = out.get(i, frozenset()) | {needs[j]}
    return out


def _longest(places: set[int], ops: tuple[tuple[str, int], ...], seconds: Mapping[int, int]) -> set[int]:
    """The one of several ops in question that takes nearly all of their time, else all of them."""
    times = {i: seconds[ops[i][1]] for i in places}
    first = max(times, key=lambda i: times[i])
    return {first} if times[first] >= _LONGEST * (sum(times.values()) - times[first]) else places


def _worth(kind: str, slot: str) -> int:
    """What it is worth that a kernel of some kind falls on an op of the model."""
    if kind == OTHER:
        return _GUESSED if slot in _NEEDED else 0
    if slot in _BOTH.get(kind, ()) or slot == _SLOT.get(kind, kind):
        return _KNOWN if slot in _NEEDED or slot == "router" else _LIGHT
    return 0


def _best(worth: list[list[int]]) -> list[list[int]]:
    """The most that the first i ops and the first j of the model can be worth, [ops + 1][of the model + 1]."""
    width = len(worth[0]) if worth else 0
    table = [[0] * (width + 1)]
    for row in worth:
        last, now = table[-1], [0]
        for j, value in enumerate(row):
            now.append(max(last[j + 1], now[j], last[j] + value if value else 0))
        table.append(now)
    return table
