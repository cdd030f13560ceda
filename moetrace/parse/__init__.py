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
from moetrace.formats.events import DEVICE_RANGE, RANGE, Events
from moetrace.hardware import load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.op import Op
from moetrace.parse import capture, facts, parts
from moetrace.parse.build import Placed, build_ops, count_distinct, record_columns, sources
from moetrace.parse.nesting import IntArray, Ranges
from moetrace.parse.order import resolve
from moetrace.parse.rows import Rows, op_rows
from moetrace.parse.steps import StepName, complete, drop_strays, step_ranges
from moetrace.parse.summary import summary
from moetrace.routing import Routing
from moetrace.run import Meta, Run, Step, is_run, nullable, ops_table, text_column

Progress = Callable[[float], object]
_IN_RECORDING = (
    "trace.json.gz",
    "trace.json",
)  # what the recorder calls a trace: its folder has the telling name


def open_run(path: str | os.PathLike[str], **options: Any) -> Run:
    """The run at a path: a RUN directory is loaded, anything else is parsed (`options` as in `parse`)."""
    root = Path(path)
    if is_run(root):
        given = [name for name, value in options.items() if value is not None and name != "progress"]
        if given:
            raise RunError(f"{root} is parsed already: {', '.join(given)} can be given only with a trace")
        return Run.load(root)
    return parse(root, **options)


def parse(
    trace: str | os.PathLike[str],
    *,
    model: str | ModelSpec | None = None,
    capture_trace: str | os.PathLike[str] | None = None,
    kv_len: int | None = None,
    hardware: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """The Run of a PyTorch-profiler trace file, or of a directory that `moetrace record` wrote.

    `model` (a built-in name or a config.json) supplies what a trace cannot; without it the recording's own model is
    taken, or the one catalogue entry that fits what is seen. `capture_trace` is the trace of the graph's capture,
    `kv_len` the KV tokens per sequence where annotations have none, `hardware` the profile of the machine it ran on.
    Raises TraceError, ModelError or ProfileError with one line.
    """
    file, recording, routing = _locate(Path(trace))
    given = model if isinstance(model, ModelSpec) else load_model(model) if model else None
    if hardware is not None:
        load_hardware(hardware)
    captured = formats.read(Path(capture_trace)) if capture_trace is not None else None
    events = formats.read(file, progress)
    return _Parser(events, file, recording or events.metadata, routing, given, kv_len, hardware).run(captured)


def _locate(path: Path) -> tuple[Path, Mapping[str, Any], Routing | None]:
    """(trace file, the recorder's metadata, the recorded routing) of a file or a recording's directory."""
    if not path.is_dir():
        return path, {}, None
    meta = path / "recording.json"
    traces = [p for p in (path / name for name in _IN_RECORDING) if p.is_file()]
    if not traces:
        raise TraceError(
            f"{path} is a directory without run.json or trace.json.gz: expected a RUN, a recording or a trace file"
        )
    try:
        recording = orjson.loads(meta.read_bytes()) if meta.is_file() else {}
    except orjson.JSONDecodeError as err:
        raise TraceError(f"{meta} is damaged ({err}): record again") from err
    routing = path / "routing.parquet"
    return traces[0], recording, Routing.load(routing) if routing.is_file() else None


@dataclass(slots=True)
class _Parser:
    """The facts that the stages share."""

    events: Events
    path: Path
    recording: Mapping[str, Any]
    routing: Routing | None
    given_model: ModelSpec | None
    kv_len: int | None
    hardware: str | None

    def run(self, captured: Events | None) -> Run:
        events, notes = self.events, formats.remarks(self.events)
        rows = op_rows(events)
        if not len(rows):
            raise TraceError(
                f"{self.path} holds no kernels and no operators: nothing to parse (record with activities CPU and CUDA)"
            )
        if captured is not None:
            notes += capture.apply(rows, events, captured)
        step, names, said = self._steps(rows)
        step, strays = drop_strays(step, rows.start, rows.end, len(names))
        notes += said + strays + sorted({n.note for n in names if n.note})
        kind_index, kinds = _kinds(events, rows)
        layer, layer_source = parts.annotated_layers(events, rows)
        part, labels = parts.annotated_parts(events, rows)
        by_order, role, labels = _by_order(rows, step, kind_index, kinds, labels)
        if layer_source == "none" and (by_order >= 0).any():
            layer, layer_source = by_order, "order"
        model, model_source, remarks = facts.model_of(events, rows, layer, self.recording, self.given_model)
        attention_out = (
            role == labels.index("o_proj") if "o_proj" in labels else np.zeros(len(rows), dtype=bool)
        )
        tp, more = facts.tensor_parallel(events, rows, np.flatnonzero(attention_out), model)
        notes += remarks + more
        hidden = model.hidden if model else 0
        role, labels = parts.part_roles(
            events, rows, step, layer, kind_index, kinds, part, role, labels, hidden
        )
        placed = Placed(step, layer, kinds, kind_index, role, part, labels)
        index, found, source = build_ops(events, rows, placed, names, model, tp)
        provenance, routing = "uniform formula: no routing was recorded", None
        if self.routing is not None:
            numbers = {n.recorded: i for i, n in enumerate(names) if n.recorded is not None}
            routing = self.routing.renumbered(numbers)
            index, found = count_distinct(index, found, step, layer, routing)
            provenance = "counted in the recording"
        table = self._table(rows, step, names, layer, layer_source, index, found, source)
        meta = self._meta(rows, step, names, model, model_source, tp, provenance, notes)
        return Run(meta, table, routing)

    def _steps(self, rows: Rows) -> tuple[IntArray, list[StepName], list[str]]:
        """(step per row, what the steps are, remarks)."""
        events = self.events
        host = events.where(RANGE)
        chosen, names = step_ranges(events, host)
        on_device = not len(chosen)
        if on_device:
            chosen, names = step_ranges(events, events.where(DEVICE_RANGE))
        names = [complete(n, self.kv_len if n.phase == "decode" else None) for n in names]
        if not len(chosen):
            return (
                np.zeros(len(rows), np.int64),
                [StepName(None)],
                ["no step annotation was found: the whole trace is taken as one step"],
            )
        lane = np.zeros(len(chosen), np.int64) if on_device else events.lane[chosen]
        ranges = Ranges(lane, events.start[chosen], events.start[chosen] + events.dur[chosen])
        asked = np.zeros(len(rows), np.int64) if on_device else rows.host_lane
        step = ranges.covering(asked, rows.start if on_device else rows.host_time)
        used = np.unique(step[step >= 0])
        renumber = np.full(len(names), -1, dtype=np.int64)
        renumber[used] = np.arange(len(used))
        outside = int((step < 0).sum())
        said = [f"{outside} op(s) lie outside of every step and are left out of the steps"] if outside else []
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
        used, kernel = np.unique(rows.kernel, return_inverse=True)
        device = events.device[rows.event]
        return ops_table(
            {
                "rank": pa.array(none + events.rank),
                "device": pa.array(device),
                "stream": pa.array(events.lane[rows.event]),
                "step": nullable(step, step < 0, pa.int32()),
                "phase": text_column(phase, known),
                "layer": nullable(layer, layer < 0, pa.int32()),
                "kernel": text_column(kernel.reshape(-1), [events.texts[c] for c in used]),
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
        tp: int,
        provenance: str,
        notes: list[str],
    ) -> Meta:
        device, profile = facts.device_of(self.events, rows, self.recording)
        steps = []
        for i, name in enumerate(names):
            at = step == i
            if at.any():
                low, high = int(rows.start[at].min()), int(rows.end[at].max())
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
            source=self.path.parent.name if self.path.name in _IN_RECORDING else self.path.name,
            steps=tuple(steps),
            model=model,
            model_source=model_source,
            native_layers=native if isinstance(native, int) else model.layers if model else None,
            device=device,
            device_class="cpu" if rows.on_cpu else "gpu",
            hardware=self.hardware or profile,
            gpus=1 if rows.on_cpu else self.events.world_size,
            tp=tp,
            engine=facts.engine_of(self.events, self.recording),
            routing=provenance if model is not None and model.experts else "none",
            notes=tuple(notes),
            facts={**self.events.counts, "ops": len(rows), "outside_steps": int((step < 0).sum())},
        )


def _kinds(events: Events, rows: Rows) -> tuple[IntArray, list[str]]:
    """(index per row, kinds by name alone): one recognition per distinct kernel and operator."""
    pairs, inverse = np.unique(np.stack([rows.kernel, rows.operator], axis=1), axis=0, return_inverse=True)
    kinds: dict[str, int] = {}
    codes = []
    for kernel, operator in pairs.tolist():
        kind = ops.recognise(
            "" if rows.on_cpu else events.texts[kernel], events.texts[operator] if operator >= 0 else ""
        )
        codes.append(kinds.setdefault(kind, len(kinds)))
    return np.array(codes, dtype=np.int64)[inverse.reshape(-1)], list(kinds)


def _by_order(
    rows: Rows, step: IntArray, kind_index: IntArray, kinds: list[str], labels: list[str]
) -> tuple[IntArray, IntArray, list[str]]:
    """(layer, role) per row from the order of kinds in each step; a sequence that repeats is resolved once."""
    layer, role = np.full(len(rows), -1, dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
    labels = list(labels)
    solved: dict[bytes, tuple[IntArray, IntArray]] = {}
    for i in range(int(step.max()) + 1 if len(step) else 0):
        at = np.flatnonzero(step == i)
        key = kind_index[at].tobytes()
        if key not in solved:
            layers, roles = resolve([kinds[k] for k in kind_index[at]])
            for said in sorted(set(roles) - {""} - set(labels)):
                labels.append(said)
            codes = {said: n for n, said in enumerate(labels)}
            solved[key] = (
                np.array(layers, dtype=np.int64),
                np.array([codes.get(r, -1) if r else -1 for r in roles], dtype=np.int64),
            )
        layer[at], role[at] = solved[key]
    return layer, role, labels


__all__ = ["open_run", "parse", "record_columns", "summary"]
