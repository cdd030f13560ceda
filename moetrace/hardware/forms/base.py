"""What a form is told: its parameters and terms, those that several forms share, and the form of all other families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Parameter:
    """One coefficient: its unit, its physical bounds, where a fit starts, what it is if a profile leaves it out."""

    name: str
    unit: str
    low: float
    high: float
    start: float
    default: float
    meaning: str
    spread: float = 1.0  # a fit's weak prior: standard deviation around `start`, of the logarithm
    given: bool = False  # a fact of the kernel or of its benchmark, which no fit changes
    pace: str = "clock"  # what such a time goes with on another chip: its clock, a processor's arithmetic, half of each

    @property
    def is_fixed_time(self) -> bool:
        """Whether it is time that no faster resource saves (seconds, or seconds per something)."""
        return self.unit.split("/")[0] == "s"


@dataclass(frozen=True, slots=True)
class Schema:
    """The parameters of one form, by name, and the names of the terms that its times are made of."""

    name: str
    parameters: Mapping[str, Parameter]
    terms: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, *parameters: Parameter, terms: tuple[str, ...] = ()) -> Schema:
        return cls(name, MappingProxyType({p.name: p for p in parameters}), terms)


ETA_BW = Parameter("eta_bw", "share", 1e-3, 1, 0.8, 1, "share of the datasheet bandwidth that is reached")
ETA_FLOPS = Parameter(
    "eta_flops", "share", 1e-3, 1, 0.5, 1, "share of the dense datasheet peak that is reached"
)
BLEND = Parameter("blend", "power", 1, 8, 2, 1, "p of the p-norm that joins memory, compute and serial work")

CACHED = Parameter(
    "cached", "share", 0.05, 1, 0.7, 1, "of their time from memory, bytes that lie in a warm cache take this"
)

GENERIC = Schema.of(
    "generic",
    Parameter("t0_s", "s/launch", 0, 1, 3e-6, 0, "seconds per launch"),
    ETA_BW,
    ETA_FLOPS,
    Parameter(
        "per_expert_s", "s/expert", 0, 1e-3, 5e-8, 0, "seconds per distinct expert of each expert GEMM"
    ),
    Parameter("per_k_s", "s", 0, 1e-6, 1e-10, 0, "seconds per element of a GEMM's reduction"),
    Parameter("per_tile_s", "s", 0, 1e-3, 1e-9, 0, "seconds per (sequence, KV head) of an attention"),
    Parameter("blend", "power", 1, 8, 1.5, 1, "p of the p-norm that joins memory and compute (1: they add)"),
    terms=("fixed", "memory", "compute"),
)
