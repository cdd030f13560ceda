"""Routing onto the steps of a trace: passes matched to steps, counted distinct experts, estimates where none match."""

from __future__ import annotations

import numpy as np

from moetrace.errors import RunError
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.parse.build import ROUTED, count_cells, count_distinct
from moetrace.parse.nesting import IntArray
from moetrace.parse.steps import StepName
from moetrace.routing import Routing, RoutingLog, popularity_distinct

COUNTED = "counted in the recording"
_MATCHED = "counted in the routing given, whose passes are the steps by their order and tokens"
_POPULAR = "estimated from the experts' popularity in the routing given, whose passes match no steps"


class Routed:
    """Routing by the steps of a run, and what it says of the distinct experts of ops.

    The recorder numbers its steps; passes of another log are matched where the tokens of all steps tell one place for
    them. Passes that match none keep their counts under numbers behind the run's steps, for their popularity.
    """

    def __init__(self, told: Routing | RoutingLog, names: list[StepName], model: ModelSpec | None) -> None:
        """Raises RunError where the routing is not of the model that ran."""
        self.remarks: list[str] = []
        if isinstance(told, RoutingLog):
            sizes = (model.experts, model.topk) if model is not None and model.experts else (None, None)
            told, self.remarks = told.routing(*sizes)
        if model is not None and model.experts and len(told) and told.experts != model.experts:
            raise RunError(
                f"the routing given is of {told.experts} experts, {model.name} has {model.experts}"
            )
        numbers = {n.recorded: i for i, n in enumerate(names) if n.recorded is not None}
        self.source = COUNTED
        if not numbers and len(told):
            numbers = _matched(told, names)
            self.source = _MATCHED if numbers else _POPULAR
        if self.source == _POPULAR:
            numbers = {s: len(names) + i for i, s in enumerate(told.steps)}
        self.routing = told.renumbered(numbers)
        self._cells = count_cells(self.routing) if self.source != _POPULAR else None

    def put(
        self, index: IntArray, found: list[Op], step: IntArray, layer: IntArray
    ) -> tuple[IntArray, list[Op]]:
        """(op of each row, ops): as they were, with the distinct experts that are known of their step and layer."""
        if self._cells is None:
            return _estimated(index, found, layer, self.routing)
        return count_distinct(index, found, step, layer, self._cells)


def _matched(routing: Routing, names: list[StepName]) -> dict[int, int]:
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
    routed = np.array([op.kind in ROUTED and op.get("topk") == routing.topk for op in found], dtype=bool)
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
