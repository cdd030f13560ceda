"""What an attribution gives: a table aligned with the run's ops, the columns of it, and a summary."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from moetrace import markup
from moetrace.errors import RunError
from moetrace.files import table_facts, write_parquet, write_whole
from moetrace.given import columns_of, misfit
from moetrace.run import TEXT, Run
from moetrace.units import percent, seconds

if TYPE_CHECKING:
    import pandas as pd

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
    ("exposed_ns", pa.int64(), "what the op adds to the busy time of its device in its step, ns: its duration less what "
     "overlaps earlier ops"),
    ("gap_ns", pa.int64(), "idle time of the device right before the op, ns"),
    ("launch_ns", pa.int64(), "part of gap_ns in which the host had not launched the op yet, ns; null: launch not recorded"),
    ("memory_s", pa.float64(), "seconds for its bytes at the machine's effective bandwidth; null: work not known"),
    ("compute_s", pa.float64(), "seconds for its FLOPs at the machine's effective peak; null: work not known"),
    ("network_s", pa.float64(), "seconds for its messages; null: work not known"),
    ("fixed_s", pa.float64(), "seconds of fixed cost: launch, per-expert and latency terms; null: work not known"),
    ("expected_s", pa.float64(), "what the law expects at the stated routing; parts may overlap; null: work not known"),
    ("lower_bound_s", pa.float64(), "bytes certainly touched and FLOPs at datasheet peaks; null: work not known"),
    ("error", pa.float64(), "the 80 % interval of expected_s is / and x (1 + error); null: work not known"),
    ("bound", TEXT, "the largest part: memory, compute, network or fixed; null: work not known"),
    ("unexplained_s", pa.float64(), "dur_ns less expected_s, in seconds; null: work not known"),
    ("flag", TEXT, "cache-resident: shorter than its lower bound, which is that of its bytes, and these fit the last-level "
     "cache; suspect: shorter than it otherwise; null: neither"),
    ("provenance", TEXT, "where the law's coefficients for this op come from; null: work not known"),
)  # fmt: skip
ATTRIBUTION_SCHEMA = pa.schema([pa.field(n, t, metadata={"doc": d}) for n, t, d in ATTRIBUTION_COLUMNS])


@dataclass(frozen=True, slots=True)
class Attribution:
    """The attribution of one run on one machine: a table aligned with the run's ops, and a JSON-able summary."""

    hardware: str
    summary: Mapping[str, Any]
    rows: pa.Table | IO[bytes]  # the table, or a file of it without a name where the run is long

    def __repr__(self) -> str:
        said = self.summary["coverage"]
        return f"<Attribution on {self.hardware}: {percent(said['named_share'])} of the time named; .summary, .table>"

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

    def parts(self, columns: Sequence[str] | str | None = None) -> Iterator[pa.Table]:
        """The table, or some columns of it, in the parts in which the run comes (`Run.parts`)."""
        names = columns_of(columns, ATTRIBUTION_SCHEMA.names, RunError)
        if isinstance(self.rows, pa.Table):
            yield self.rows.select(names) if names else self.rows
            return
        self.rows.seek(0)
        file = pq.ParquetFile(self.rows)
        for i in range(file.num_row_groups):
            yield file.read_row_group(i, columns=names)

    def to_pandas(self, columns: Sequence[str] | str | None = None) -> pd.DataFrame:
        """The table, or some columns of it, as a DataFrame: a row per op of the run, in its order."""
        frame: pd.DataFrame = pa.concat_tables(self.parts(columns)).to_pandas()
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as Parquet, whole or not at all."""
        rows = self.rows
        if isinstance(rows, pa.Table):
            write_parquet(rows, Path(path), file_facts(self.hardware))
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


def check_attribution(given: object, run: Run | None = None) -> None:
    """Raises RunError where a caller gave something else in the place of an Attribution, or one of another run than `run`."""
    if not isinstance(given, Attribution):
        raise RunError(misfit(given, "Attribution", "moetrace.attribute makes one of a run"))
    if run is not None and (rows := sum(part.num_rows for part in given.parts(["bound"]))) != run.num_rows:
        raise RunError(f"the attribution is of another run: it has {rows:,} ops, the run {run.num_rows:,}")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


def file_facts(hardware: str) -> dict[str, str]:
    """What the Parquet file of an attribution says of itself."""
    return {**table_facts("attribution", ATTRIBUTION_VERSION), "moetrace.hardware": hardware}
