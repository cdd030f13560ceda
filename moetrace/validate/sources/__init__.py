"""One file per kind of source: `KINDS` (what its ids begin with) and `entries`, the mapping of a figure to predictions.

`entries` gets a figure and all figures of the source, and returns its entries (a ratio to another figure is one more). A
MoetraceError that it raises is why the figure is not simulated. To add a source, write its file and add it here.
"""

from __future__ import annotations

from moetrace.validate.sources import (
    distinct,
    exchange,
    fewer_active,
    field,
    kernels,
    moe_bench,
    runs,
    served,
    wafer,
)

SOURCES = (fewer_active, moe_bench, distinct, wafer, exchange, kernels, field, served, runs)
