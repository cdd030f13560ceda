"""What is known of a run besides its ops: the model, the device, tensor parallelism, the engine.

Each comes from the user, the recorder's metadata or the trace itself, in that order, and says so in a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moetrace.formats.events import Events
from moetrace.hardware import match_device
from moetrace.model import ModelSpec, infer_model
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import Rows

_TALL = 8192  # rows of a table that only a vocabulary has


def model_of(
    events: Events, rows: Rows, layer: IntArray, recording: Mapping[str, Any], given: ModelSpec | None
) -> tuple[ModelSpec | None, str, list[str]]:
    """(model, where it came from, remarks)."""
    if given is not None:
        return given, "given", []
    config = recording.get("model_config")
    if isinstance(config, dict):
        return ModelSpec.from_config(config, str(recording.get("model") or "recorded")), "recorded", []
    seen = dims_seen(events, rows, layer)
    inferred = infer_model(seen) if len(seen) > 1 else None
    if inferred is None:
        hint = "give --model NAME or config.json for the bytes of experts and attention"
        return None, "none", [f"the model is not known: {hint}"]
    return inferred[0], "inferred", [inferred[1]]


def dims_seen(events: Events, rows: Rows, layer: IntArray) -> dict[str, int]:
    """Model dims that operators show: hidden and experts from MoE and norm inputs, top-k from routing, vocabulary."""
    seen: dict[str, int] = {}
    pairs = np.unique(np.stack([rows.operator, rows.tensors], axis=1), axis=0)
    for operator, tensors in pairs.tolist():
        if operator < 0 or tensors < 0:
            continue
        name = events.texts[operator]
        matrices = [s for s in events.tensor_sets[tensors].shapes if len(s) == 2]
        table = next((s for s in matrices if s[0] > _TALL and s[1] > 256), None)
        if "norm" in name and matrices:
            seen["hidden"] = max(seen.get("hidden", 0), matrices[0][1])
        elif "moe_forward" in name and not name.startswith("triton") and len(matrices) >= 2:
            seen["experts"] = matrices[1][1]
        elif name == "SortTokens" and matrices:
            seen["topk"] = matrices[0][1]
        elif (
            name.startswith("triton_poi_fused") and table and events.world_size == 1
        ):  # split over ranks otherwise
            seen["vocab"] = table[0]
    if seen and (layer >= 0).any():
        seen["layers"] = int(layer.max()) + 1
    return seen


def tensor_parallel(
    events: Events, rows: Rows, attention_out: IntArray, model: ModelSpec | None
) -> tuple[int, list[str]]:
    """(size, remarks): what the input width of the attention output projections says, where it divides the world."""
    world = events.world_size
    if world == 1 or model is None:
        return 1, []
    full = model.heads * (model.v_dim if model.attention == "mla" else model.head_dim)
    sets = np.unique(rows.tensors[attention_out])
    shapes = [events.tensor_sets[t].shapes for t in sets[sets >= 0].tolist()]
    for width in {m[0][1] for s in shapes if len(m := [x for x in s if len(x) == 2]) >= 2}:
        if width and full % width == 0 and world % (full // width) == 0:
            tp = full // width
            return tp, [
                f"tensor parallel over {tp} of {world} ranks: the attention output is {width} of {full} wide",
                f"an expert's width on one rank is taken as 1/{tp} of {model.expert_inter}, padded to 128: not shown",
            ]
    return 1, []


def device_of(events: Events, rows: Rows, recording: Mapping[str, Any]) -> tuple[str, str | None]:
    """(name of the device, profile that it matches)."""
    if rows.on_cpu:
        own = recording.get("device")
        return (str(own.get("name", "CPU")) if isinstance(own, dict) else "CPU"), "cpu"
    used = int(events.device[rows.event[0]])
    blocks = [d for d in events.devices if d.get("id") == used] or list(events.devices[:1])
    if not blocks:
        return "", None
    name, memory, sms = (blocks[0].get(key) for key in ("name", "totalGlobalMem", "numSms"))
    profile = match_device(
        str(name or ""), memory if isinstance(memory, int) else None, sms if isinstance(sms, int) else None
    )
    return str(name or profile or ""), profile


def engine_of(events: Events, recording: Mapping[str, Any]) -> str | None:
    """The engine that ran, by its annotations and operators."""
    if recording:
        return "transformers, recorded by moetrace"
    if any(text.startswith("step[") for text in events.texts):
        return "sglang"
    return "vllm" if any("vllm::" in text for text in events.texts) else None
