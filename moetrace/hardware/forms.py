"""What each form of the gpu law is told by a profile: parameter names, units, bounds and meaning. The formulas: machines/forms.

A form is one shape of formula, for one or more op families. Its parameters are all that a profile may set and all that
`moetrace calibrate` fits. A parameter whose unit begins with ``s`` is time that no faster memory, unit or link saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moetrace.errors import ProfileError, unknown


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

    @property
    def is_fixed_time(self) -> bool:
        """Whether it is time that no faster resource saves (seconds, or seconds per something)."""
        return self.unit.split("/")[0] == "s"


@dataclass(frozen=True, slots=True)
class Schema:
    """The parameters of one form, by name."""

    name: str
    parameters: Mapping[str, Parameter]

    @classmethod
    def of(cls, name: str, *parameters: Parameter) -> Schema:
        return cls(name, MappingProxyType({p.name: p for p in parameters}))


_ETA_BW = Parameter("eta_bw", "share", 1e-3, 1, 0.8, 1, "share of the datasheet bandwidth that is reached")
_ETA_FLOPS = Parameter(
    "eta_flops", "share", 1e-3, 1, 0.5, 1, "share of the dense datasheet peak that is reached"
)

GENERIC = Schema.of(
    "generic",
    Parameter("t0_s", "s/launch", 0, 1, 3e-6, 0, "seconds per launch"),
    _ETA_BW,
    _ETA_FLOPS,
    Parameter(
        "per_expert_s", "s/expert", 0, 1e-3, 5e-8, 0, "seconds per distinct expert of each expert GEMM"
    ),
    Parameter("per_k_s", "s", 0, 1e-6, 1e-10, 0, "seconds per element of a GEMM's reduction"),
    Parameter("per_tile_s", "s", 0, 1e-3, 1e-9, 0, "seconds per (sequence, KV head) of an attention"),
    Parameter("blend", "power", 1, 8, 1.5, 1, "p of the p-norm that joins memory and compute (1: they add)"),
)

SCHEMAS: Mapping[str, Schema] = MappingProxyType({schema.name: schema for schema in (GENERIC,)})


def schema(name: str) -> Schema:
    """The parameters of a form. Raises ProfileError if there is no such form."""
    if name not in SCHEMAS:
        raise ProfileError(unknown("form", name, SCHEMAS))
    return SCHEMAS[name]
