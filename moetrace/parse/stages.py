"""The stages behind the rows: what is known of the whole run, then each batch's ops, work and table.

Batches are looked at three times. The first look finds the model, the second, by the model's own order, how ranks share it,
and the third makes the ops. A short trace is one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moetrace import formats, ops
from moetrace.errors import TraceError
from moetrace.formats.events import Events, Stored
from moetrace.model import ModelSpec
from moetrace.model.fields import is_whole
from moetrace.parse import aside, capture, facts
from moetrace.parse.captured import captured_in
from moetrace.parse.gather import gather
from moetrace.parse.gathered import Gathered
from moetrace.parse.kinds import Kinds
from moetrace.parse.passes import MOST_LAYERS
from moetrace.parse.placing import Order, needs_model, remarks
from moetrace.parse.rows import Rows, by_step
from moetrace.parse.steps import complete, drop_strays, unused_kv, verifying
from moetrace.parse.third import Looked, Third
from moetrace.routing import Routing, RoutingLog
from moetrace.run import (
    GENERATING,
    OPS_SCHEMA,
    OWN_EXPERTS,
    TABLE_FACTS,
    Meta,
    Run,
    TableParts,
)

_EXPERTS = frozenset({"moe_gemm", "moe_gate_up", "moe_down"})
_TOLD = "{} kernels whose names moetrace does not know are taken for what {} has in their place in a layer (op_source: period)"
_MOST_NOTES = 10  # of one kind


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says of a run beside its trace."""

    model: ModelSpec | None
    kv_len: int | None
    split: facts.Split
    hardware: str | None
    names: ops.Names | None = None  # of communication, which go before the built-in ones


def resolved(
    events: Events | Stored,
    path: object,
    source: str,
    recording: Mapping[str, Any],
    routing: Routing | RoutingLog | None,
    asked: Asked,
    captures: Sequence[Path | formats.Remote],
) -> Run:
    """The run of a trace's events; `recording` is what its recorder noted, `captures` the traces of its graphs' capture."""
    head = events if isinstance(events, Events) else events.head
    recording = recording or head.metadata
    stages = Stages(head, gather(events), path, recording, routing, asked, captures)
    return stages.run(source, None if isinstance(events, Events) else events.spill)


class Stages:
    """The facts that the stages share."""

    def __init__(
        self, events: Events, gathered: Gathered, path: object, recording: Mapping[str, Any],
        routing: Routing | RoutingLog | None, asked: Asked, captures: Sequence[Path | formats.Remote],
    ) -> None:  # fmt: skip
        self.events, self.path, self.recording, self.routing, self.asked = (
            events,
            path,
            recording,
            routing,
            asked,
        )
        self.gathered, self.batches = gathered, gathered.batches
        self.names = [complete(n, asked.kv_len if n.phase in GENERATING else None) for n in gathered.steps]
        self.kinds = Kinds(events, asked.names)
        self.seen = facts.Seen(events)
        self.labels = list(gathered.marks.labels)
        self.captures = (
            capture.Captures(events, captured_in(captures, events), [n.tokens for n in self.names])
            if captures
            else None
        )
        self.notes: list[str] = []
        self._span_ns = np.full(len(self.names), np.nan)
        self._aside = self.left_out = 0
        self.only_aside = False

    def run(self, source: str, spill: formats.Spill | None) -> Run:
        """All of it."""
        strays, layers = self._first_look()
        left = self._set_aside()
        names, asked = self.names, self.asked
        notes = self.gathered.reach.remarks() + formats.remarks(self.events.counts) + self.gathered.doubts
        notes += self.gathered.nodes.remarks()
        notes += self.captures.remarks() if self.captures else []
        notes += [*self.gathered.notes, *_few(strays), *sorted({n.note for n in names if n.note})]
        notes += unused_kv(names, asked.kv_len) + verifying(names)
        notes += left + aside.padding(names)
        layer_source = self.gathered.marks.layer_source
        counted = layer_source == "none" and layers > 0
        shown = 0 if layers > MOST_LAYERS else layers
        dims = self.seen.dims(shown if counted else self.seen.layers)
        model, model_source, told = facts.model_of(dims, self.recording, asked.model)
        if model is not None and not model.experts and _EXPERTS & set(self.kinds.names):
            told.append(
                f"model {model.name} is dense, and the trace has expert kernels: give the model that ran"
            )
        asks = needs_model(layers, model, self.kinds.names)
        order = Order(self.events, self.kinds, self.labels, self.names, model if asks else None)
        outputs, repeated = self._second_look(order)
        if counted:
            layer_source = "order"
            told += remarks(layers, order, model, repeated)
        split, more = facts.split(self.events, self.seen.traffic, outputs, model, asked.split)
        looked = Looked(
            events=self.events,
            names=self.names,
            kinds=self.kinds,
            tensors=self.seen.tensors,
            labels=self.labels,
            routing=self.routing,
            order=order,
            model=model,
            split=split,
            layer_source=layer_source,
            counted=counted,
        )
        table = Third(
            looked, TableParts(OPS_SCHEMA.with_metadata(TABLE_FACTS), spill.file if spill else None)
        )
        for rows in self.batches:
            table.write(rows)
        notes += told + more + sorted(table.notes) + facts.recording_cost(self.recording)
        if table.told and model is not None:
            notes.append(_TOLD.format(table.told, model.name))
        notes += [] if self.captures else table.missing.remarks()
        notes += table.routed.remarks if table.routed else []
        meta = self._meta(source, table, model, model_source, split, notes)
        made, routing = table.writer.finish(), table.routed.routing if table.routed else None
        return Run(meta, made, routing) if isinstance(made, pa.Table) else Run(meta, None, routing, file=made)

    def _first_look(self) -> tuple[list[str], int]:
        """(remarks on strays, layers by the order of ops without a model); fills in what captures know."""
        self._leave_ranges()
        strays: list[str] = []
        order = Order(self.events, self.kinds, self.labels, self.names)

        def look(rows: Rows) -> None:
            inside = rows.step[rows.step >= 0]
            low, high = (int(inside.min()), int(inside.max()) + 1) if len(inside) else (0, 0)
            # An operator runs within its step's range, however long the system kept it waiting.
            if not rows.on_cpu:
                rows.step, said = drop_strays(rows.step, rows.start, rows.end, high - low, low)
                strays.extend(said)
            for i, at in by_step(rows):
                self._span_ns[i] = rows.end[at].max() - rows.start[at].min()
            if self.captures:
                self.captures.serve(rows)
            self.gathered.nodes.serve(rows)
            kinds = self.kinds.of(rows)
            self.seen.saw(rows, kinds, self.kinds.names)
            order.place(rows, kinds)

        self.batches.update(look)
        if not self.seen.rows:
            raise TraceError(
                f"{self.path} holds no kernels and no operators: nothing to parse (record with activities CPU and CUDA)"
            )
        return strays, order.layers

    def _leave_ranges(self) -> None:
        """Takes what ran in ranges of warm-up, dummy runs and captures out of the steps, unless nothing else did."""
        code = self.gathered.marks.aside
        if code < 0:
            return
        inside = sum(int(((rows.step >= 0) & (rows.part != code)).sum()) for rows in self.batches)

        def leave(rows: Rows) -> None:
            apart = (rows.part == code) & (rows.step >= 0)
            rows.step[apart] = -1
            self._aside += int(apart.sum())

        if inside:
            self.batches.update(leave)
        elif any(((rows.step >= 0) & (rows.part == code)).any() for rows in self.batches):
            self.only_aside = True

    def _set_aside(self) -> list[str]:
        """Takes what is no request's out of the steps, and says so; gives the steps what the captures know of them."""
        for step, size in (self.captures.padded if self.captures else {}).items():
            self.names[step] = replace(self.names[step], padded=size)
        out = aside.left_out(self.names, self._span_ns)
        said = aside.remarks(out, len(self.names), self._aside)
        if not out or len(out) == len(self.names):
            return said
        self.names, number = aside.renumbered(self.names, out)

        def number_anew(rows: Rows) -> None:
            rows.step = number[rows.step]

        self.batches.update(number_anew)
        self.left_out = len(out)
        return said

    def _second_look(self, order: Order) -> tuple[set[int], bool]:
        """(tensor sets of attention output projections, whether some layers rest on repetition), by the order of ops."""
        outputs: set[int] = set()
        by_repetition = False
        for rows in self.batches:
            _, role, repeated, _ = order.place(rows, self.kinds.of(rows))
            by_repetition |= bool(repeated.any())
            if "o_proj" in self.labels:
                sets = rows.tensors[role == self.labels.index("o_proj")]
                outputs |= set(np.unique(sets[sets >= 0]).tolist())
        return outputs, by_repetition

    def _meta(
        self, source: str, table: Third, model: ModelSpec | None, model_source: str, split: facts.Split, notes: list[str]
    ) -> Meta:  # fmt: skip
        hardware = self.asked.hardware
        device, profile = facts.device_of(self.events, self.seen, self.recording)
        if hardware and profile and hardware != profile:
            said = f"the trace says that it ran on {profile}: {hardware} was given and is taken instead"
            notes = [*notes, said]
        native = self.recording.get("native_layers")
        left_out = {"steps_left_out": self.left_out} if self.left_out else {}
        left_out |= {"only_aside": 1} if self.only_aside else {}
        own = {OWN_EXPERTS: True} if table.routed and table.routed.own_counted else {}
        on_cpu = self.seen.on_cpu
        provenance = table.routed.source if table.routed else "uniform formula: no routing was recorded"
        return Meta(
            kind="measured",
            source=source,
            steps=tuple(table.steps()),
            model=model,
            model_source=model_source,
            native_layers=native if is_whole(native, 1) else model.layers if model else None,
            device=device,
            device_class="cpu" if on_cpu else "gpu",
            hardware=hardware or profile,
            gpus=1 if on_cpu else max(self.events.world_size, split.tp or 1, split.ep or 1),
            tp=split.tp or 1,
            ep=split.ep or 1,
            engine=facts.engine_of(self.events, self.recording),
            routing=provenance if model is not None and model.experts else "none",
            notes=tuple(notes),
            facts={
                **self.events.counts,
                **self.gathered.reach.counts(),
                "ops": table.ops,
                "outside_steps": table.outside,
                **left_out,
                **own,
            },
        )


def _few(said: list[str]) -> list[str]:
    """Sentences of one kind, a few of them."""
    return (
        said
        if len(said) <= _MOST_NOTES
        else [*said[:_MOST_NOTES], f"... and {len(said) - _MOST_NOTES} more of these"]
    )
