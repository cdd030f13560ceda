"""Run x Hardware -> where the time goes: what each op would need, what bounds it, what stays unexplained, what idles.

Attribution prices the ops of a run on a machine with the same law that replay uses; facts (the Run) stay untouched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace import markup, ops
from moetrace.attribute.summary import FLAGS, Summary
from moetrace.cost import PriceContext, price
from moetrace.errors import ProfileError
from moetrace.files import table_facts, write_parquet, write_whole
from moetrace.hardware import Hardware, load_hardware
from moetrace.op import BOUNDS, PARTS, Costs, Op
from moetrace.parse.nesting import exposed_by
from moetrace.parse.summary import step_and_device
from moetrace.run import TEXT, Run, TableParts, nullable, numbers, text_column
from moetrace.units import percent, seconds

ATTRIBUTION_VERSION = 1

# name, type, meaning. Rows are those of ops.parquet, in the same order.
ATTRIBUTION_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("rank", pa.int32(), "as in ops.parquet"),
    ("step", pa.int32(), "as in ops.parquet; null: outside of every step"),
    ("phase", TEXT, "as in ops.parquet; null: as there"),
    ("layer", pa.int32(), "as in ops.parquet; null: as there"),
    ("family", TEXT, "as in ops.parquet"),
    ("kind", TEXT, "as in ops.parquet"),
    ("op", TEXT, "as in ops.parquet"),
    ("kernel", TEXT, "as in ops.parquet"),
    ("dur_ns", pa.int64(), "measured (or predicted) duration, ns"),
    (
        "exposed_ns",
        pa.int64(),
        "what the op adds to the busy time of its device in its step, ns: its duration less what overlaps earlier ops",
    ),
    ("gap_ns", pa.int64(), "idle time of the device right before the op, ns"),
    (
        "launch_ns",
        pa.int64(),
        "part of gap_ns in which the host had not launched the op yet, ns; null: launch not recorded",
    ),
    (
        "memory_s",
        pa.float64(),
        "seconds for its bytes at the machine's effective bandwidth; null: work not known",
    ),
    (
        "compute_s",
        pa.float64(),
        "seconds for its FLOPs at the machine's effective peak; null: work not known",
    ),
    ("network_s", pa.float64(), "seconds for its messages; null: work not known"),
    (
        "fixed_s",
        pa.float64(),
        "seconds of fixed cost: launch, per-expert and latency terms; null: work not known",
    ),
    (
        "expected_s",
        pa.float64(),
        "what the law expects at the stated routing; parts may overlap; null: work not known",
    ),
    (
        "lower_bound_s",
        pa.float64(),
        "bytes certainly touched and FLOPs at datasheet peaks; null: work not known",
    ),
    ("error", pa.float64(), "the 80 % interval of expected_s is / and x (1 + error); null: work not known"),
    ("bound", TEXT, "the largest part: memory, compute, network or fixed; null: work not known"),
    ("unexplained_s", pa.float64(), "dur_ns less expected_s, in seconds; null: work not known"),
    (
        "flag",
        TEXT,
        "cache-resident: shorter than its lower bound, which is that of its bytes, and these fit the last-level cache; suspect: shorter than it otherwise; null: neither",
    ),
    ("provenance", TEXT, "where the law's coefficients for this op come from; null: work not known"),
)
ATTRIBUTION_SCHEMA = pa.schema([pa.field(n, t, metadata={"doc": d}) for n, t, d in ATTRIBUTION_COLUMNS])

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Attribution:
    """The attribution of one run on one machine: a table aligned with the run's ops, and a JSON-able summary."""

    hardware: str
    summary: Mapping[str, Any]
    rows: pa.Table | IO[bytes]  # the table, or a file of it without a name where the run is long

    def _repr_html_(self) -> str:
        """What a notebook shows: the op families of all steps, and what bounds them."""
        rows = [
            (
                row["family"],
                seconds(row["busy_s"]),
                percent(row["share"]),
                percent(row["halving_saves_share"]),
            )
            for row in self.summary["families"]
        ]
        return markup.table(
            f"Where the time of all steps goes, held against {self.hardware}",
            ("family", "time", "share", "saves if halved"),
            rows,
        )

    @property
    def table(self) -> pa.Table:
        """One row per op of the run."""
        if isinstance(self.rows, pa.Table):
            return self.rows
        self.rows.seek(0)
        return pq.read_table(self.rows)

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The table, or some columns of it, in the parts in which the run comes (`Run.parts`)."""
        names = list(columns) if columns else None
        if isinstance(self.rows, pa.Table):
            yield self.rows.select(names) if names else self.rows
            return
        self.rows.seek(0)
        file = pq.ParquetFile(self.rows)
        for i in range(file.num_row_groups):
            yield file.read_row_group(i, columns=names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as Parquet, whole or not at all."""
        rows = self.rows
        if isinstance(rows, pa.Table):
            write_parquet(rows, Path(path), _facts(self.hardware))
            return
        rows.seek(0)

        def copy(part: Path) -> None:
            with part.open("wb") as out:
                shutil.copyfileobj(rows, out, 1 << 20)

        write_whole(Path(path), copy)

    def is_in(self, path: Path) -> bool:
        """Whether a file holds this table."""
        try:
            if isinstance(self.rows, pa.Table):
                return bool(pq.read_table(path).equals(self.rows))
            self.rows.seek(0)
            with path.open("rb") as other:
                return all(other.read(1 << 20) == block for block in _blocks(self.rows)) and not other.read(1)
        except (pa.ArrowInvalid, OSError):
            return False


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


def _facts(hardware: str) -> dict[str, str]:
    return {**table_facts("attribution", ATTRIBUTION_VERSION), "moetrace.hardware": hardware}


@dataclass(frozen=True, slots=True)
class _Priced:
    """Per row: exposed time and gaps (ns), the ops' costs spread over the rows, and what halving each resource leaves."""

    dur: IntArray
    exposed: IntArray
    gap: IntArray
    launch: IntArray
    index: IntArray
    found: tuple[Op, ...]
    costs: Costs
    certain: FloatArray  # the part of an op's lower bound that no cache can take away: compute and network
    halved: Mapping[str, FloatArray]  # resource -> share of an op's expected time that halving it saves


def attribute(run: Run, hardware: Hardware | str | None = None) -> Attribution:
    """Where the time of a run goes, held against a machine or the name of one; by default the one it ran on.

    Raises ProfileError if there is no such machine, or the run does not say its own.
    """
    machine = hardware or run.meta.hardware
    if machine is None:
        raise ProfileError(
            "the run does not say which machine it ran on: name one with --hw (see 'moetrace profiles')"
        )
    hardware = load_hardware(machine)
    latency = min(
        (_latency(part) for part in run.parts(_TIMES)),
        default=None,
        key=lambda ns: _NEVER if ns is None else ns,
    )
    summary, tables = (
        Summary(run),
        TableParts(ATTRIBUTION_SCHEMA.with_metadata(_facts(hardware.name)), run.new_file),
    )
    for part in run.parts(_READ):
        _add(part, hardware, latency, summary, tables)
    return Attribution(hardware.name, summary.result(hardware), tables.finish())


def _add(part: Run, hardware: Hardware, latency: int | None, summary: Summary, tables: TableParts) -> None:
    """A part of the run. On its own, so that nothing of the last part is held while the summary is made."""
    priced = _price(part, hardware, latency)
    table = _table(part, priced, hardware, ops.works(priced.found)["bytes_min"])
    tables.write(table)
    halved, index = priced.halved, priced.index
    del priced
    summary.add(part, table, halved, index)


def _context(run: Run) -> PriceContext:
    """What a law must know of the whole: what a predicted run was priced with, else the model's size and depth."""
    model, stored = run.meta.model, run.meta.facts.get("price_context")
    if isinstance(stored, Mapping) and stored.get("model_bytes"):
        return PriceContext(**{f.name: stored[f.name] for f in fields(PriceContext) if f.name in stored})
    return PriceContext(
        model_bytes=model.weight_bytes() if model else 0.0,
        layers=model.layers if model else 0,
    )


def price_run(run: Run, hardware: Hardware) -> tuple[IntArray, tuple[Op, ...], Costs]:
    """(index per row, distinct ops, their costs) of a run on a machine."""
    index, found = run.distinct_ops
    return index, found, price(ops.works(found), hardware, context=_context(run))


_NEVER = 1 << 62
# What of a run is read: of a long part, what is not takes as much as what is.
_READ = (
    *("rank", "device", "step", "phase", "layer", "family", "kind", "op", "kernel"),
    *("start_ns", "dur_ns", "launch_ns", "flops", "weight_bytes", "kv_bytes", "act_bytes"),
)
_TIMES = ("step", "device", "start_ns", "dur_ns", "launch_ns")


def _latency(run: Run) -> int | None:
    """The shortest time, in ns, from a launch's call to the start of an op that the device waited for; None: none did."""
    group, _ = step_and_device(run)
    start, dur, launch = run.numpy("start_ns"), run.numpy("dur_ns"), run.numpy("launch_ns")
    known = (launch >= 0) & (exposed_by(group, start, start + dur)[1] > 0)
    return int((start[known] - launch[known]).clip(min=0).min()) if known.any() else None


def _price(run: Run, hardware: Hardware, latency: int | None) -> _Priced:
    index, found, costs = price_run(run, hardware)
    group, _ = step_and_device(run)
    start, dur, launch = run.numpy("start_ns"), run.numpy("dur_ns"), run.numpy("launch_ns")
    exposed, gap = exposed_by(group, start, start + dur)
    uncached = replace(hardware, memory=replace(hardware.memory, bytes_per_s=float("inf")))
    return _Priced(
        dur, exposed, gap, _launch_wait(start, gap, launch, latency or 0), index, found, costs,
        price_run(run, uncached)[2].lower_bound_s,
        _at_most_half({name: _saving(run, twice, costs) for name, twice in _twice(hardware).items()}),
    )  # fmt: skip


def _at_most_half(savings: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Savings that come to at most half of an op's time together, as all its resources twice as good would save.

    Where a kernel is the faster of two ways (attention that cuts the KV cache or not), one resource more may take it from
    one way to the other, and the savings one by one would come to up to 52 %.
    """
    total = sum(savings.values(), np.zeros(1))
    share = np.minimum(1.0, np.divide(0.5, total, out=np.ones_like(total), where=total > 0))
    return {name: saved * share for name, saved in savings.items()}


def _twice(hardware: Hardware) -> dict[str, Hardware]:
    """The machine with each resource made twice as good."""
    faster = {
        "memory bandwidth": replace(
            hardware, memory=replace(hardware.memory, bytes_per_s=2 * hardware.memory.bytes_per_s)
        ),
        "compute peak": replace(hardware, peaks={k: 2 * v for k, v in hardware.peaks.items()}),
        "fixed cost per op": replace(
            hardware,
            families={k: f.with_fixed_times(0.5) for k, f in hardware.families.items()},
            wafer=hardware.wafer and hardware.wafer.with_fixed_times(0.5),
        ),
    }
    if hardware.wafer is not None:
        faster["fabric bandwidth"] = replace(
            hardware,
            wafer=replace(hardware.wafer, fabric_bytes_per_s=2 * hardware.wafer.fabric_bytes_per_s),
        )
    if hardware.link is not None:
        faster["network bandwidth"] = replace(
            hardware, link=replace(hardware.link, bytes_per_s=2 * hardware.link.bytes_per_s)
        )
    return faster


def _saving(run: Run, hardware: Hardware, costs: Costs) -> FloatArray:
    """Per distinct op: the share of its expected time that the better machine saves."""
    _, _, better = price_run(run, hardware)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(1.0 - better.expected_s / costs.expected_s)


def _launch_wait(start: IntArray, gap: IntArray, launch: IntArray, latency: int) -> IntArray:
    """Part of each gap in which the host had not launched the op: until its launch call, plus the shortest latency
    from call to start that the trace shows; -1 where the launch is not known."""
    waited = np.clip(launch + latency - (start - gap), 0, gap)
    return np.where(launch >= 0, waited, -1)


def _flags(priced: _Priced, hardware: Hardware, touched: FloatArray) -> IntArray:
    """Code of the flag per row; -1 for none. Zero-length records (clock resolution) are not judged.

    A cache explains only that memory was beaten: what beats its FLOPs or its messages too is suspect, however small.
    """
    seconds = priced.dur / 1e9
    below = np.nan_to_num(priced.costs.lower_bound_s)[priced.index] > seconds
    certain = np.nan_to_num(priced.certain)[priced.index] > seconds
    fits = touched[priced.index] <= hardware.memory.cache_bytes
    return np.where(below & (priced.dur > 0), np.where(fits & ~certain, 0, 1), -1)


def _table(run: Run, priced: _Priced, hardware: Hardware, touched: FloatArray) -> pa.Table:
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


__all__ = ["ATTRIBUTION_COLUMNS", "Attribution", "attribute", "price_run"]
