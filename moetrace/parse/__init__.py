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
import orjson
import pyarrow as pa

from moetrace import formats, ops
from moetrace.errors import RunError, TraceError
from moetrace.formats.events import DEVICE_RANGE, RANGE, Events
from moetrace.hardware import load_hardware, match_device
from moetrace.model import ModelSpec, infer_model, load_model
from moetrace.parse import capture, parts
from moetrace.parse.build import Placed, build_ops, count_distinct, record_columns, sources
from moetrace.parse.nesting import IntArray, Ranges
from moetrace.parse.order import ATTENTION, resolve
from moetrace.parse.rows import Rows, op_rows
from moetrace.parse.steps import StepName, complete, drop_strays, step_ranges
from moetrace.parse.summary import summary
from moetrace.routing import Routing
from moetrace.run import Meta, Run, Step, is_run, nullable, ops_table, text_column

Progress = Callable[[float], object]


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
    return _Parser(events, file.name, recording or events.metadata, routing, given, kv_len, hardware).run(captured)


def _locate(path: Path) -> tuple[Path, Mapping[str, Any], Routing | None]:
    """(trace file, the recorder's metadata, the recorded routing) of a file or a recording's directory."""
    if not path.is_dir():
        return path, {}, None
    meta = path / "recording.json"
    traces = sorted(p for p in (path / "trace.json.gz", path / "trace.json") if p.is_file())
    if not traces:
        raise TraceError(f"{path} is a directory without run.json or trace.json.gz: expected a RUN, a recording or a trace file")
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
    source: str
    recording: Mapping[str, Any]
    routing: Routing | None
    given_model: ModelSpec | None
    kv_len: int | None
    hardware: str | None

    def run(self, captured: Events | None) -> Run:
        events, notes = self.events, []
        rows = op_rows(events)
        if not len(rows):
            raise TraceError(f"{self.source} holds no kernels and no operators: nothing to parse (record with activities CPU and CUDA)")
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
        model, model_source = self._model(rows, layer, notes)
        tp = self._tensor_parallel(rows, role, labels, model, notes)
        role = self._part_roles(rows, step, layer, kind_index, kinds, part, role, labels, model)
        placed = Placed(step, layer, kinds, kind_index, role, part, labels)
        index, found, source = build_ops(events, rows, placed, names, model, tp)
        provenance = "uniform formula: no routing was recorded"
        if self.routing is not None:
            recorded = np.array([-1 if n.recorded is None else n.recorded for n in names] + [-1], dtype=np.int64)
            index, found = count_distinct(index, found, recorded[step], layer, self.routing)
            provenance = "counted in the recording"
        table = self._table(rows, step, names, layer, layer_source, index, found, source)
        meta = self._meta(rows, step, names, model, model_source, tp, provenance, notes)
        return Run(meta, table, self.routing)

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
            return np.zeros(len(rows), np.int64), [StepName(None)], ["no step annotation was found: the whole trace is taken as one step"]
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

    def _model(self, rows: Rows, layer: IntArray, notes: list[str]) -> tuple[ModelSpec | None, str]:
        if self.given_model is not None:
            return self.given_model, "given"
        config = self.recording.get("model_config")
        if isinstance(config, dict):
            return ModelSpec.from_config(config, str(self.recording.get("model") or "recorded")), "recorded"
        seen = _dims_seen(self.events, rows, layer)
        inferred = infer_model(seen) if len(seen) > 1 else None
        if inferred is None:
            notes.append("the model is not known: give --model NAME or config.json for bytes of experts and attention")
            return None, "none"
        notes.append(inferred[1])
        return inferred[0], f"inferred: {inferred[1]}"

    def _tensor_parallel(self, rows: Rows, role: IntArray, labels: list[str], model: ModelSpec | None, notes: list[str]) -> int:
        """The tensor-parallel size: what the width of the attention projections says, where it divides the world."""
        world = self.events.world_size
        if world == 1 or model is None or "o_proj" not in labels:
            return 1
        widths = {s[0][1] for i in np.flatnonzero(role == labels.index("o_proj")) if len(s := _matrices(self.events, rows, int(i))) >= 2}
        full = model.heads * (model.v_dim if model.attention == "mla" else model.head_dim)
        for width in widths:
            if width and full % width == 0 and world % (full // width) == 0:
                tp = full // width
                notes.append(f"tensor parallel over {tp} of {world} ranks: the attention output is {width} of {full} wide")
                notes.append(f"expert widths of one rank are taken as 1/{tp} of {model.expert_inter}, padded to 128: the trace does not show them")
                return tp
        return 1

    def _part_roles(
        self, rows: Rows, step: IntArray, layer: IntArray, kind_index: IntArray, kinds: list[str], part: IntArray, role: IntArray,
        labels: list[str], model: ModelSpec | None,
    ) -> IntArray:  # fmt: skip
        """Roles by annotation, which go before those by order; one decision per distinct set of facts."""
        if not (part >= 0).any():
            return role
        hidden = model.hidden if model else 0
        is_attention = np.array([k in ATTENTION for k in kinds], dtype=bool)[kind_index]
        before = _before_first(is_attention, step, layer)
        key = np.stack([part, kind_index, rows.operator, rows.tensors, before], axis=1)
        distinct, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
        codes = np.full(len(distinct), -1, dtype=np.int64)
        for i, row in enumerate(first.tolist()):
            if part[row] < 0:
                continue
            tensors = self.events.tensor_sets[rows.tensors[row]] if rows.tensors[row] >= 0 else None
            shape = next((s for s in tensors.shapes if s), ()) if tensors else ()
            operator = self.events.texts[rows.operator[row]] if rows.operator[row] >= 0 else ""
            said = parts.role_in_part(labels[part[row]], kinds[kind_index[row]], operator, bool(before[row]), shape, hidden)
            if said:
                if said not in labels:
                    labels.append(said)
                codes[i] = labels.index(said)
        by_part = codes[inverse.reshape(-1)]
        # Which expert GEMM is first is for the order to say: hidden and expert width may be equal.
        paired = np.array([k == "moe_gemm" for k in kinds], dtype=bool)[kind_index]
        return np.where((part >= 0) & ~paired, by_part, role)

    def _table(
        self, rows: Rows, step: IntArray, names: list[StepName], layer: IntArray, layer_source: str, index: IntArray,
        found: list[ops.Op], source: IntArray,
    ) -> pa.Table:  # fmt: skip
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
        self, rows: Rows, step: IntArray, names: list[StepName], model: ModelSpec | None, model_source: str, tp: int,
        provenance: str, notes: list[str],
    ) -> Meta:  # fmt: skip
        device, profile = self._device(rows)
        steps = []
        for i, name in enumerate(names):
            at = step == i
            if at.any():
                low, high = int(rows.start[at].min()), int(rows.end[at].max())
                steps.append(Step(i, f"{name.phase or 'step'} {i}", name.phase, low, high, name.batch, name.tokens, name.kv_tokens))
        native = self.recording.get("native_layers")
        return Meta(
            kind="measured",
            source=self.source,
            steps=tuple(steps),
            model=model,
            model_source=model_source,
            native_layers=native if isinstance(native, int) else model.layers if model else None,
            device=device,
            device_class="cpu" if rows.on_cpu else "gpu",
            hardware=self.hardware or profile,
            gpus=1 if rows.on_cpu else self.events.world_size,
            tp=tp,
            engine=_engine(self.events, self.recording),
            routing=provenance if model is not None and model.experts else "none",
            notes=tuple(notes),
            facts={**self.events.counts, "ops": len(rows), "outside_steps": int((step < 0).sum())},
        )

    def _device(self, rows: Rows) -> tuple[str, str | None]:
        """(name of the device, profile that it matches)."""
        if rows.on_cpu:
            own = self.recording.get("device")
            return (str(own.get("name", "CPU")) if isinstance(own, dict) else "CPU"), "cpu"
        used = int(self.events.device[rows.event[0]])
        blocks = [d for d in self.events.devices if d.get("id") == used] or list(self.events.devices[:1])
        if not blocks:
            return "", None
        block = blocks[0]
        name, memory, sms = block.get("name"), block.get("totalGlobalMem"), block.get("numSms")
        profile = match_device(str(name or ""), memory if isinstance(memory, int) else None, sms if isinstance(sms, int) else None)
        return str(name or profile or ""), profile


def _kinds(events: Events, rows: Rows) -> tuple[IntArray, list[str]]:
    """(index per row, kinds by name alone): one recognition per distinct kernel and operator."""
    pairs, inverse = np.unique(np.stack([rows.kernel, rows.operator], axis=1), axis=0, return_inverse=True)
    kinds: dict[str, int] = {}
    codes = []
    for kernel, operator in pairs.tolist():
        kind = ops.recognise("" if rows.on_cpu else events.texts[kernel], events.texts[operator] if operator >= 0 else "")
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
            solved[key] = (np.array(layers, dtype=np.int64), np.array([codes.get(r, -1) if r else -1 for r in roles], dtype=np.int64))
        layer[at], role[at] = solved[key]
    return layer, role, labels


def _before_first(marked: Any, step: IntArray, layer: IntArray) -> IntArray:
    """1 for rows before the first marked row of their step and layer (rows are in order of time), else 0."""
    group = (step + 1) * (int(layer.max()) + 2) + layer + 1
    codes, inverse = np.unique(group, return_inverse=True)
    first = np.full(len(codes), len(group), dtype=np.int64)
    np.minimum.at(first, inverse.reshape(-1)[marked], np.flatnonzero(marked))
    return (np.arange(len(group)) < first[inverse.reshape(-1)]).astype(np.int64)


def _matrices(events: Events, rows: Rows, row: int) -> list[tuple[int, ...]]:
    tensors = events.tensor_sets[rows.tensors[row]].shapes if rows.tensors[row] >= 0 else ()
    return [s for s in tensors if len(s) == 2]


def _dims_seen(events: Events, rows: Rows, layer: IntArray) -> dict[str, int]:
    """Model dims that operators show: hidden and experts from MoE and norm inputs, top-k from routing, vocabulary."""
    seen: dict[str, int] = {}
    pairs = np.unique(np.stack([rows.operator, rows.tensors], axis=1), axis=0)
    for operator, tensors in pairs.tolist():
        if operator < 0 or tensors < 0:
            continue
        name, shapes = events.texts[operator], [s for s in events.tensor_sets[tensors].shapes if s]
        matrices = [s for s in shapes if len(s) == 2]
        if "norm" in name and matrices and "q_norm" not in name:
            seen["hidden"] = max(seen.get("hidden", 0), matrices[0][1])
        elif "moe_forward" in name and len(matrices) >= 2:
            seen["experts"] = matrices[1][1]
        elif name in ("SortTokens",) and matrices:
            seen["topk"] = matrices[0][1]
        elif name.startswith("triton_poi_fused") and any(s[0] > 8192 and s[1] > 256 for s in matrices):
            seen["vocab"] = next(s[0] for s in matrices if s[0] > 8192 and s[1] > 256)
    if events.world_size > 1:
        seen.pop("vocab", None)  # split over ranks
    if seen and (layer >= 0).any():
        seen["layers"] = int(layer.max()) + 1
    return seen


def _engine(events: Events, recording: Mapping[str, Any]) -> str | None:
    if recording:
        return "transformers, recorded by moetrace"
    for text in events.texts:
        if text.startswith("step["):
            return "sglang"
        if "vllm::" in text:
            return "vllm"
    return None


__all__ = ["open_run", "parse", "record_columns", "summary"]
