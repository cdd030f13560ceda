"""The third look at a trace's batches: their ops and the work of these, as parts of the run's table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace import ops
from moetrace.formats.events import BoolArray, Events
from moetrace.grouping import distinct_rows
from moetrace.model import ModelSpec
from moetrace.op import Op
from moetrace.ops.columns import record_columns
from moetrace.parse import capture, facts
from moetrace.parse.build import Ops, Placed, attended_halves, sources
from moetrace.parse.held import Held
from moetrace.parse.kinds import Kinds
from moetrace.parse.nesting import IntArray
from moetrace.parse.parts import part_roles
from moetrace.parse.picked import picked_rows
from moetrace.parse.placing import Order, drafts_among
from moetrace.parse.routed import Routed
from moetrace.parse.rows import NONE, PERIOD, Rows, by_step
from moetrace.parse.steps import StepName
from moetrace.routing import Routing, RoutingLog
from moetrace.run import Step, TableParts, nullable, numbers, ops_table, text_column


@dataclass(frozen=True, slots=True)
class Looked:
    """What the first two looks found. Ops find further names of parts, which `labels` takes."""

    events: Events
    names: Sequence[StepName]
    kinds: Kinds
    tensors: Sequence[int]
    labels: list[str]
    routing: Routing | RoutingLog | None
    order: Order
    model: ModelSpec | None
    split: facts.Split
    layer_source: str
    counted: bool  # layers are told by the order of ops


class Third:
    """The third look: each batch's ops and their work, as a part of the table."""

    def __init__(self, looked: Looked, writer: TableParts) -> None:
        self._looked, self.writer = looked, writer
        events, model, split = looked.events, looked.model, looked.split
        held = Held.of(split.tp or 1, split.ep or 1, events.rank, events.world_size)
        self.routed = (
            Routed(looked.routing, looked.names, model, held) if looked.routing is not None else None
        )
        put = self.routed.put if self.routed is not None else None
        self._ops = Ops(events, looked.names, model, split, looked.tensors, put)
        self._spans = np.full((len(looked.names), 2), -1, dtype=np.int64)
        self.missing = capture.Missing()
        self.notes: set[str] = set()
        self.ops = self.outside = self.told = 0
        self._drafts = np.array(drafts_among(looked.names), dtype=np.int64)

    def write(self, rows: Rows) -> None:
        """One batch."""
        looked, model = self._looked, self._looked.model
        named, kinds = looked.kinds.of(rows), looked.kinds.names
        ordered, role, repeated, kind_index = looked.order.place(rows, named)
        concluded = (kind_index != named) | (repeated & looked.counted)
        rows.source[concluded & (rows.source == NONE)] = PERIOD
        self.told += int((kind_index != named).sum())
        layer = ordered if looked.counted else rows.layer
        layer = np.where(np.isin(rows.step, self._drafts), -1, layer)
        hidden = model.hidden if model else 0
        role, labels = part_roles(
            looked.events, rows, rows.step, layer, kind_index, kinds, rows.part, role, looked.labels, hidden
        )
        role, labels = picked_rows(looked.events, rows, layer, role, labels)
        looked.labels[:] = labels
        placed = Placed(rows.step, layer, kinds, kind_index, role, rows.part, labels)
        halves, said = attended_halves(looked.events, rows, placed, looked.names)
        self.notes |= set(said)
        index, source = self._ops.build(rows, placed, halves)
        used, index = np.unique(index, return_inverse=True)
        every = list(self._ops.found)
        found, index = [every[i] for i in used.tolist()], index.reshape(-1)
        self.missing.saw(rows, ops.works(found).known[index])
        self.ops += len(rows)
        self.outside += int((rows.step < 0).sum())
        self._span(rows)
        self.writer.write(self._table(rows, layer, repeated & looked.counted, found, index, source))

    def _span(self, rows: Rows) -> None:
        for i, at in by_step(rows):
            self._spans[i] = rows.start[at].min(), rows.end[at].max()

    def steps(self) -> Iterable[Step]:
        """The run's steps that have ops."""
        for i, (name, (low, high)) in enumerate(zip(self._looked.names, self._spans.tolist(), strict=True)):
            if low != -1 or high != -1:
                yield Step(
                    i,
                    f"{name.phase or 'step'} {i}",
                    name.phase,
                    low,
                    high,
                    name.batch,
                    name.tokens,
                    name.kv_tokens,
                    name.padded,
                )

    def _table(
        self, rows: Rows, layer: IntArray, repeated: BoolArray, found: list[Op], index: IntArray, source: npt.NDArray[np.int8]
    ) -> pa.Table:  # fmt: skip
        events, step = self._looked.events, rows.step
        phases = [n.phase for n in self._looked.names]
        known = sorted({p for p in phases if p})
        phase = np.array([known.index(p) if p else -1 for p in phases] + [-1], dtype=np.int64)[step]
        used, kernel = distinct_rows(rows.kernel)
        return ops_table(
            {
                "rank": numbers(np.full(len(rows), events.rank, dtype=np.int64)),
                "device": numbers(rows.device),
                "stream": numbers(rows.stream),
                "step": nullable(step, step < 0, pa.int32()),
                "phase": text_column(phase, known),
                "layer": nullable(layer, layer < 0, pa.int32()),
                "kernel": text_column(kernel, [events.texts[c] for c in rows.kernel[used]]),
                "start_ns": numbers(rows.start),
                "dur_ns": numbers(rows.dur),
                "launch_ns": nullable(rows.launch, rows.launch < 0, pa.int64()),
                "graph": nullable(rows.graph, rows.graph < 0, pa.int64()),
                "op_source": text_column(source.astype(np.int64), sources()),
                "layer_source": text_column(
                    np.where(layer >= 0, repeated, -1), [self._looked.layer_source, "period"]
                ),
                **record_columns(found, index, rows.dur),
            }
        )
