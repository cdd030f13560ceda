"""The timing law of GPUs (and, with other figures, of CPUs).

    expected = fixed + (memory^p + compute^p)^(1/p) + network
    fixed    = t0 launches + per_expert (distinct experts x expert GEMMs) + per_k k + per_tile (sequences x KV heads) + latency
    memory   = bytes / (eta_bw x datasheet bandwidth)      compute = FLOPs / (eta_flops x datasheet peak)

Why these terms: a MoE decode op is linear in the distinct experts it touches, over a floor that at one token is half of
it; in decode the sum of memory and compute fits as well as their maximum, in dense GEMMs a sharper blend fits better
(coefficients, held-out errors: the profile; the fit: benchmarks/fit_gpu_profile.py). Not modelled: cache residency (a shard
that stays in L2 runs faster), tile and wave quantisation, clocks, contention between streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetrace.errors import ProfileError
from moetrace.hardware import Family, Hardware
from moetrace.machines import links
from moetrace.op import Costs, FloatArray, Op, Works

# One op that stands for several: (launches, expert GEMMs). moe_experts is gate_up, activation and down.
EXPERT_GEMMS = {"moe_gate_up": (1, 1), "moe_down": (1, 1), "moe_experts": (3, 2)}


def cost(works: Works, families: Sequence[str], hw: Hardware) -> Costs:
    """Costs of distinct ops on one GPU of `hw`. nan where the work is unknown or the profile has no peak or link for it."""
    chosen = [
        hw.family(op.kind, family, op.weight_dtype) for op, family in zip(works.ops, families, strict=True)
    ]
    coefficient = {
        name: np.array([getattr(f, name) for _, f in chosen], dtype=np.float64)
        for name in ("eta_bw", "eta_flops", "blend", "error")
    }
    reasons = [f"{hw.name} {f.provenance} {key}" for key, f in chosen]
    peak = peaks(works, hw, reasons)
    raw_memory, raw_compute = works["bytes"] / hw.memory.bytes_per_s, works["flops"] / peak
    memory_s, compute_s = raw_memory / coefficient["eta_bw"], raw_compute / coefficient["eta_flops"]
    fixed_s = np.array([_fixed(op, f) for op, (_, f) in zip(works.ops, chosen, strict=True)])
    fixed_s = fixed_s * works["launches"] + _per_expert(works, [f for _, f in chosen])
    lower_s = np.maximum(works["bytes_min"] / hw.memory.bytes_per_s, raw_compute)
    network_s, error = np.zeros(len(works)), coefficient["error"]
    for i in np.flatnonzero((works["net_bytes"] > 0) & (works["net_ranks"] > 1)):
        # The local reads and writes of a collective are a part of what was fitted: they are not counted twice.
        memory_s[i] = compute_s[i] = 0.0
        fixed_s[i], network_s[i], lower_s[i], error[i] = _network(works, int(i), hw, reasons)
    expected_s = fixed_s + blend(memory_s, compute_s, coefficient["blend"]) + network_s
    return finish(works.known, (compute_s, memory_s, network_s, fixed_s), expected_s, lower_s, error, reasons)


def blend(memory_s: FloatArray, compute_s: FloatArray, power: FloatArray | float) -> FloatArray:
    """p-norm of two times: their sum at p = 1, near their maximum at p = 8; never below either."""
    high, low = np.maximum(memory_s, compute_s), np.minimum(memory_s, compute_s)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    # Rounding must not bring the norm below its larger part.
    return np.asarray(
        high * np.maximum(1.0, (1.0 + ratio**power) ** (1.0 / np.asarray(power))), dtype=np.float64
    )


def peaks(works: Works, hw: Hardware, reasons: list[str]) -> FloatArray:
    """Peak FLOP/s for each op; inf where it does no FLOPs, nan (and the reason) where the machine has no path for it."""
    out = np.full(len(works), np.inf)
    flops = works["flops"]
    for i, op in enumerate(works.ops):
        if flops[i] > 0:
            try:
                out[i] = hw.peak(op.compute_dtype)
            except ProfileError as error:
                out[i], reasons[i] = np.nan, str(error)
    return out


def finish(
    known: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    parts: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
    expected_s: FloatArray,
    lower_s: FloatArray,
    error: FloatArray,
    reasons: Sequence[str],
) -> Costs:
    """Costs from (compute, memory, network, fixed) and the rest; nan throughout where the work or the machine is unknown."""
    good = known & np.isfinite(expected_s)
    compute_s, memory_s, network_s, fixed_s, expected, lower, spread = (
        np.where(good, column, np.nan) for column in (*parts, expected_s, lower_s, error)
    )
    why = tuple(
        reason if ok else "unknown: its dims did not suffice"
        for reason, ok in zip(reasons, known, strict=True)
    )
    return Costs(compute_s, memory_s, network_s, fixed_s, expected, lower, spread, why)


def _fixed(op: Op, family: Family) -> float:
    """Seconds per launch that depend on the op's shape alone."""
    launches = EXPERT_GEMMS.get(op.kind, (1, 0))[0]
    depth = op.get("k", 0.0) or 0.0
    tiles = (op.get("batch", 0.0) or 0.0) * (op.get("kv_heads", 1.0) or 1.0)
    return family.t0_s * launches + family.per_k_s * depth + family.per_tile_s * tiles


def _per_expert(works: Works, families: Sequence[Family]) -> FloatArray:
    gemms = np.array([EXPERT_GEMMS.get(op.kind, (1, 0))[1] for op in works.ops], dtype=np.float64)
    return gemms * works["experts"] * np.array([f.per_expert_s for f in families], dtype=np.float64)


def _network(works: Works, i: int, hw: Hardware, reasons: list[str]) -> tuple[float, float, float, float]:
    """(latency, bandwidth time, lower bound, error) of one collective; nan and the reason if the profile cannot tell."""
    kind, sent, ranks = works.ops[i].kind, works["net_bytes"][i : i + 1], works["net_ranks"][i : i + 1]
    if hw.link is None:
        reasons[i] = f"unknown: profile {hw.name!r} has no link"
        return (np.nan,) * 4
    try:
        coefficients = links.coefficients(kind, hw.link)
    except ProfileError as error:
        reasons[i] = f"unknown: profile {hw.name!r}: {error}"
        return (np.nan,) * 4
    latency, bandwidth = links.seconds(kind, sent, ranks, hw.link)
    reasons[i] = f"{hw.name} {coefficients.provenance} {kind}"
    certain = links.certain_bytes(kind, sent, ranks) / hw.link.bytes_per_s
    return float(latency[0]), float(bandwidth[0]), float(certain[0]), coefficients.error
