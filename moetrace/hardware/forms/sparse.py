"""The parameters of an indexer's scores and of its choice of tokens. The formulas: machines/forms/sparse."""

from __future__ import annotations

from moetrace.hardware.forms.base import ETA_BW, Parameter, Schema

_T0 = Parameter("t0_s", "s/launch", 0, 1, 3e-6, 0, "seconds per launch")

SCORES = Schema.of("scores", _T0, ETA_BW, terms=("launch", "memory", "compute"))
SELECT = Schema.of(
    "select",
    _T0,
    ETA_BW,
    Parameter("cycles", "cycles", 1e-3, 1e3, 1, 1, "of a processor for each value that it looks through"),
    Parameter(
        "part", "values", 1, 1e9, 32768, 1e9, "of a row at least, where idle processors share it", given=True
    ),
    terms=("launch", "memory", "walk"),
)
