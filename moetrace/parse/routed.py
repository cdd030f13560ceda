"""Routing onto the steps of a trace: passes matched to steps, counted distinct experts, estimates where none match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetrace.errors import RunError
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.parse.held import Held, OwnExperts
from moetrace.parse.nesting import IntArray
from moetrace.parse.steps import StepName
from moetrace.routing import Routing, RoutingLog, popularity_distinct

_ROUTED = ("moe_gate_up", "moe_down", "moe_experts")
COUNTED = "counted in the recording"
_MATCHED = "counted in the routing given, whose passes are the steps by their order and tokens"
_OF_RANK = "estimated for one rank of an expert-parallel group from the recorded choices"
_POPULAR = "estimated from the experts' popularity in the routing given, whose passes match no steps"


class Routed:
    """Routing by the steps of a run, and what it says of the distinct experts of ops.

    The recorder numbers its steps; passes of another log are matched where the tokens of all steps tell one place for
    them. Passes that match none keep their counts under numbers behind the run's steps, for their popularity.
    """

    def __init__(
        self,
        told: Routing | RoutingLog,
        names: Sequence[StepName],
        model: ModelSpec | None,
        held: Held | None = None,
    ) -> None:
        """`held` is the rank's part of experts that are shared out. Raises RunError: not the routing of the model that ran."""
        self._remarks: list[str] = []
        if isinstance(told, RoutingLog):
            sizes = (model.experts, model.topk) if model is not None and model.experts else (None, None)
            told, self._remarks = told.routing(*sizes)
        if model is not None and model.experts and len(told) and told.experts != model.experts:
            raise RunError(
                f"the routing is of {told.experts} experts, {model.name} has {model.experts}: give the model that ran"
            )
        numbers = {n.recorded: i for i, n in enumerate(names) if n.recorded is not None}
        source = COUNTED
        if not numbers and len(told):
            numbers = _matched(told, names)
            source = _MATCHED if numbers else _POPULAR
        if source == _POPULAR:
            numbers = {s: len(names) + i for i, s in enumerate(told.steps)}
        self.routing = told.renumbered(numbers)
        self._source = source
        self._cells = _cells_of(self.routing) if source != _POPULAR else None
        self._own = OwnExperts(self.routing, held, source != _POPULAR) if held and len(told) else None

    @property
    def source(self) -> str:
        """Where the distinct experts of the ops come from."""
        return _OF_RANK if self._own is not None and self._own.estimated else self._source

    @property
    def remarks(self) -> list[str]:
        """Sentences on what was left out, and on what one rank has of the experts."""
        return [*self._remarks, *(self._own.remarks() if self._own is not None else [])]

    @property
    def own_counted(self) -> bool:
        """Whether ops were counted on the experts of their own rank, of several that share them out."""
        return self._own is not None and self._own.counted

    def put(
        self, index: IntArray, found: list[Op], step: IntArray, layer: IntArray
    ) -> tuple[IntArray, list[Op]]:
        """(op of each row, ops): as they were, with the distinct experts that are known of their step and layer."""
        if self._own is not None:
            return self._own.put(index, found, step, layer)
        if self._cells is None:
            return _estimated(index, found, layer, self.routing)
        return _put(index, found, step, layer, self._cells)


def _matched(routing: Routing, names: Sequence[StepName]) -> dict[int, int]:
    """Run's step by the routing's pass where the tokens of every step fit one place only; else nothing."""
    sizes: dict[int, int] = {}
    for (number, _), tokens in routing.token_counts().items():
        sizes[number] = max(sizes.get(number, 0), tokens)
    passes, want = list(sizes), [n.tokens for n in names]
    if any(tokens is None for tokens in want):
        return {}
    places = [
        at
        for at in range(len(passes) - len(want) + 1)
        if [sizes[p] for p in passes[at : at + len(want)]] == want
    ]
    return {passes[places[0] + i]: i for i in range(len(want))} if len(places) == 1 else {}


def _estimated(
    index: IntArray, found: list[Op], layer: IntArray, routing: Routing
) -> tuple[IntArray, list[Op]]:
    """Puts the distinct experts expected of each layer's popularity into its expert ops of the recorded n_a."""
    routed = np.array([op.kind in _ROUTED and op.get("topk") == routing.topk for op in found], dtype=bool)
    at = np.flatnonzero(routed[index] & np.isin(layer, np.array(routing.layers, dtype=np.int64)))
    if not len(at):
        return index, found
    popularity = {number: routing.popularity(number) for number in routing.layers}
    pairs, inverse = np.unique(np.stack([index[at], layer[at]], axis=1), axis=0, return_inverse=True)
    known = {op: i for i, op in enumerate(found)}
    codes = []
    for i, number in pairs.tolist():
        expected = popularity_distinct(popularity[number], float(found[i]["tokens"]))
        codes.append(known.setdefault(found[i].with_dims(distinct_est=round(expected, 4)), len(known)))
    index = index.copy()
    index[at] = np.array(codes, dtype=np.int64)[inverse.reshape(-1)]
    return index, list(known)


def _cells_of(routing: Routing) -> IntArray:
    """(step, layer, distinct experts) of each cell that was recorded, shape [cells, 3]."""
    cells = routing.distinct()
    return np.array([(s, k, d) for (s, k), d in cells.items()], dtype=np.int64).reshape(-1, 3)


def _put(
    index: IntArray, found: list[Op], step: IntArray, layer: IntArray, keyed: IntArray
) -> tuple[IntArray, list[Op]]:
    """Puts the counted distinct experts (of `_cells_of`) into the expert ops of the steps and layers that were recorded."""
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
