"""Run x Hardware -> where the time goes: what each op would need, what bounds it, what stays unexplained, what idles.

Attribution prices the ops of a run on a machine with the same law that replay uses; facts (the Run) stay untouched.

priced (what each op needs, and what halving a resource saves), groups and summary (what they add up to), result (the table and
its columns).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace import ops
from moetrace.attribute.priced import Priced, price_run, priced_rows, shortest_latency
from moetrace.attribute.result import (
    ATTRIBUTION_COLUMNS,
    ATTRIBUTION_SCHEMA,
    ATTRIBUTION_VERSION,
    Attribution,
    check_attribution,
    file_facts,
)
from moetrace.attribute.summary import FLAGS, Summary
from moetrace.errors import ProfileError
from moetrace.hardware import Hardware, load_hardware
from moetrace.op import BOUNDS, PARTS
from moetrace.run import Run, TableParts, check_runs, nullable, numbers, text_column

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_NEVER = 1 << 62
# What of a run is read: of a long part, what is not takes as much as what is.
_READ = (
    *("rank", "device", "step", "phase", "layer", "family", "kind", "op", "kernel"),
    *("start_ns", "dur_ns", "launch_ns", "flops", "weight_bytes", "kv_bytes", "act_bytes"),
)
_TIMES = ("step", "device", "start_ns", "dur_ns", "launch_ns")


def attribute(run: Run, hardware: Hardware | str | None = None) -> Attribution:
    """Where the time of a run goes, held against a machine or the name of one; by default the one it ran on.

    Raises ProfileError if there is no such machine, or the run does not say its own.
    """
    check_runs(run)
    machine = run.meta.hardware if hardware is None else hardware
    if machine is None:
        raise ProfileError(
            "the run does not say which machine it ran on: name one with --hw (see 'moetrace profiles')"
        )
    hardware = load_hardware(machine)
    latency = min(
        (shortest_latency(part) for part in run.parts(_TIMES)),
        default=None,
        key=lambda ns: _NEVER if ns is None else ns,
    )
    summary, tables = (
        Summary(run),
        TableParts(ATTRIBUTION_SCHEMA.with_metadata(file_facts(hardware.name)), run.new_file),
    )
    for part in run.parts(_READ):
        _add(part, hardware, latency, summary, tables)
    return Attribution(hardware.name, summary.result(hardware), tables.finish())


def _add(part: Run, hardware: Hardware, latency: int | None, summary: Summary, tables: TableParts) -> None:
    """A part of the run. On its own, so that nothing of the last part is held while the summary is made."""
    priced = priced_rows(part, hardware, latency)
    table = _table(part, priced, hardware, ops.works(priced.found)["bytes_min"])
    tables.write(table)
    halved, index = priced.halved, priced.index
    del priced
    summary.add(part, table, halved, index)


def _flags(priced: Priced, hardware: Hardware, touched: FloatArray) -> IntArray:
    """Code of the flag per row; -1 for none. Zero-length records (clock resolution) are not judged.

    A cache explains only that memory was beaten: what beats its FLOPs or its messages too is suspect, however small.
    """
    seconds = priced.dur / 1e9
    below = np.nan_to_num(priced.costs.lower_bound_s)[priced.index] > seconds
    certain = np.nan_to_num(priced.certain)[priced.index] > seconds
    fits = touched[priced.index] <= hardware.memory.cache_bytes
    return np.where(below & (priced.dur > 0), np.where(fits & ~certain, 0, 1), -1)


def _table(run: Run, priced: Priced, hardware: Hardware, touched: FloatArray) -> pa.Table:
    index, costs = priced.index, priced.costs
    unknown = np.isnan(costs.expected_s)[index]
    columns: dict[str, pa.Array] = {
        name: run.column(name)
        for name in ("rank", "step", "phase", "layer", "family", "kind", "op", "kernel", "dur_ns")
    }
    for part in (*PARTS, "expected_s", "lower_bound_s", "error"):
        columns[part] = nullable(getattr(costs, part)[index], unknown, pa.float64())
    columns |= {
        "exposed_ns": numbers(priced.exposed),
        "gap_ns": numbers(priced.gap),
        "launch_ns": nullable(priced.launch, priced.launch < 0, pa.int64()),
        "bound": text_column(costs.bound[index], BOUNDS),
        "unexplained_s": nullable(priced.dur / 1e9 - costs.expected_s[index], unknown, pa.float64()),
        "flag": text_column(_flags(priced, hardware, touched), FLAGS),
        "provenance": text_column(costs.word[index], costs.words),
    }
    return pa.Table.from_arrays(
        [_chunked(columns[f.name]).cast(f.type) for f in ATTRIBUTION_SCHEMA], schema=ATTRIBUTION_SCHEMA
    )


def _chunked(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


__all__ = [
    "ATTRIBUTION_COLUMNS", "ATTRIBUTION_SCHEMA", "ATTRIBUTION_VERSION", "Attribution", "attribute", "check_attribution",
    "price_run",
]  # fmt: skip
