"""Op, Work, Cost: the three values all else is made of.

An `Op` says what is computed (kind, dtype, dims), a `Work` what that takes (FLOPs, bytes, messages: no machine in it), a
`Cost` how long it takes on one machine. `OpColumns`, `Works` and `Costs` are the same three as columns, one entry per op,
so that a formula of work or time is a few lines of numpy, for one op and for a million.
"""

from __future__ import annotations

from moetrace.op.columns import FloatArray, OpColumns, OpGroup, Rows
from moetrace.op.cost import BOUNDS, PARTS, Cost, Costs
from moetrace.op.value import Op, dtypes, element_bytes
from moetrace.op.work import UNKNOWN, WORK_COLUMNS, Amount, Amounts, Work, Works

__all__ = [
    "BOUNDS", "PARTS", "UNKNOWN", "WORK_COLUMNS", "Amount", "Amounts", "Cost", "Costs", "FloatArray", "Op",
    "OpColumns", "OpGroup", "Rows", "Work", "Works", "dtypes", "element_bytes",
]  # fmt: skip
