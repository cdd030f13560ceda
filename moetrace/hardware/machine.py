"""One machine as frozen values: peaks, memory, links, wafer and coefficients. Nothing here reads a file or knows a law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moetrace.errors import ProfileError, unknown

# Where a dtype that a machine has no units for is computed: weights are dequantised to the first of these with a peak;
# index arithmetic runs on the vector units. fp32 and fp64 have no substitute.
FALLBACK = {
    "fp4": "bf16",
    "fp8": "bf16",
    "int8": "bf16",
    "int4": "bf16",
    "fp16": "bf16",
    "int32": "fp32",
    "int64": "fp32",
}
# Types whose kernels are not those of 16-bit weights. How far off a 4-bit one may be: from 0.24 to above 0.6 of the bandwidth
# are known on one machine (h100-sxm.toml, experts:mxfp4), a factor of two to both sides with the 16-bit family's own error.
_NARROW = frozenset({"fp8", "fp8_block", "int8", "int4", "mxfp8", "mxfp4", "nvfp4"})
OF_BF16 = "of 16-bit kernels, error widened for"
# Whose coefficients an op kind takes, where that is not its own family's. The small kernels of an MoE module share the
# module's fitted time per launch, so that the parts add up to the measured whole; every GEMM is a GEMM.
_MODEL_OF_KIND = {
    **dict.fromkeys(
        ("topk", "moe_align", "moe_act", "moe_combine", "moe_gate_up", "moe_down", "moe_experts"), "experts"
    ),
    **dict.fromkeys(
        ("router", "shared_gate_up", "shared_down", "expert_up", "expert_down", "gemm", "lm_head"),
        "dense_gemm",
    ),
    **dict.fromkeys(
        ("attention_reduce", "kv_write", "rope", "shared_act", "expert_act", "activation"), "elementwise"
    ),
}


@dataclass(frozen=True, slots=True)
class Memory:
    """One device's memory: capacity and last-level cache in bytes, bandwidth in bytes/s (read and write together)."""

    capacity_bytes: float
    bytes_per_s: float
    cache_bytes: float


@dataclass(frozen=True, slots=True)
class Collective:
    """Alpha-beta coefficients of one collective: ``latency_s + per_rank_s (n - 1) + wire bytes / (efficiency x link)``.

    `one_shot_bytes`: up to this size an all-reduce sends its whole buffer to every other rank (see machines/links.py).
    """

    latency_s: float
    per_rank_s: float
    efficiency: float
    one_shot_bytes: float
    error: float
    provenance: str


@dataclass(frozen=True, slots=True)
class Link:
    """The links of one device to its peers: bytes/s in one direction, all links together; coefficients by collective."""

    bytes_per_s: float
    collectives: Mapping[str, Collective]


@dataclass(frozen=True, slots=True)
class Wafer:
    """What only a wafer has: cores, fabric bytes/s (sum over all links), bytes/s off the wafer, seconds per wafer crossing."""

    cores: float
    fabric_bytes_per_s: float
    off_wafer_bytes_per_s: float
    crossing_s: float


@dataclass(frozen=True, slots=True)
class Family:
    """Efficiency coefficients of one op family on one machine (the law's formula is in machines/gpu.py).

    `t0_s` per launch, `per_expert_s` per distinct expert and expert GEMM, `per_k_s` per element of a GEMM's reduction
    length, `per_tile_s` per (sequence, KV head) of an attention; `eta_bw` and `eta_flops` are shares of the datasheet;
    `blend` is the p of the p-norm that joins memory and compute time (1: they add up). `error` is such that 80 % of
    held-out measurements lie within ``/ (1 + error)`` and ``x (1 + error)``. `source` says where all this is from.
    """

    t0_s: float
    eta_bw: float
    eta_flops: float
    per_expert_s: float
    per_k_s: float
    per_tile_s: float
    blend: float
    error: float
    provenance: str
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine, by value. `peaks` are dense FLOP/s by dtype; all figures are per device, also for a node of `gpus`.

    `law` names the timing law; `base` the profile that a node repeats. `sources` maps a table of
    the profile to where its figures come from.
    """

    name: str
    title: str
    law: str
    gpus: int
    base: str | None
    peaks: Mapping[str, float]
    memory: Memory
    link: Link | None
    wafer: Wafer | None
    families: Mapping[str, Family]
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def device_class(self) -> str:
        """``gpu``, ``wafer`` or ``cpu``: a measurement anchors a prediction only within one class."""
        return self.law

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of multiply-adds in `dtype`.

        A machine without units for a narrow dtype dequantises (fp8 on A100, fp4 on H100: the bf16 peak; see FALLBACK).
        Raises ProfileError if there is no such path.
        """
        for name in (dtype, FALLBACK.get(dtype, dtype)):
            if name in self.peaks:
                return self.peaks[name]
        raise ProfileError(f"profile {self.name!r}: {unknown('dtype of a peak', dtype, self.peaks)}")

    def family(self, kind: str, family: str, dtype: str) -> tuple[str, Family]:
        """Key and coefficients for an op: those of its kind before those of its family, with its dtype before without.

        Coefficients without a dtype were fitted on 16-bit kernels. A narrower type that has none of its own takes them with
        an error of a factor of two more, and the key says so.
        """
        model = _MODEL_OF_KIND.get(kind, family)
        for key in (f"{kind}:{dtype}", kind, f"{model}:{dtype}", model):
            if key in self.families:
                found = self.families[key]
                if dtype in _NARROW and not key.endswith(f":{dtype}") and found.provenance != "assumed":
                    return f"{key} ({OF_BF16} {dtype})", replace(found, error=(1 + found.error) * 2 - 1)
                return key, found
        return "other", self.families["other"]
