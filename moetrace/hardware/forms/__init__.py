"""What each form of the gpu law is told by a profile: parameter names, units, bounds and meaning. The formulas: machines/forms.

A form is one shape of formula, for one or more op families. Its parameters are all that a profile may set and all that
`moetrace calibrate` fits. A parameter whose unit begins with ``s`` is time that no faster memory, unit or link saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from moetrace.errors import ProfileError, unknown
from moetrace.hardware.forms.attention import ATTENTION
from moetrace.hardware.forms.base import GENERIC, Parameter, Schema
from moetrace.hardware.forms.collectives import ALL_REDUCE, COLLECTIVE, EXCHANGE
from moetrace.hardware.forms.experts import EXPERTS
from moetrace.hardware.forms.gemm import GEMM
from moetrace.hardware.forms.sparse import SCORES, SELECT

__all__ = ["FORM_OF", "GENERIC", "SCHEMAS", "Parameter", "Schema", "schema"]

SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {s.name: s for s in (GENERIC, EXPERTS, GEMM, ATTENTION, SCORES, SELECT, COLLECTIVE, ALL_REDUCE, EXCHANGE)}
)

# Families whose kernels have a form of their own; all else takes the generic one.
FORM_OF: Mapping[str, str] = MappingProxyType(
    {
        "experts": "experts", **dict.fromkeys(("dense_gemm", "batched_gemm"), "gemm"),
        **dict.fromkeys(("attention", "mla_attention"), "attention"),
        "all_reduce": "all_reduce", "all_reduce@nccl": "collective", "moe_dispatch": "exchange", "moe_collect": "exchange",
        **dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all", "send_recv"), "collective"),
    }
)  # fmt: skip


def schema(name: str) -> Schema:
    """The parameters of a form. Raises ProfileError if there is no such form."""
    if name not in SCHEMAS:
        raise ProfileError(unknown("form", name, SCHEMAS))
    return SCHEMAS[name]
