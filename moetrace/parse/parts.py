"""What the recorder's annotations say: the layer and the part of the block that an op lies in, and so its role.

Parts are the recorder's words (see docs/recording.md); `role_in_part` is the only place that knows them.
"""

from __future__ import annotations

import re

import numpy as np

from moetrace.formats.events import MODULE, RANGE, Events
from moetrace.parse.nesting import IntArray, Ranges
from moetrace.parse.rows import Rows

_LAYER = re.compile(r"moetrace\.layer#(\d+)")
_PART = re.compile(r"moetrace\.part:(\w+)")
_MODULE_LAYER = re.compile(r"nn\.Module: \w*(?:DecoderLayer|Block|TransformerLayer)_(\d+)")

_SIMPLE = {
    "input_norm": "norm", "post_norm": "norm", "final_norm": "norm", "embedding": "embedding", "sampling": "sampling",
}  # fmt: skip
_GEMM = {"router": "router", "lm_head": "lm_head"}
_MLP = {"shared_expert": ("shared_gate_up", "shared_down", "shared_act"), "dense_mlp": ("dense_gate_up", "dense_down", "activation")}


def covering_codes(events: Events, rows: Rows, pattern: re.Pattern[str], *classes: int) -> tuple[IntArray, list[str]]:
    """(code per row, the pattern's first group per code) of the innermost matching range around each row's launch; -1: none."""
    candidates = events.where(*classes)
    matches = {c: pattern.match(events.texts[c]) for c in np.unique(events.name[candidates]).tolist()}
    candidates = candidates[np.isin(events.name[candidates], [c for c, m in matches.items() if m])]
    if not len(candidates):
        return np.full(len(rows), -1, dtype=np.int64), []
    ranges = Ranges(events.lane[candidates], events.start[candidates], events.start[candidates] + events.dur[candidates])
    found = ranges.covering(rows.host_lane, rows.host_time)
    labels: dict[str, int] = {}
    table = np.array([labels.setdefault(m[1], len(labels)) for c in events.name[candidates].tolist() if (m := matches[c])], dtype=np.int64)
    return np.where(found >= 0, table[found], -1), list(labels)


def annotated_layers(events: Events, rows: Rows) -> tuple[IntArray, str]:
    """(layer per row, -1 for none; where it came from): the recorder's ranges, else module calls, numbered by first use."""
    codes, labels = covering_codes(events, rows, _LAYER, RANGE)
    if labels:
        return np.where(codes >= 0, np.array([int(x) for x in labels], dtype=np.int64)[codes], -1), "annotation"
    codes, labels = covering_codes(events, rows, _MODULE_LAYER, MODULE)
    if labels:
        order = np.argsort(np.argsort([int(x) for x in labels]))
        return np.where(codes >= 0, order[codes], -1), "module"
    return codes, "none"


def annotated_parts(events: Events, rows: Rows) -> tuple[IntArray, list[str]]:
    """(code of the part per row, the parts); -1 for none."""
    return covering_codes(events, rows, _PART, RANGE)


def role_in_part(part: str, kind: str, operator: str, before_attention: bool, shape: tuple[int, ...], hidden: int) -> str:
    """The kind that an op of some kind has inside a part; empty where the part does not change it."""
    if part in _SIMPLE:
        return _SIMPLE[part] if kind in ("elementwise", "norm", "activation", "sampling", "embedding", "topk") else ""
    if kind in ("gemm", "moe_gemm"):
        return _gemm_role(part, before_attention, shape, hidden)
    if part == "attention" and kind in ("elementwise", "sampling"):
        return "kv_write" if "index_copy" in operator else "rope" if re.search(r"mul|neg|cat|add|sub|cos|sin", operator) else ""
    if part == "router" and kind in ("elementwise", "sampling", "topk", "activation"):
        return "topk"
    if part in ("experts", "moe") and kind in ("elementwise", "activation", "sampling", "topk"):
        return _expert_role(kind, operator, shape, hidden)
    if part in _MLP and kind in ("elementwise", "activation"):
        return _MLP[part][2]
    return ""


def _gemm_role(part: str, before_attention: bool, shape: tuple[int, ...], hidden: int) -> str:
    if part in _GEMM:
        return _GEMM[part]
    if part == "attention":
        return "qkv_proj" if before_attention else "o_proj"
    narrow = bool(shape) and shape[-1] != hidden  # the input is the block's own width: this is the way down
    if part in _MLP:
        return _MLP[part][1] if narrow else _MLP[part][0]
    if part == "experts":
        return "moe_down" if narrow else "moe_gate_up"
    return ""


def _expert_role(kind: str, operator: str, shape: tuple[int, ...], hidden: int) -> str:
    if re.search(r"index_add|scatter_add|aten::sum$", operator):
        return "moe_combine"
    if kind == "activation" or (re.search(r"mul|chunk|silu|clamp|sigmoid|add", operator) and shape and shape[-1] != hidden):
        return "moe_act"
    if re.search(r"aten::(mul|add)_?$", operator) and shape and shape[-1] == hidden:
        return "moe_combine"
    return "moe_align"


