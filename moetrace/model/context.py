"""How long a sequence a model is made for: its config's positions, stretched by rope scaling where the config states it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from moetrace.model.fields import Config, is_whole

# Names that public configs use for it, first found wins.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
# Rope scalings that stretch what the config states as positions; others (llama3, longrope, mrope) are within it already.
_STRETCHES = ("linear", "dynamic", "yarn")


def max_context(c: Config) -> int:
    """Tokens of a sequence, 0 where the config does not say or what it says is no number.

    A yarn scaling stretches `original_max_position_embeddings`, a linear or dynamic one the positions themselves; configs
    that state the stretched number (DeepSeek, Kimi, gpt-oss) keep it: the larger of both (vLLM reads configs so).
    """
    stated = next((c.data[name] for name in _POSITIONS if c.has(name)), 0)
    if not is_whole(stated):
        return 0
    rope = c.data.get("rope_scaling") or c.data.get("rope_parameters")
    return max(stated, _stretched(rope, stated)) if isinstance(rope, Mapping) else stated


def _stretched(rope: Mapping[str, Any], stated: int) -> int:
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind not in _STRETCHES or isinstance(factor, bool) or not isinstance(factor, (int, float)):
        return 0
    first: Any = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    long = factor * (first if is_whole(first, 1) else stated)
    return int(long) if math.isfinite(long) and is_whole(int(long)) else 0
