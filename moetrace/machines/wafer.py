"""The timing law of a wafer-scale machine (Cerebras CS-3): a first version, with wide errors that it states.

Weights stay in SRAM. A model is cut at layer boundaries over ``ceil(model_bytes / SRAM)`` wafers and fills them evenly, so a
layer has a region of ``max(1 / layers, its op's resident share)`` of the whole machine; the ops of a layer take turns on that
region. One sweep over a layer's weights then takes ``model_bytes / (wafers x 21 PB/s)``, 2.1 us when the SRAM is full.

    memory  = bytes / (SRAM bandwidth x wafers x share)        compute = FLOPs / (dense peak x wafers x share)
    network = activations written / (one fabric link x side of the region in cores): the contention term C of
              T = max(C, E/N) + L + ... in arXiv 2404.15888
    fixed   = the latency of a reduction over the region, 1.2 us for matrix-vector products, attention, norms, top-k, permute
              and combine (WaferLLM, arXiv 2502.04563: GEMV 16K x 16K 1.2 us on WSE-2, up to 90 % of it communication)
    expected = fixed + max(memory, compute, network)

Consistency check (the list of reductions was drawn up knowing it): published decode speeds imply 6-17 us per
layer whatever its bytes (Llama-3.1-8B 1,800 tok/s/user: 17.4 us; Qwen3-32B 2,600: 6.0). The seven reductions of a
dense layer give 8.4 us, the eleven of an MoE layer 13 us; the error is the larger side of that spread.
Placement of experts, see `cost`. Not modelled: wafer I/O inside a step (`crossings_s`),
speculative decoding, routing of tokens to experts over the fabric beyond one reduction latency, power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moetrace.errors import ProfileError, unknown
from moetrace.hardware import Hardware, Wafer
from moetrace.machines.forms.generic import EXPERT_GEMMS
from moetrace.machines.gpu import families_of, finish, peaks
from moetrace.op import Costs, FloatArray, Works

PLACEMENTS = ("spread", "own")
_LINK_DIRECTIONS = 8  # a core's router has four neighbours, in and out: fabric bandwidth counts them all


def cost(
    works: Works,
    families: Sequence[str],
    hw: Hardware,
    *,
    model_bytes: float,
    layers: int,
    placement: str = "spread",
) -> Costs:
    """Costs of ops on as many wafers as `model_bytes` (weights, and KV cache if it is to fit) needs.

    `families` has one entry per type of op.

    `placement` "spread": every expert over all cores of the layer's region, so an MoE op's time follows the share of the
    experts that is touched. "own": each expert on its own cores; touched experts run beside each other, so memory time is
    one sweep of one expert's cores whatever n_a, and compute follows the rows of the busiest expert, taken as no more than
    the mean over touched experts (optimistic under skew). Raises ProfileError for a model without bytes or layers.
    """
    if placement not in PLACEMENTS:
        raise ProfileError(unknown("placement", placement, PLACEMENTS))
    count, side = wafers(hw, model_bytes), _wafer(hw)
    if layers < 1:
        raise ProfileError(
            f"profile {hw.name!r}: the wafer law needs the model's layers (1 or more), not {layers}"
        )
    chosen = families_of(works, families, hw)
    words = [
        f"{hw.name} {f.provenance} {key}, {count} wafer{'s' * (count > 1)}, {placement}" for key, f in chosen
    ]
    share = np.maximum(1.0 / layers, np.minimum(1.0, works["resident_bytes"] / model_bytes))
    machine_bytes_per_s, machine_flops = hw.memory.bytes_per_s * count, peaks(works, hw, words) * count
    alone = _own(works) if placement == "own" else np.ones(len(works))
    swept = works["bytes"] - works["weight_bytes"] + works["weight_bytes"] * alone
    memory_s = swept / (machine_bytes_per_s * share)
    compute_s = works["flops"] * alone / (machine_flops * share)
    link = side.fabric_bytes_per_s / side.cores / _LINK_DIRECTIONS
    network_s = works["act_write_bytes"] / (link * np.sqrt(side.cores * count * share))
    types = works.ops.types
    reductions = works.ops.by_type([max(1, EXPERT_GEMMS.get(op.kind, (1, 1))[1]) for op in types])
    fixed_s = works.ops.by_type([f["t0_s"] for _, f in chosen]) * works["launches"] * reductions
    error = works.ops.by_type([f.error for _, f in chosen])
    # Cores work on what has arrived while the rest is under way: the three overlap.
    expected_s = fixed_s + np.maximum(np.maximum(memory_s, compute_s), network_s)
    lower_s = np.maximum(works["bytes_min"] / machine_bytes_per_s, works["flops"] / machine_flops)
    parts_s = (compute_s, memory_s, network_s, fixed_s)
    return finish(works.known, parts_s, expected_s, lower_s, error, words, works.ops.code)


def wafers(hw: Hardware, model_bytes: float) -> int:
    """Number of wafers whose SRAM holds `model_bytes`. Raises ProfileError unless it is above 0."""
    if not (model_bytes > 0 and math.isfinite(model_bytes)):
        raise ProfileError(
            f"profile {hw.name!r}: the wafer law needs the model's bytes (above 0), not {model_bytes}"
        )
    return max(1, math.ceil(model_bytes / hw.memory.capacity_bytes))


def crossings_s(hw: Hardware, wafers: int, nbytes: float = 0.0) -> float:
    """Seconds per token step spent between wafers: latency of each crossing, and `nbytes` of activations sent at each."""
    wafer = _wafer(hw)
    return max(0, wafers - 1) * (wafer.crossing_s + nbytes / wafer.off_wafer_bytes_per_s)


def _wafer(hw: Hardware) -> Wafer:
    if hw.wafer is None:
        raise ProfileError(f"profile {hw.name!r} has law {hw.law!r}, not wafer")
    return hw.wafer


def _own(works: Works) -> FloatArray:
    """Resident over touched weights of MoE ops: a touched expert has only 1/experts of the region to run on."""
    touched, experts = works["weight_bytes"], works["experts"]
    moe = (experts > 0) & (touched > 0)
    ratio = np.divide(works["resident_bytes"], touched, out=np.ones(len(works)), where=moe)
    return np.maximum(1.0, ratio)
