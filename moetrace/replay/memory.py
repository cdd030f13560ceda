"""Does the edited model fit the machine? Weights, KV cache and what the serving stack itself takes, on the fullest rank.

Out of memory is an answer, not an error: `Need.fits` is False, and `largest_batch` says what would fit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from types import MappingProxyType

from moetrace import ops as work_of
from moetrace.hardware import Hardware
from moetrace.machines.wafer import wafers as wafers_for
from moetrace.model import ModelSpec
from moetrace.op import element_bytes
from moetrace.replay.draft import Draft
from moetrace.replay.lanes import largest, smallest
from moetrace.replay.mixed_step import PROMPTS
from moetrace.replay.parallel import Parallel

# Framework, activations and collectives' buffers of one GPU: 2-4 GB and NCCL's 0.35-0.4 GB are seen in serving; the middle.
FRAMEWORK_BYTES = 3e9


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that must lie on a machine, over all its devices. None where the model is not known.

    `rank` is the same for the fullest device, by part (experts, attention, other, kv, framework); `largest_batch` how many
    sequences of the fullest step's context the machine holds at most, 0 if not even the weights fit, None where not known.
    """

    weight_bytes: float | None
    kv_bytes: float | None
    needed_bytes: float | None
    capacity_bytes: float
    fits: bool | None
    wafers: int | None
    framework_bytes: float | None = None
    rank: Mapping[str, float] = field(default_factory=dict)
    largest_batch: int | None = None
    sequence_bytes: float | None = None  # of KV cache, on the fullest device of its data-parallel group
    groups: int = 1  # data-parallel

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
    if hw.device_class == "wafer":
        kv = _one_copy_kv(draft, model) if model else None
        weights = model.weight_bytes() if model else None
        held = weights if weights is not None else resident_bytes(draft)
        count = wafers_for(hw, held + (kv or 0.0)) if held else None
        known = held + (kv or 0.0) if weights is not None else None
        return Need(held, kv, known, hw.memory.capacity_bytes, None if known is None else count == 1, count)
    capacity = hw.memory.capacity_bytes * draft.gpus
    if model is None:
        return Need(None, None, None, capacity, None, None)
    devices, p = draft.gpus, draft.parallel
    parts = rank_weights(model, p, replicas(draft))
    full = _held(draft)
    tokens, batch = _fullest(full)
    one = sequence_bytes(model, p, tokens / batch, draft.kv_dtype)
    kv_rank = one * -(-batch // p.dp) if full else None
    weights = sum(parts.values())
    if hw.device_class == "cpu":
        return Need(weights, None if kv_rank is None else kv_rank * devices, None, capacity, None, None)
    rank = {**parts, "kv": kv_rank or 0.0, "framework": FRAMEWORK_BYTES}
    used = sum(rank.values())
    room = hw.memory.capacity_bytes - weights - FRAMEWORK_BYTES
    return Need(
        weights * devices,
        None if kv_rank is None else kv_rank * devices,
        used * devices,
        capacity,
        used <= hw.memory.capacity_bytes,
        None,
        FRAMEWORK_BYTES * devices,
        {name: value for name, value in rank.items() if value},
        largest(0, math.floor(room / one)) * p.dp if one else None,
        one,
        p.dp,
    )


@dataclass(frozen=True, slots=True)
class Beside:
    """Another model on the same devices: what it takes, and the share of a wafer's cores that the first is to have."""

    need: Need
    share: float = 1.0


def joined(one: Need, drafting: Need, hw: Hardware, devices: int) -> Need:
    """What a model and the one that drafts for it take together: its bytes on every device, the KV cache of both in the
    largest batch. On a wafer, which has no ranks, both lie side by side and the wafers hold the sum."""
    if one.needed_bytes is None:
        return one
    if not one.rank:
        held = drafting.model_bytes
        count = wafers_for(hw, one.needed_bytes + held)
        return replace(
            one, needed_bytes=one.needed_bytes + held, fits=count == 1, wafers=count, rank={"draft": held}
        )
    held = sum(drafting.rank.get(part, 0.0) for part in ("experts", "attention", "other", "kv"))
    used = sum(one.rank.values()) + held
    kept = [need.rank.get("kv", 0.0) for need in (one, drafting)]
    room, each = hw.memory.capacity_bytes - (used - sum(kept)), (one.sequence_bytes, drafting.sequence_bytes)
    most = None
    if one.largest_batch is not None and each[0] and each[1]:
        most = largest(0, math.floor(room / (each[0] + each[1]))) * one.groups
    return replace(
        one,
        needed_bytes=one.needed_bytes + held * devices,
        fits=used <= hw.memory.capacity_bytes,
        rank={**one.rank, "draft": held},
        largest_batch=most,
    )


def replicas(draft: Draft) -> int:
    """Experts per layer that are held twice (EPLB)."""
    return int(draft.stated("eplb", 0))


@lru_cache(maxsize=4096)
def rank_weights(model: ModelSpec, p: Parallel, redundant: int = 0) -> Mapping[str, float]:
    """Weight bytes of the fullest rank by part: experts, attention, other.

    Attention, shared experts and dense layers are cut over tp and repeated in every data-parallel group, experts shared out
    over both; norms, routers, indexers and MLA's down-projections are whole on every rank, and so is a KV head at least.
    Embedding and lm_head are cut over the vocabulary, the one on the first pipeline stage, the other on the last.
    """
    stages = []
    for stage in range(p.pp):
        layers = range(model.layers * stage // p.pp, model.layers * (stage + 1) // p.pp)
        parts = {"experts": 0.0, "attention": 0.0, "other": 0.0}
        for layer in layers:
            for name, count in model.layer_params(layer).items():
                if name == "experts":
                    held = count * (1 + redundant / model.experts if model.experts else 1)
                    parts["experts"] += held * element_bytes(model.expert_dtype) / p.stage
                elif name == "attention":
                    parts["attention"] += attention_params(model, p.tp, layer) * element_bytes(model.dtype)
                elif name == "indexer":
                    parts["attention"] += count * element_bytes(model.dtype)
                elif name in ("shared", "dense"):
                    parts["other"] += count * element_bytes(model.dtype) / p.tp
                else:
                    parts["other"] += count * element_bytes(model.act_dtype)
        tables = (stage == 0) + (stage == p.pp - 1 and not (model.tie_embeddings and stage == 0))
        table = model.vocab * model.hidden * element_bytes(model.act_dtype) / p.tp
        parts["other"] += tables * table + (stage == p.pp - 1) * model.hidden * element_bytes(model.act_dtype)
        stages.append(parts)
    fullest: dict[str, float] = max(stages, key=lambda parts: sum(parts.values()))
    return MappingProxyType(fullest)


def attention_params(model: ModelSpec, tp: int, layer: int = 0) -> float:
    """Parameters of one layer's attention on one of `tp` ranks; linear attention is cut by its heads."""
    if model.is_linear(layer):
        return model.layer_params(layer)["attention"] / tp
    if model.attention == "gqa":
        kv_heads = model.kv_heads / tp if model.kv_heads >= tp else 1.0
        out = model.heads * model.head_dim
        return model.hidden * ((model.query_width + out) / tp + 2 * kv_heads * model.head_dim)
    query = model.heads * model.head_dim / tp
    down = model.hidden * (model.q_lora + model.kv_lora + model.rope_dim)
    up = (model.q_lora or model.hidden) * query
    expand = model.kv_lora * model.heads / tp * (model.nope_dim + model.v_dim)
    return down + up + expand + model.heads / tp * model.v_dim * model.hidden


def sequence_bytes(model: ModelSpec, p: Parallel, context: float, dtype: str) -> float:
    """KV bytes of one sequence of `context` tokens on the fullest rank of its data-parallel group, with its layers' states.

    A sliding window caps its layers; the state of linear attention is the same at any length.
    Every rank holds a KV head at least, and MLA's compressed cache and an indexer's keys in whole.
    """
    share = 1.0 if model.attention == "mla" else max(1.0 / p.tp, 1.0 / model.kv_heads)
    full = 0.0
    for kinds, state in _cached_kinds(model, p.pp, dtype):
        held = sum(
            count * each * (smallest(context, window) if window else context)
            for (each, window), count in kinds
        )
        full = largest(full, held * share + state / p.tp)
    return full


@lru_cache(maxsize=4096)
def _cached_kinds(
    model: ModelSpec, stages: int, dtype: str
) -> tuple[tuple[tuple[tuple[tuple[float, int], int], ...], float], ...]:
    """Of each pipeline stage how many layers keep so many bytes of a token within such a window (0: none), and the bytes of
    its layers' states."""
    out = []
    for stage in range(stages):
        layers = range(model.layers * stage // stages, model.layers * (stage + 1) // stages)
        kinds = Counter((model.kv_bytes_per_token(layer, dtype), model.window(layer)) for layer in layers)
        out.append((tuple(kinds.items()), sum(model.state_bytes(layer) for layer in layers)))
    return tuple(out)


def _held(draft: Draft) -> list[tuple[int, int]]:
    """(KV tokens, sequences) of the steps that say them.

    The synthesized mixed step of a steady load has its prompts beside a whole batch that decodes: the sequences at their full
    length, as in its last decode step, are the most that is ever held.
    """
    steps = [step for step in draft.steps if step.kv_tokens]
    if "beside" in draft.run.meta.facts.get("workload", {}):  # of a prediction of it too
        steps = [step for step in steps if step.phase not in PROMPTS] or steps
    return [(step.kv_tokens or 0, step.batch or 1) for step in steps]


def _fullest(steps: list[tuple[int, int]]) -> tuple[int, int]:
    """(KV tokens, sequences) of the step with most KV; where all have the very same batch, without parting many scenarios."""
    if steps and all(batch is steps[0][1] for _, batch in steps):
        return reduce(largest, (tokens for tokens, _ in steps)), steps[0][1]
    return max(steps, default=(0, 1))


def _one_copy_kv(draft: Draft, model: ModelSpec) -> float | None:
    """KV cache of the fullest step, one copy of it; None if no step says its KV tokens."""
    full = _held(draft)
    if not full:
        return None
    tokens, batch = _fullest(full)
    return batch * sequence_bytes(model, Parallel(), tokens / batch, draft.kv_dtype)


def resident_bytes(draft: Draft) -> float:
    """Weights that the ops of one step hold, touched or not, on this rank."""
    held: dict[tuple[int, str, float], float] = {}
    for op, at in zip(draft.ops, draft.at, strict=True):
        size = work_of.work(op).resident_bytes
        held[at.layer, op.kind, size] = size
    return sum(held.values())
