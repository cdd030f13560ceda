"""Run: the value in the middle. Measured, synthesized and predicted runs have this one schema.

On disk a directory: ``run.json`` (metadata), ``ops.parquet`` (one row per op execution), ``routing.parquet`` and
``routing_tokens.parquet`` (if any), and ``attribution.parquet`` (once made). `columns` is the only file that knows the op
table's columns, `meta` what stands beside it, `parts` how a long table is written, `value` the Run.
"""

from __future__ import annotations

from moetrace.run.columns import (
    GENERATING,
    OPS_COLUMNS,
    OPS_SCHEMA,
    PHASES,
    RUN_VERSION,
    TABLE_FACTS,
    TEXT,
    codes_of,
    main_phase,
    nullable,
    numbers,
    ops_table,
    text_column,
    without_nulls,
)
from moetrace.run.meta import LAUNCHED, OWN_EXPERTS, TPOT, Meta, Step, main_steps, step_is_token
from moetrace.run.parts import TableParts
from moetrace.run.value import Run, check_runs, runs_of

__all__ = [
    "GENERATING", "LAUNCHED", "OPS_COLUMNS", "OPS_SCHEMA", "OWN_EXPERTS", "PHASES", "RUN_VERSION", "TABLE_FACTS", "TEXT",
    "TPOT", "Meta",
    "Run", "Step", "TableParts", "check_runs", "codes_of", "main_phase", "main_steps", "nullable", "numbers", "ops_table",
    "runs_of", "step_is_token", "text_column", "without_nulls",
]  # fmt: skip
