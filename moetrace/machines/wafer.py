"""The timing law of a wafer-scale machine (Cerebras WSE), with the errors that published speeds leave it.

Weights stay in SRAM. A model is cut at layer boundaries over ``ceil(model_bytes / SRAM)`` wafers and fills them evenly: its
layers lie side by side, and so do the matrices of a layer, each read and computed by the cores that hold it, its share of all
bytes. A token passes them one after the other, so at any moment one matrix works and the rest waits: a dense layer takes four
sweeps (qkv, o, gate and up, down), whatever its bytes. Tokens of a batch or a prompt follow each other through the matrices:
each one more takes what the whole machine needs for it, and no latency.

    latency = t0 + hop x 2 sqrt(cores of the op)              a reduction over its cores: alpha (Nw + Nh) of WaferLLM,
                                                              arXiv 2502.04563; L + (2 T_R + 1) D of arXiv 2404.15888
    sweep   = max(memory, compute, network) of one token on the cores that hold the op
    memory  = bytes / (SRAM bandwidth x wafers x share)       compute = FLOPs / (eta x dense peak x wafers x share)
    network = activations written / (one fabric link x side of the op's cores): the contention C of 2404.15888
    expected = latency + sweep + (tokens - 1) x FLOPs of a token / (eta x dense peak x wafers)
    whole    : a product of many tokens passes tiles on in as many steps as a side has cores (WaferLLM's MeshGEMM, Cannon's
               algorithm): shift x min(tokens - 1, side) more latency, and eta_mesh for eta of the later tokens

t0, hop and eta are fitted (benchmarks/fit_wafer_profile.py): t0 and hop on WaferLLM's decode speeds on WSE-2 by its number of
cores, eta on the CS-3 speeds of the two models that were published before speculative decoding. Placements, see `cost`. Not
modelled: which of its SRAM a wafer leaves empty, routing of tokens to experts over the fabric beyond one reduction, wafer I/O
inside a step (`crossings_s`), power.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import ProfileError, unknown
from moetrace.hardware import Family, Hardware, Wafer
from moetrace.machines.forms.base import Parts
from moetrace.machines.forms.generic import EXPERT_GEMMS
from moetrace.machines.gpu import errors, families_of, finish, peaks, tokens_of
from moetrace.op import Costs, FloatArray, Works

PLACEMENTS = ("spread", "own", "whole")
_LINK_DIRECTIONS = 8  # a core's router has four neighbours, in and out: fabric bandwidth counts them all
# Families whose weights have cores of their own.
_MATRICES = frozenset({"dense_gemm", "shared_expert", "experts"})
# What each core does to what it holds: nothing crosses the mesh.
_LOCAL = frozenset({"elementwise", "copy", "moe_act"})


def cost(
    works: Works,
    families: Sequence[str],
    hw: Hardware,
    *,
    model_bytes: float | FloatArray,
    layers: int,
    placement: str = "spread",
    token_flops: float = 0.0,
    beside_bytes: float | FloatArray = 0.0,
    wanted: float = 1.0,
) -> Costs:
    """Costs of ops on as many wafers as `model_bytes` (weights, and KV cache if it is to fit; a number or [ops]) needs.

    `families` has one entry per type of op; `token_flops` is what one token takes in all matrices: under "spread", cores
    whose SRAM the model leaves free are shared out by it (0, not known: by bytes, as under the other placements).

    `placement` "spread": every expert over all cores that hold its layer's experts, so an MoE op's sweep follows the share of
    the experts that a token touches. "own": each expert on its own cores; touched experts run beside each other, so a token
    takes one expert's sweep whatever n_a. "whole": every matrix of every layer over all cores of the machine, one op after
    another and nothing beside (WaferLLM). With `beside_bytes` of another model on the same wafers, this one has a part of the
    cores (`part_of`) and fills it as it would fill a smaller machine. Raises ProfileError for a model without bytes or layers.
    """
    _check(hw, placement, layers)
    count, side, whole = wafers(hw, model_bytes + beside_bytes), _wafer(hw), placement == "whole"
    part = 1.0 if whole else part_of(hw, model_bytes, beside_bytes, wanted)
    chosen, most = families_of(works, families, hw), int(np.max(count))
    words = [
        f"{hw.name} {f.provenance} {key}, {most} wafer{'s' * (most > 1)}, {placement}" for key, f in chosen
    ]
    by_type, machine = works.ops.by_type, count * part
    tokens = np.maximum(np.nan_to_num(tokens_of(works), nan=1.0), 1.0)
    matrix = by_type([1.0 if family in _MATRICES else 0.0 for family in families]) > 0
    share = np.ones(len(works))
    if not whole:
        by_work = works["flops"] / tokens / token_flops if token_flops > 0 and placement == "spread" else None
        full = model_bytes / (machine * hw.memory.capacity_bytes)
        share = _shares(works["resident_bytes"] / model_bytes, matrix, layers, full, by_work)
    eta_bw, eta = by_type([f["eta_bw"] for _, f in chosen]), by_type([f["eta_flops"] for _, f in chosen])
    peak, cores = peaks(works, hw, words) * machine, side.cores * machine * share
    alone, one_alone = _own(works) if placement == "own" else (np.ones(len(works)),) * 2
    swept = works["bytes"] - works["weight_bytes"] + works["weight_bytes"] * alone
    mesh = whole and side.eta_mesh > 0  # prefill was fitted there: its error does not grow with the tokens
    first_s = works["flops"] / tokens * one_alone / (eta * peak * share)
    later_s = works["flops"] * (1.0 - 1.0 / tokens) / ((side.eta_mesh if mesh else eta) * peak)
    memory_s = swept / (eta_bw * hw.memory.bytes_per_s * machine * share)
    link = side.fabric_bytes_per_s / side.cores / _LINK_DIRECTIONS
    network_s = works["act_write_bytes"] / (link * np.sqrt(cores))
    latency_s = by_type([f["t0_s"] for _, f in chosen]) + _reductions_s(chosen, works, side, cores, part)
    if whole:
        latency_s = latency_s + matrix * side.shift_s * np.minimum(tokens - 1.0, np.sqrt(side.cores))
    times = by_type([max(1, EXPERT_GEMMS.get(op.kind, (1, 1))[1]) for op in works.ops.types])
    seconds = _taken(first_s, later_s, memory_s, network_s, latency_s * works["launches"] * times)
    compute_s, memory_s, network_s, fixed_s = seconds
    parts = Parts(compute_s, memory_s, fixed_s, fixed_s + compute_s + memory_s + network_s, network_s)
    error = _errors(chosen, works, parts, mesh)
    lower_s = np.maximum(works["bytes_min"] / (hw.memory.bytes_per_s * count), works["flops"] * part / peak)
    return finish(works.known, seconds, parts.expected_s, lower_s, error, words, works.ops.code)


def _check(hw: Hardware, placement: str, layers: int) -> None:
    """Raises ProfileError for a placement that there is not, or a model without layers."""
    if placement not in PLACEMENTS:
        raise ProfileError(unknown("placement", placement, PLACEMENTS))
    if layers < 1:
        raise ProfileError(
            f"profile {hw.name!r}: the wafer law needs the model's layers (1 or more), not {layers}"
        )


def _errors(chosen: Sequence[tuple[str, Family]], works: Works, parts: Parts, mesh: bool) -> FloatArray:
    """How far off each op may be, [ops]; on the `mesh` without more for more tokens."""
    found = np.zeros(len(works))
    for at, (_, family) in enumerate(chosen):
        own = family.error if mesh else errors(family, works, parts)
        found = np.where(works.ops.code == at, own, found)
    return found


def _reductions_s(
    chosen: Sequence[tuple[str, Family]],
    works: Works,
    side: Wafer,
    cores: FloatArray,
    part: float | FloatArray,
) -> FloatArray:
    """Seconds that an op takes to pass a reduction along both sides of its cores, there and back, [ops]."""
    crosses = works.ops.by_type([0.0 if key in _LOCAL else 1.0 for key, _ in chosen])
    return np.asarray(crosses * side.hop_s * 2.0 * np.sqrt(np.minimum(cores, side.cores * part)))


def _taken(
    first_s: FloatArray, later_s: FloatArray, memory_s: FloatArray, network_s: FloatArray, fixed_s: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(compute, memory, network, fixed) of what an op takes, which add up to it: of the three that overlap in a sweep (cores
    work on what has arrived while
    the rest is under way) the longest alone takes time, so twice the bandwidth of another saves nothing."""
    longest = np.argmax(np.stack([first_s, memory_s, network_s]), axis=0)
    compute, memory, network = (
        np.where(longest == i, each, 0.0) for i, each in enumerate((first_s, memory_s, network_s))
    )
    return compute + later_s, memory, network, fixed_s


def _shares(
    held: FloatArray,
    matrix: npt.NDArray[np.bool_],
    layers: int,
    full: float | FloatArray,
    by_work: FloatArray | None,
) -> FloatArray:
    """Share of all cores that each op runs on, [ops]: a matrix those that hold it, another op (norm, router, KV) its layer's.

    Cores are taken by bytes as far as these fill the SRAM (`full`), the rest by work where that is given.
    """
    own = held if by_work is None else full * held + (1.0 - full) * np.minimum(1.0, by_work)
    return np.where(matrix & (held > 0), np.minimum(1.0, own), 1.0 / layers)


def wafers(hw: Hardware, model_bytes: Any) -> Any:
    """Number of wafers whose SRAM holds `model_bytes`: a whole number, or for an array (numbers of many scenarios) one of them
    each. Raises ProfileError unless it is above 0."""
    for good in (model_bytes > 0, model_bytes < float("inf")):
        if not (good.all() if isinstance(good, np.ndarray) else bool(good)):
            raise ProfileError(
                f"profile {hw.name!r}: the wafer law needs the model's bytes (above 0), not {model_bytes}"
            )
    count = -(-model_bytes // hw.memory.capacity_bytes)
    return int(count) if isinstance(count, float) else count


def part_of(hw: Hardware, model_bytes: Any, beside_bytes: Any, wanted: float) -> Any:
    """Share of all cores that a model has with another beside it: as wanted, as far as each part holds its model."""
    room = wafers(hw, model_bytes + beside_bytes) * hw.memory.capacity_bytes
    return np.where(
        np.asarray(beside_bytes) > 0,
        np.minimum(np.maximum(wanted, model_bytes / room), 1.0 - beside_bytes / room),
        1.0,
    )


def crossings_s(hw: Hardware, wafers: Any, nbytes: Any = 0.0) -> Any:
    """Seconds per token step spent between wafers: latency of each crossing, and `nbytes` of activations sent at each. Numbers,
    or numbers of many scenarios."""
    wafer = _wafer(hw)
    return (wafers - 1) * (wafer.crossing_s + nbytes / wafer.off_wafer_bytes_per_s)


def _wafer(hw: Hardware) -> Wafer:
    if hw.wafer is None:
        raise ProfileError(f"profile {hw.name!r} has law {hw.law!r}, not wafer")
    return hw.wafer


def _own(works: Works) -> tuple[FloatArray, FloatArray]:
    """Resident over touched weights of MoE ops, of all tokens and of one: an expert has only 1/experts of the region."""
    touched, experts = works["weight_bytes"], works["experts"]
    moe = (experts > 0) & (touched > 0)
    ratio = np.divide(works["resident_bytes"], touched, out=np.ones(len(works)), where=moe)
    ratio = np.maximum(1.0, ratio)
    one = works.dim("experts") / works.dim("topk")
    return ratio, np.where(moe & np.isfinite(one), np.maximum(ratio, one), ratio)
