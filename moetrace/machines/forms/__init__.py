"""Forms of the gpu law, one file per family of kernels: what `machines/gpu.py` prices with and `moetrace calibrate` fits.

A form's parameters are declared in `hardware/forms/` (a profile is checked against them), its formula is one function
here. To add one: a Schema there, a file here, and its line in FORMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from moetrace.machines.forms import attention, collectives, exchange, experts, gemm, generic, sparse
from moetrace.machines.forms.base import Cache, Form, Parts, Setting, smoothmax

FORMS: Mapping[str, Form] = MappingProxyType(
    {
        form.schema.name: form
        for form in (
            generic.FORM,
            experts.FORM,
            gemm.FORM,
            attention.FORM,
            sparse.SCORES,
            sparse.SELECT,
            collectives.COLLECTIVE,
            collectives.ALL_REDUCE,
            exchange.FORM,
        )
    }
)

__all__ = ["FORMS", "Cache", "Form", "Parts", "Setting", "smoothmax"]
