"""The form for whatever has none of its own: a floor, bytes over bandwidth, FLOPs over peak.

    fixed    = t0 launches + per_expert (distinct experts x expert GEMMs) + per_k k + per_tile (sequences x KV heads)
    memory   = bytes / (eta_bw x datasheet bandwidth)      compute = FLOPs / (eta_flops x datasheet peak)
    expected = fixed + (memory^p + compute^p)^(1/p)

In decode the sum of memory and compute fits as well as their maximum, in dense GEMMs a sharper blend fits better. Not
modelled: cache residency, tile and wave quantisation, clocks, contention between streams.
"""

from __future__ import annotations

from collections.abc import Mapping

from moetrace.hardware import SCHEMAS
from moetrace.machines.forms.base import Form, Parts, Setting, smoothmax
from moetrace.op import Works

# One op that stands for several: (launches, expert GEMMs). moe_experts is gate_up, activation and down.
EXPERT_GEMMS = {"moe_gate_up": (1, 1), "moe_down": (1, 1), "moe_experts": (3, 2), "moe_module": (6, 2)}


def seconds(c: Mapping[str, float], works: Works, at: Setting) -> Parts:
    """Seconds of any op, [ops]."""
    launches, gemms = (
        works.ops.by_type([EXPERT_GEMMS.get(op.kind, (1, 0))[i] for op in works.ops.types]) for i in (0, 1)
    )
    tiles = works.dim("batch", 0.0) * works.dim("kv_heads", 1.0)
    fixed_s = c["t0_s"] * launches + c["per_k_s"] * works.dim("k", 0.0) + c["per_tile_s"] * tiles
    fixed_s = fixed_s * works["launches"] + c["per_expert_s"] * gemms * works["experts"]
    memory_s = works["bytes"] / (c["eta_bw"] * at.hw.memory.bytes_per_s)
    compute_s = works["flops"] / (c["eta_flops"] * at.peak)
    expected_s = fixed_s + smoothmax(c["blend"], memory_s, compute_s)
    terms = {"fixed": fixed_s, "memory": memory_s, "compute": compute_s}
    return Parts(compute_s, memory_s, fixed_s, expected_s, terms=terms)


FORM = Form(SCHEMAS["generic"], seconds)
