"""One machine as frozen values: peaks, memory, links, wafer and coefficients. Nothing here reads a file or knows a law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moetrace.errors import ProfileError, unknown
from moetrace.hardware.family import Family
from moetrace.hardware.pace import Pace

ANY_ENGINE = "any"
# What another version of an engine than was measured errs by beside its coefficients' own error: the most that public tables
# say. They have one version of each engine on an H100 and another on an A100; for intervals of the one to hold 80 % of the
# other's MoE modules, TensorRT-LLM (1.0, 1.3) needs 0 and 19 %, SGLang (0.5.10, 0.5.14) 9 and 23 %, vLLM (0.14, 0.19) 28 and
# 42 %, the chips' difference included (benchmarks/score_transfer.py).
OTHER_VERSION = 0.42

# The engines that are told apart, and what one that was not measured errs by beside the coefficients' own error, or where it is
# not said which and only one was: with it an engine's own interval holds 79 % of another's rows in the public tables, without
# it 30 %. Where two or more were measured, the law of all has their spread in its error: of an engine left out it holds 62 %,
# with this error beside it 80 % (benchmarks/score_engines.py).
ENGINES = ("vllm", "sglang", "trtllm")
OTHER_ENGINE = 0.6
BEYOND_ENGINES = 0.3

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
# are known on one machine (h100-sxm.toml, experts:mxfp4): a factor of two to both sides beside the 16-bit family's own error.
_NARROW_ERROR = 1.0
NARROW = frozenset({"fp8", "fp8_block", "int8", "int4", "mxfp8", "mxfp4", "nvfp4"})
OF_BF16 = "of 16-bit kernels, error widened for"
FASTEST = "of the fastest on average,"
# Whose coefficients an op kind takes, where that is not its own family's. The small kernels of an MoE module share the
# module's fitted time per launch, so that the parts add up to the measured whole; every GEMM is a GEMM.
_MODEL_OF_KIND = {
    **dict.fromkeys(
        (
            "topk",
            "moe_align",
            "moe_act",
            "moe_combine",
            "moe_gate_up",
            "moe_down",
            "moe_experts",
            "moe_module",
        ),
        "experts",
    ),
    **dict.fromkeys(
        (
            "router",
            "shared_gate_up",
            "shared_down",
            "shared_gate",
            "expert_up",
            "expert_down",
            "gemm",
            "index_proj",
            "index_weights",
            "lm_head",
        ),
        "dense_gemm",
    ),
    **dict.fromkeys(
        (
            "attention_plan",
            "attention_reduce",
            "index_prep",
            "index_write",
            "kv_write",
            "rope",
            "shared_act",
            "expert_act",
            "activation",
            "gemm_reduce",
            "quantize",
        ),
        "elementwise",
    ),
    # No kernel of these was measured anywhere: streams of bytes, with the widest of the assumed errors.
    **dict.fromkeys(
        ("linear_attention", "linear_conv", "linear_prep", "index_scores", "index_topk"), "other"
    ),
    "broadcast": "send_recv",
}
# Kinds whose kernels are not those that they take the coefficients of, and what they err by beside: MLA over tokens that lie
# apart, which a kernel of its own gathers (docs/accuracy.md has the speeds that are published of it). From a cache in FP8 that
# is FlashMLA's in every engine, whose kernel for whole contexts was measured as TensorRT-LLM's; others convert the cache.
UNLIKE = {"sparse_mla": ("mla_attention", 0.6)}
_GATHERS_FP8 = "trtllm"


def coefficient_family(kind: str, family: str) -> str:
    """The family whose coefficients an op of this kind (and family) takes."""
    return UNLIKE[kind][0] if kind in UNLIKE else _MODEL_OF_KIND.get(kind, family)


@dataclass(frozen=True, slots=True)
class Memory:
    """One device's memory: capacity and last-level cache in bytes, bandwidth in bytes/s (read and write together)."""

    capacity_bytes: float
    bytes_per_s: float
    cache_bytes: float


@dataclass(frozen=True, slots=True)
class Link:
    """The links of one device to its peers, and its share of the network beyond its node: bytes/s in one direction.

    `network_bytes_per_s` is None where the profile says nothing of a network.
    """

    bytes_per_s: float
    network_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wafer:
    """What only a wafer has: cores, fabric bytes/s (sum over all links), bytes/s off the wafer, seconds per wafer crossing.

    `hop_s` is what a reduction takes for each core that it passes along one side of its rectangle. A matrix product of many
    tokens over the whole mesh passes its tiles on in as many steps as a side has cores: each takes `shift_s` beside the
    arithmetic, which then reaches `eta_mesh` of the dense peak (0: not known, as that of one token). `mesh_seen` has the least
    and the most of each size that the fit of these two saw.
    """

    cores: float
    fabric_bytes_per_s: float
    off_wafer_bytes_per_s: float
    crossing_s: float
    hop_s: float = 0.0
    shift_s: float = 0.0
    eta_mesh: float = 0.0
    mesh_seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def with_fixed_times(self, factor: float) -> Wafer:
        """The same with what an op takes for crossing the mesh multiplied by `factor`."""
        return replace(self, hop_s=self.hop_s * factor, shift_s=self.shift_s * factor)


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine, by value. `peaks` are dense FLOP/s by dtype; all figures are per device, also for a node of `gpus`.

    `law` names the timing law; `base` the profile that a node repeats. `sources` maps a table of
    the profile to where its figures come from. `multiprocessors` is 1 where the profile does not say, `clock_hz`, their
    highest, None. `power_w` is the most that one device draws (a wafer: the whole system), `domain_gpus` how many devices
    the fast links join. `tuned` has by dtype of the weights the (experts on a rank, width) for which engines ship tiles that
    were tuned on this device, an engine's own list under ``bf16@vllm``; `engines` the version of each engine whose kernels
    were measured; `narrow` what a family's 16-bit coefficients err by for a narrower type here (``experts:nvfp4``), where
    that was seen.
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
    multiprocessors: float = 1.0
    clock_hz: float | None = None
    power_w: float | None = None
    domain_gpus: int = 8
    tuned: Mapping[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)
    narrow: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Hardware {self.name}: {self.title}>"

    @property
    def device_class(self) -> str:
        """``gpu``, ``wafer`` or ``cpu``: a measurement anchors a prediction only within one class."""
        return self.law

    @property
    def pace(self) -> Pace:
        """How fast its processors go, by the datasheet."""
        return Pace.of(self.clock_hz, self.peaks, self.multiprocessors)

    @property
    def chip(self) -> str:
        """The profile of one device: a node's base."""
        return self.base or self.name

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of multiply-adds in `dtype`.

        A machine without units for a narrow dtype dequantises (fp8 on A100, fp4 on H100: the bf16 peak; see FALLBACK).
        Raises ProfileError if there is no such path.
        """
        for name in (dtype, FALLBACK.get(dtype, dtype)):
            if name in self.peaks:
                return self.peaks[name]
        raise ProfileError(f"profile {self.name!r}: {unknown('dtype of a peak', dtype, self.peaks)}")

    def narrow_error(self, family: str, dtype: str) -> float:
        """What 16-bit coefficients of a family err by for a narrower type, beside their own error."""
        return self.narrow.get(f"{family}:{dtype}", _NARROW_ERROR)

    def family(self, kind: str, family: str, dtype: str, engine: str = ANY_ENGINE) -> tuple[str, Family]:
        """Key and coefficients for an op: those of its kind before those of its family, with its dtype before without,
        those of the engine (``experts:fp8@vllm``) before those of all engines (``experts:fp8``). An engine may say its version
        (``vllm@0.11.2``): of another than was measured, what is not assumed anyway errs by OTHER_VERSION more.

        An attention takes those of its engine's 16-bit kernel before another engine's for its dtype.
        Coefficients without a dtype were fitted on 16-bit kernels. A narrower type that has none of its own takes them with
        an error of a factor of two more, or what the profile says (`narrow_error`), and the key says so.
        What one other engine was measured for, but not this one, errs by OTHER_ENGINE more, and so does, where no engine is
        said, what only one was measured for; what several others were measured for errs by BEYOND_ENGINES more, as the error of
        the law of all holds what these differ by. Where none is said and one set of coefficients holds for none, those of the
        engine that is fastest on average over what was measured stand, with an error that spans the others' (of a single size
        another may be the fastest), and the key names it. What has another kernel than was measured (`UNLIKE`) errs by more,
        and the key says so.
        """
        if kind in UNLIKE:
            measured_kind, further = UNLIKE[kind]
            key, found = self.family(
                measured_kind, family, dtype, _GATHERS_FP8 if dtype in NARROW else engine
            )
            return f"{key} (for {kind})", found.widened(further)
        name = engine.partition("@")[0]
        key, found = self._family(kind, family, dtype, name)
        measured = [one for one in ENGINES if self._is_measured(f"{key}@{one}")]
        if len(measured) == 1 if name == ANY_ENGINE else measured:
            wider = OTHER_ENGINE if len(measured) == 1 else BEYOND_ENGINES
            return f"{key} (of {', '.join(measured)})", found.widened(wider)
        fastest = [one for one in measured if self.families[f"{key}@{one}"].value == found.value]
        if name == ANY_ENGINE and fastest:
            return f"{key} ({FASTEST} {fastest[0]})", found
        other = self.is_other_version(engine) and found.provenance != "assumed"
        return (f"{key} (as of {engine})", found.widened(OTHER_VERSION)) if other else (key, found)

    def _is_measured(self, key: str) -> bool:
        return key in self.families and self.families[key].provenance != "assumed"

    def is_other_version(self, engine: str) -> bool:
        """Whether an engine with its version (``vllm@0.11.2``) is not what was measured; not if it says none."""
        name, at, asked = engine.partition("@")
        measured = self.engines.get(name, "")
        return bool(at) and f"{asked}." != f"{measured}."[: len(asked) + 1]

    def _family(self, kind: str, family: str, dtype: str, engine: str) -> tuple[str, Family]:
        model = coefficient_family(kind, family)
        for name in (f"{kind}:{dtype}", kind, f"{model}:{dtype}", model):
            keys = [f"{name}@{engine}", name]
            # Engines' attention kernels differ more (a factor of 20 on A100) than one does by the cache's type.
            if family == "attention" and name == f"{kind}:{dtype}" and f"{kind}@{engine}" in self.families:
                keys = keys[:1]
            for key in keys:
                if key in self.families:
                    found = self.families[key]
                    own = name.endswith(f":{dtype}") or found.provenance == "assumed"
                    if dtype in NARROW and not own:
                        return f"{key} ({OF_BF16} {dtype})", found.widened(self.narrow_error(model, dtype))
                    return key, found
        return "other", self.families["other"]
