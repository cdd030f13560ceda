"""Traces -> Run: links kernels to launches and operators, finds steps and layers, names every op and records its work.

`parse` is the whole way; the files beside it are its stages: rows (what is an op), steps, parts (annotations), order
(what the sequence of kernels says), capture (graphs), build (ops and their work), summary (what was covered).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from moetrace import formats, ops
from moetrace.errors import RunError, TraceError
from moetrace.files import is_run
from moetrace.formats.events import Events
from moetrace.hardware import load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.model.config import is_whole
from moetrace.op import Op
from moetrace.ops.columns import record_columns
from moetrace.parse import capture, facts, parts, routed
from moetrace.parse.build import Placed, attended_halves, build_ops, sources
from moetrace.parse.distinct import distinct_rows, rows_of_groups
from moetrace.parse.nesting import IntArray
from moetrace.parse.placing import by_order, needs_model, remarks
from moetrace.parse.rows import Rows, doubts, op_rows
from moetrace.parse.steps import StepName, complete, drop_strays, place, unused_kv
from moetrace.parse.summary import summary
from moetrace.routing import Routing, RoutingLog
from moetrace.run import Meta, Run, Step, nullable, ops_table, text_column

Progress = Callable[[float], object]
_IN_RECORDING = (
    "trace.json.gz",
    "trace.json",
)  # what the recorder calls a trace: its folder has the telling name
_CAPTURE = "capture.json.gz"  # and the trace of its graph's capture, if it replayed one


def open_run(
    path: str | os.PathLike[str],
    *,
    model: str | ModelSpec | None = None,
    capture_trace: str | os.PathLike[str] | None = None,
    kv_len: int | None = None,
    ran_tp: int | None = None,
    ran_ep: int | None = None,
    hardware: str | None = None,
    routing: Routing | RoutingLog | None = None,
    progress: Progress | None = None,
) -> Run:
    """The run at a path: a RUN directory is loaded, anything else is parsed (options as in `parse`).

    Raises RunError where an option about reading a trace is given with a RUN, which is read already.
    """
    root = Path(path)
    if is_run(root):
        options = {
            "model": model,
            "capture_trace": capture_trace,
            "kv_len": kv_len,
            "ran_tp": ran_tp,
            "ran_ep": ran_ep,
            "hardware": hardware,
            "routing": routing,
        }
        if given := [name for name, value in options.items() if value is not None]:
            raise RunError(f"{root} is parsed already: {', '.join(given)} can be given only with a trace")
        return Run.load(root)
    return parse(
        root,
        model=model,
        capture_trace=capture_trace,
        kv_len=kv_len,
        ran_tp=ran_tp,
        ran_ep=ran_ep,
        hardware=hardware,
        routing=routing,
        progress=progress,
    )


def parse(
    trace: str | os.PathLike[str],
    *,
    model: str | ModelSpec | None = None,
    capture_trace: str | os.PathLike[str] | None = None,
    kv_len: int | None = None,
    ran_tp: int | None = None,
    ran_ep: int | None = None,
    hardware: str | None = None,
    routing: Routing | RoutingLog | None = None,
    progress: Progress | None = None,
) -> Run:
    """The Run of a PyTorch-profiler trace file, or of a directory that `moetrace record` wrote.

    `model` (a built-in name or a config.json) supplies what a trace cannot; without it the recording's own model is
    taken, or the one catalogue entry that fits what is seen. `capture_trace` is the trace of the graph's capture,
    `kv_len` the KV tokens per sequence where annotations have none, `ran_tp` and `ran_ep` the sizes of tensor and expert
    parallelism where a rank's shapes do not show them, `hardware` the profile of the machine it ran on, `routing` which
    experts were chosen, in place of what lies beside the trace.
    Raises TraceError, ModelError or ProfileError with one line.
    """
    for option, number in (("kv_len", kv_len), ("ran_tp", ran_tp), ("ran_ep", ran_ep)):
        if number is not None and not is_whole(number, 1):
            raise TraceError(f"{option} is {number}: expected a whole number from 1 that a run could have")
    file, recording, recorded = _locate(Path(trace))
    if capture_trace is None and recording and file.with_name(_CAPTURE).is_file():
        capture_trace = file.with_name(_CAPTURE)
    given = model if isinstance(model, ModelSpec) else load_model(model) if model else None
    if hardware is not None:
        load_hardware(hardware)
    captured = formats.read(Path(capture_trace)) if capture_trace is not None else None
    events = formats.read(file, progress)
    parser = _Parser(
        events,
        file,
        recording or events.metadata,
        recorded if routing is None else routing,
        given,
        kv_len,
        facts.Split(ran_tp, ran_ep),
        hardware,
    )
    return parser.run(captured)


def _locate(path: Path) -> tuple[Path, Mapping[str, Any], Routing | None]:
    """(trace file, the recorder's metadata, the recorded routing) of a file or a recording's directory."""
    if not path.is_dir():
        return path, {}, None
    meta = path / "recording.json"
    traces = [p for p in (path / name for name in _IN_RECORDING) if p.is_file()]
    if not traces:
        runs = sorted(p.name for p in path.iterdir() if is_run(p))
        hint = f"; it holds the runs {', '.join(runs[:3])}{', ...' if runs[3:] else ''}" if runs else ""
        raise TraceError(
            f"{path} is a directory without run.json or trace.json.gz: expected a RUN, a recording or a trace file{hint}"
        )
    try:
        recording = orjson.loads(meta.read_bytes()) if meta.is_file() else {}
    except orjson.JSONDecodeError as err:
        raise TraceError(f"{meta} is damaged ({err}): record again") from err
    if not isinstance(recording, dict):
        raise TraceError(f"{meta} is damaged (expected an object with the recording's facts): record again")
    routing = path / "routing.parquet"
    return traces[0], recording, Routing.load(routing) if routing.is_file() else None


@dataclass(slots=True)
class _Parser:
    """The facts that the stages share."""

    events: Events
    path: Path
    recording: Mapping[str, Any]
    routing: Routing | RoutingLog | None
    given_model: ModelSpec | None
    kv_len: int | None
    given_split: facts.Split
    hardware: str | None

    def run(self, captured: Events | None) -> Run:
        events, notes = self.events, formats.remarks(self.events) + doubts(self.events)
        rows = op_rows(events)
        if not len(rows):
            raise TraceError(
                f"{self.path} holds no kernels and no operators: nothing to parse (record with activities CPU and CUDA)"
            )
        step, names, said = self._steps(rows)
        step, strays = drop_strays(step, rows.start, rows.end, len(names))
        if captured is not None:
            notes += capture.apply(rows, events, captured, step, [n.tokens for n in names])
        notes += said + strays + sorted({n.note for n in names if n.note}) + unused_kv(names, self.kv_len)
        kind_index, kinds = _kinds(events, rows)
        layer, layer_source = parts.annotated_layers(events, rows)
        part, labels = parts.annotated_parts(events, rows)
        ordered, role, roles = by_order(events, rows, step, kind_index, kinds, labels)
        counted = layer_source == "none" and bool((ordered >= 0).any())
        model, model_source, told = facts.model_of(
            events, rows, ordered if counted else layer, self.recording, self.given_model
        )
        if model is not None and not model.experts and {"moe_gemm", "moe_gate_up", "moe_down"} & set(kinds):
            told.append(
                f"model {model.name} is dense, and the trace has expert kernels: give the model that ran"
            )
        found_layers = ordered
        if needs_model(ordered, model):
            ordered, role, roles = by_order(events, rows, step, kind_index, kinds, labels, model)
        labels = roles
        if counted:
            layer, layer_source = ordered, "order"
            told += remarks(found_layers, ordered, model)
        attention_out = (
            role == labels.index("o_proj") if "o_proj" in labels else np.zeros(len(rows), dtype=bool)
        )
        traffic = facts.traffic_of(events, rows, kind_index, kinds)
        split, more = facts.split(events, traffic, rows.tensors[attention_out], model, self.given_split)
        notes += told + more
        hidden = model.hidden if model else 0
        role, labels = parts.part_roles(
            events, rows, step, layer, kind_index, kinds, part, role, labels, hidden
        )
        placed = Placed(step, layer, kinds, kind_index, role, part, labels)
        halves, more = attended_halves(events, rows, placed, names)
        notes += more
        index, found, source = build_ops(events, rows, placed, names, model, split, halves)
        if captured is None:
            notes += capture.missing(rows, ops.works(found).known[index])
        provenance, routing = "uniform formula: no routing was recorded", None
        if self.routing is not None:
            routing, index, found, provenance, more = routed.apply(
                self.routing, names, model, step, layer, index, found
            )
            notes += more
        table = self._table(rows, step, names, layer, layer_source, index, found, source)
        meta = self._meta(rows, step, names, model, model_source, split, provenance, notes)
        return Run(meta, table, routing)

    def _steps(self, rows: Rows) -> tuple[IntArray, list[StepName], list[str]]:
        """(step per row, what the steps are, remarks)."""
        step, names, said = place(self.events, rows)
        names = [complete(n, self.kv_len if n.phase == "decode" else None) for n in names]
        if not names:
            said = ["no step annotation was found: the whole trace is taken as one step"]
            return np.zeros(len(rows), np.int64), [StepName(None)], said
        used = np.unique(step[step >= 0])
        renumber = np.full(len(names), -1, dtype=np.int64)
        renumber[used] = np.arange(len(used))
        outside = int((step < 0).sum())
        if outside:
            said = [*said, f"{outside} op(s) lie outside of every step and are left out of the steps"]
        return np.where(step >= 0, renumber[step], -1), [names[i] for i in used.tolist()], said

    def _table(
        self,
        rows: Rows,
        step: IntArray,
        names: list[StepName],
        layer: IntArray,
        layer_source: str,
        index: IntArray,
        found: list[Op],
        source: npt.NDArray[np.int8],
    ) -> pa.Table:
        events, none = self.events, np.zeros(len(rows), np.int64)
        phases = [n.phase for n in names]
        known = sorted({p for p in phases if p})
        phase = np.array([known.index(p) if p else -1 for p in phases] + [-1], dtype=np.int64)[step]
        used, kernel = distinct_rows(rows.kernel)
        device = events.device[rows.event]
        return ops_table(
            {
                "rank": pa.array(none + events.rank),
                "device": pa.array(device),
                "stream": pa.array(events.lane[rows.event]),
                "step": nullable(step, step < 0, pa.int32()),
                "phase": text_column(phase, known),
                "layer": nullable(layer, layer < 0, pa.int32()),
                "kernel": text_column(kernel, [events.texts[c] for c in rows.kernel[used]]),
                "start_ns": pa.array(rows.start),
                "dur_ns": pa.array(rows.dur),
                "launch_ns": nullable(rows.launch, rows.launch < 0, pa.int64()),
                "graph": nullable(rows.graph, rows.graph < 0, pa.int64()),
                "op_source": text_column(source.astype(np.int64), sources()),
                "layer_source": text_column(np.where(layer >= 0, 0, -1), [layer_source]),
                **record_columns(found, index, rows.dur),
            }
        )

    def _meta(
        self,
        rows: Rows,
        step: IntArray,
        names: list[StepName],
        model: ModelSpec | None,
        model_source: str,
        split: facts.Split,
        provenance: str,
        notes: list[str],
    ) -> Meta:
        device, profile = facts.device_of(self.events, rows, self.recording)
        if self.hardware and profile and self.hardware != profile:
            said = f"the trace says that it ran on {profile}: {self.hardware} was given and is taken instead"
            notes = [*notes, said]
        steps, end = [], rows.end
        for i, (name, at) in enumerate(zip(names, rows_of_groups(step, len(names)), strict=True)):
            if len(at):
                low, high = int(rows.start[at].min()), int(end[at].max())
                steps.append(
                    Step(
                        i,
                        f"{name.phase or 'step'} {i}",
                        name.phase,
                        low,
                        high,
                        name.batch,
                        name.tokens,
                        name.kv_tokens,
                    )
                )
        native = self.recording.get("native_layers")
        return Meta(
            kind="measured",
            source=facts.source_of(
                self.path.parent.name if self.path.name in _IN_RECORDING else self.path.name
            ),
            steps=tuple(steps),
            model=model,
            model_source=model_source,
            native_layers=native if is_whole(native, 1) else model.layers if model else None,
            device=device,
            device_class="cpu" if rows.on_cpu else "gpu",
            hardware=self.hardware or profile,
            gpus=1 if rows.on_cpu else max(self.events.world_size, split.tp or 1, split.ep or 1),
            tp=split.tp or 1,
            ep=split.ep or 1,
            engine=facts.engine_of(self.events, self.recording),
            routing=provenance if model is not None and model.experts else "none",
            notes=tuple(notes),
            facts={**self.events.counts, "ops": len(rows), "outside_steps": int((step < 0).sum())},
        )


def _kinds(events: Events, rows: Rows) -> tuple[IntArray, list[str]]:
    """(index per row, kinds by name alone): one recognition per distinct kernel and operator."""
    first, inverse = distinct_rows(rows.kernel, rows.operator)
    kinds: dict[str, int] = {}
    codes = []
    for kernel, operator in zip(rows.kernel[first].tolist(), rows.operator[first].tolist(), strict=True):
        kind = ops.recognise(
            "" if rows.on_cpu else events.texts[kernel], events.texts[operator] if operator >= 0 else ""
        )
        codes.append(kinds.setdefault(kind, len(kinds)))
    return np.array(codes, dtype=np.int64)[inverse], list(kinds)


__all__ = ["open_run", "parse", "summary"]
