"""Does the edited model fit the machine? Weights, KV cache and what the serving stack itself takes."""

from __future__ import annotations

from dataclasses import dataclass

from moetrace import ops as work_of
from moetrace.machines.wafer import wafers as wafers_for
from moetrace.model import ModelSpec
from moetrace.replay.draft import Draft

# Framework, activations and collectives' buffers of one GPU: 2-4 GB and NCCL's 0.35-0.4 GB are seen in serving; the middle.
_FRAMEWORK_BYTES = 3e9


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that must lie on a machine, over all its devices. None where the model is not known."""

    weight_bytes: float | None
    kv_bytes: float | None
    needed_bytes: float | None
    capacity_bytes: float
    fits: bool | None
    wafers: int | None
    framework_bytes: float | None = None

    @property
    def model_bytes(self) -> float:
        """Weights and KV cache; 0 if not known."""
        return (self.weight_bytes or 0.0) + (self.kv_bytes or 0.0)


def need(draft: Draft) -> Need:
    """What the draft's model takes on its machine.

    Without a model the weights that its ops hold stand in for a wafer's region, and whether it fits is not said. A wafer
    keeps no framework beside the weights; it fits if one wafer does.
    """
    hw, model = draft.hw, draft.model
    kv = _kv_bytes(draft, model) if model else None
    weights = model.weight_bytes() if model else None
    if hw.device_class == "wafer":
        held = weights if weights is not None else resident_bytes(draft)
        count = wafers_for(hw, held + (kv or 0.0)) if held else None
        known = held + (kv or 0.0) if weights is not None else None
        return Need(held, kv, known, hw.memory.capacity_bytes, None if known is None else count == 1, count)
    capacity = hw.memory.capacity_bytes * draft.gpus
    if model is None or weights is None or hw.device_class == "cpu":
        return Need(weights, kv, None, capacity, None, None)
    framework = _FRAMEWORK_BYTES * draft.gpus
    needed = weights + (kv or 0.0) + framework
    return Need(weights, kv, needed, capacity, needed <= capacity, None, framework)


def _kv_bytes(draft: Draft, model: ModelSpec) -> float | None:
    """KV cache of the fullest step; a sliding window caps its layers. None if no step says its KV tokens.

    Under tensor parallelism every GPU holds a KV head at least, and MLA's compressed cache in whole.
    """
    full = [(step.kv_tokens, step.batch or 1) for step in draft.steps if step.kv_tokens]
    if not full:
        return None
    tokens, batch = max(full)
    total = 0.0
    for layer in range(model.layers):
        window = model.window(layer)
        total += model.kv_bytes_per_token(layer, model.act_dtype) * (
            min(tokens, window * batch) if window else tokens
        )
    copies = draft.tp if model.attention == "mla" else max(1.0, draft.tp / model.kv_heads)
    return total * copies


def resident_bytes(draft: Draft) -> float:
    """Weights that the ops of one step hold, touched or not, on this rank."""
    held: dict[tuple[int, str, float], float] = {}
    sizes = work_of.works(draft.ops)["resident_bytes"].tolist()
    for op, at, size in zip(draft.ops, draft.at, sizes, strict=True):
        held[at.layer, op.kind, size] = size
    return sum(held.values())
