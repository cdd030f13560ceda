"""Draft: a run while knobs edit it. Ops are held once per cell, rows only point at cells, so an edit never loops over rows.

A cell is a distinct (op, layer, kind of step). Rows lie in the order step, rank, start; rows outside of every step are
not in a draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.replay import edit
from moetrace.replay.base import Base, base_of, layer_blocks, step_classes
from moetrace.replay.parallel import Parallel, Share
from moetrace.replay.scenario import Scenario, gpus_of, parallel_of
from moetrace.run import Run, Step

_LINEAR = 2  # in what tells a kind of layer: linear attention, for which no other layer can stand

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

EXPERTS = frozenset({"moe_gate_up", "moe_down", "moe_experts"})


@dataclass(frozen=True, slots=True)
class At:
    """Where a cell lies: a step like it (index), its layer (-1: none or not known) and the recorded layer it repeats."""

    step: int
    layer: int
    source_layer: int


@dataclass(frozen=True, slots=True)
class Loop:
    """`rows` rows, the first of them of this cell, run `times` times over; of many scenarios, each its own times."""

    times: Any
    rows: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A run being edited. `rows` index into the base; an inserted row names the row that it follows."""

    run: Run
    hw: Hardware
    scenario: Scenario
    base: Base
    ops: tuple[Op, ...]  # of each cell, as edited
    origin: tuple[Op | None, ...]  # of each cell, as recorded; None: inserted
    at: tuple[At, ...]
    rows: IntArray
    cell: IntArray  # of each row
    inserted: BoolArray
    steps: tuple[Step, ...]
    model: ModelSpec | None
    notes: tuple[str, ...] = ()
    # Of each step; empty: every step is computed once, by one rank's whole batch.
    shares: tuple[Share, ...] = ()
    loops: tuple[Loop | None, ...] = ()  # that begin at each cell; empty: every row runs once
    padded: bool = False  # decode steps have more rows than sequences

    @classmethod
    def of(cls, run: Run, hw: Hardware, scenario: Scenario) -> Draft:
        """The run as recorded, with nothing edited yet. Raises ScenarioError if no op lies in a step."""
        base = base_of(run)
        like = step_classes(run.meta.steps)
        width = int(base.layer.max()) + 2
        key = (base.op * width + base.layer + 1) * len(run.meta.steps) + like[base.step]
        _, first, cell = np.unique(key, return_index=True, return_inverse=True)
        ops = tuple(base.ops[i] for i in base.op[first].tolist())
        at = tuple(
            At(s, layer, layer)
            for s, layer in zip(like[base.step[first]].tolist(), base.layer[first].tolist(), strict=True)
        )
        rows = np.arange(base.row.size)
        return cls(
            run,
            hw,
            scenario,
            base,
            ops,
            ops,
            at,
            rows,
            cell.reshape(-1),
            np.zeros(rows.size, bool),
            run.meta.steps,
            run.meta.model,
        )

    # -- what knobs ask --------------------------------------------------------------------------------------------
    @property
    def layers(self) -> int:
        """Number of layers (the highest index and one more); 0 if no op says its layer."""
        return max((at.layer for at in self.at), default=-1) + 1

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers with expert ops, ascending; -1 is in it if some expert op does not say its layer."""
        return tuple(sorted({at.layer for op, at in self._expert_cells()}))

    @property
    def experts(self) -> int:
        """Experts per layer (n_e), 0 if no expert op says."""
        return max((int(op["experts"]) for op, _ in self._expert_cells()), default=0)

    @property
    def topk(self) -> int:
        """Experts per token as recorded, 0 if no expert op says."""
        return max(
            (int(op["topk"]) for op in self.origin if op and op.kind in EXPERTS and op.has("topk")), default=0
        )

    @property
    def gpus(self) -> int:
        """GPUs that the replay uses."""
        return gpus_of(self.hw, self.run)

    @property
    def ran(self) -> Parallel:
        """Parallelism of the recording."""
        meta = self.run.meta
        return Parallel(meta.tp, meta.ep, meta.pp, meta.dp)

    @property
    def parallel(self) -> Parallel:
        """Parallelism of the replay."""
        return parallel_of(self.scenario, self.gpus, self.run)

    @property
    def kv_dtype(self) -> str:
        """Element type of the KV cache: that of its attention ops, else the model's activations'."""
        cached = {op.weight_dtype for op in self.ops if op.kind in edit.CACHED and op.kind != "kv_write"}
        return cached.pop() if len(cached) == 1 else self.model.act_dtype if self.model else "bf16"

    def _expert_cells(self) -> Iterable[tuple[Op, At]]:
        cells = zip(self.ops, self.at, strict=True)
        return ((op, at) for op, at in cells if op.kind in EXPERTS and op.has("experts", "topk", "tokens"))

    def batch_of(self, step: int) -> int | None:
        """Sequences in a step: as the step says, else its attention ops, else its tokens if it decodes."""
        said = self.steps[step]
        if said.batch:
            return said.batch
        like = step_classes(self.run.meta.steps)[step]
        seen = {
            int(op["batch"])
            for op, at in zip(self.ops, self.at, strict=True)
            if at.step == like and op.has("batch", "kv")
        }
        if len(seen) == 1:
            return seen.pop()
        return said.tokens if said.phase == "decode" else None

    def window(self, layer: int, op: Op) -> int:
        """The sliding window of a recorded layer in tokens, 0 for full attention or where nothing says otherwise."""
        model = self.run.meta.model
        if model is not None and 0 <= layer < model.layers:
            return model.window(layer)
        return int(op.get("window", 0) or 0)

    def stated(self, name: str, default: Any = None) -> Any:
        """The value of a knob as the scenario states it, else the text of what a predicted run was made with."""
        return self.scenario.get(name, self.made_with.get(name, default))

    @property
    def made_with(self) -> Mapping[str, str]:
        """Texts of the knobs that a predicted run was made with, by whichever prediction before it; none of other runs."""
        meta = self.run.meta
        return meta.facts.get("scenario", {}) if meta.kind == "predicted" else {}

    # -- what knobs do ---------------------------------------------------------------------------------------------
    def noted(self, *texts: str) -> Draft:
        """This draft with more assumptions said."""
        return replace(self, notes=(*self.notes, *texts))

    def with_model(self, **edits: Any) -> Draft:
        """This draft with model fields replaced, if the model is known."""
        return replace(self, model=self.model.with_edits(**edits)) if self.model else self

    def with_steps(self, change: Callable[[int, Step], Step]) -> Draft:
        """This draft with each step changed."""
        return replace(self, steps=tuple(change(i, s) for i, s in enumerate(self.steps)))

    def rewrite(self, change: Callable[[Op, At], Op]) -> Draft:
        """This draft with the op of each cell changed."""
        return replace(self, ops=tuple(change(op, at) for op, at in zip(self.ops, self.at, strict=True)))

    def split(self, values: IntArray) -> tuple[Draft, IntArray]:
        """This draft with cells parted by a value per row, and the value of each new cell."""
        low = values.min(initial=0)
        pairs, cell = np.unique(
            self.cell * (values.max(initial=0) - low + 1) + values - low, return_inverse=True
        )
        old, value = np.divmod(pairs, values.max(initial=0) - low + 1)
        return self._recelled(old, cell.reshape(-1)), value + low

    def _recelled(self, old: IntArray, cell: IntArray) -> Draft:
        pick = old.tolist()
        return replace(
            self, ops=tuple(self.ops[i] for i in pick), origin=tuple(self.origin[i] for i in pick),
            at=tuple(self.at[i] for i in pick), cell=cell,
        )  # fmt: skip

    def layer_origins(self, depth: int) -> tuple[int, ...]:
        """For each of `depth` layers the recorded layer that stands for it: itself, else one of its kind, in turn.

        A kind is dense or MoE, and sliding, linear or full attention. Raises ScenarioError if none of that kind was recorded.
        """
        recorded, moe = self.layers, set(self.moe_layers)
        full = self.model.with_edits(layers=max(depth, recorded)) if self.model else None

        def kind(layer: int) -> tuple[bool, int]:
            if full is None:
                return layer % recorded in moe, 0
            return full.is_moe(layer), _LINEAR * full.is_linear(layer) + (full.window(layer) > 0)

        kinds = [kind(layer) for layer in range(recorded)]
        turns: dict[tuple[bool, int], int] = {}
        origins = list(range(min(recorded, depth)))
        for layer in range(recorded, depth):
            wanted = kind(layer)
            options = [i for i, k in enumerate(kinds) if k == wanted] or [
                i for i, k in enumerate(kinds) if k[0] == wanted[0] and k[1] < _LINEAR > wanted[1]
            ]
            if not options:
                what = ("MoE" if wanted[0] else "dense") + " with linear attention" * (wanted[1] >= _LINEAR)
                raise ScenarioError(
                    f"layers={depth}: layer {layer} is {what}, and no {what} layer was recorded to repeat"
                )
            turn = turns.get(wanted, 0)
            origins.append(options[turn % len(options)])
            turns[wanted] = turn + 1
        return tuple(origins)

    def with_layers(self, origins: Sequence[int]) -> Draft:
        """This draft with as many layers as `origins`, each a copy of the recorded one named there.

        Ops of no layer keep their place: before the first layer, after the last, or with the layer they lie within.
        """
        layer = np.array([at.layer for at in self.at])[self.cell]
        block, tail = layer_blocks(layer, self.base.segment[self.rows]), np.iinfo(np.int32).max
        parts = [
            (np.flatnonzero(block == b), place)
            for b, place in ((-1, -1), *zip(origins, range(len(origins)), strict=True), (tail, tail))
        ]
        pick = np.concatenate([p for p, _ in parts])
        place = np.concatenate([np.full(p.size, to, dtype=np.int64) for p, to in parts])
        order = np.lexsort((pick, place, self.base.segment[self.rows[pick]]))
        pick, place = pick[order], place[order]
        wide = replace(self, rows=self.rows[pick], cell=self.cell[pick], inserted=self.inserted[pick])
        draft, target = wide.split(np.where(layer[pick] >= 0, place, -1))
        at = tuple(replace(a, layer=t) for a, t in zip(draft.at, target.tolist(), strict=True))
        return replace(draft, at=at).with_model(layers=len(origins))

    def last_of_layer(self, choices: tuple[frozenset[str], ...]) -> IntArray:
        """The last row of these kinds in each layer of each step (the first choice that it has); without layers, every one."""
        layer = np.array([at.layer for at in self.at])[self.cell]
        group = self.base.segment[self.rows] * (layer.max(initial=0) + 2) + layer + 1
        found: list[IntArray] = []
        taken = np.array([], dtype=np.int64)
        for kinds in choices:
            hit = np.flatnonzero(np.array([op.kind in kinds for op in self.ops])[self.cell])
            hit = hit[~np.isin(group[hit], taken)]
            known = hit[layer[hit] >= 0]
            groups, backward = np.unique(group[known][::-1], return_index=True)
            found += [known[::-1][backward], hit[layer[hit] < 0]]
            taken = np.concatenate([taken, groups])
        return np.sort(np.concatenate(found)) if found else np.array([], dtype=np.int64)

    def inserted_after(self, after: IntArray, make: Callable[[Op, At], Op]) -> Draft:
        """This draft with a new op after each of these rows."""
        if not after.size:
            return self
        cells, which = np.unique(self.cell[after], return_inverse=True)
        new = [make(self.ops[i], self.at[i]) for i in cells.tolist()]
        place = after + 1
        return replace(
            self, ops=(*self.ops, *new), origin=(*self.origin, *([None] * len(new))),
            at=(*self.at, *(self.at[i] for i in cells.tolist())),
            rows=np.insert(self.rows, place, self.rows[after]),
            cell=np.insert(self.cell, place, len(self.ops) + which.reshape(-1)),
            inserted=np.insert(self.inserted, place, True),
        )  # fmt: skip
