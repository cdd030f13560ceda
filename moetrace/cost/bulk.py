"""The costs of a table of ops: a million rows a second, in chunks that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace import ops
from moetrace.cost.anchors import POOLED, Anchors, anchored, read_anchors
from moetrace.cost.bounds import BoolArray, cache_warm, fits_memory, interval
from moetrace.cost.price import PriceContext, price
from moetrace.cost.reading import batches
from moetrace.cost.table import OpTable, columns_of, read_ops
from moetrace.engines import engine_among
from moetrace.errors import ScenarioError, unknown
from moetrace.files import table_facts, write_whole
from moetrace.hardware import ANY_ENGINE, ENGINES, Hardware, load_hardware
from moetrace.machines.forms import Cache
from moetrace.model import ModelSpec, load_model
from moetrace.op import BOUNDS, PARTS, Costs, OpColumns
from moetrace.run import TEXT, nullable, text_column

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]
TableLike: TypeAlias = "pa.Table | pd.DataFrame | Mapping[str, Any] | Path | str"
TIMES = ("time_s", "low_s", "high_s")
_BAD = "null: the row has a problem"
# name, type, meaning: what is added to the columns that came.
COST_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("time_s", pa.float64(), f"expected seconds; {_BAD}"),
    ("low_s", pa.float64(), f"low end of the 80 % interval; {_BAD}"),
    ("high_s", pa.float64(), f"high end of the 80 % interval; {_BAD}"),
    ("memory_s", pa.float64(), f"seconds for its bytes; parts may overlap; {_BAD}"),
    ("compute_s", pa.float64(), f"seconds for its FLOPs; {_BAD}"),
    ("network_s", pa.float64(), f"seconds for its messages; {_BAD}"),
    ("fixed_s", pa.float64(), f"seconds of launch, per-expert and latency terms; {_BAD}"),
    ("lower_bound_s", pa.float64(), f"what no correct measurement can beat, by the datasheet's rates; {_BAD}"),
    ("bound", TEXT, f"the largest part: memory, compute, network or fixed; {_BAD}"),
    ("provenance", TEXT, f"where the coefficients come from, and what routing was taken; {_BAD}"),
    ("anchor", pa.int64(), "with --anchor alone: row of the anchor table that it is relative to, from 1; null: none serves"),
    ("problem", TEXT, "with --keep-going alone: what is wrong with the row; null: nothing"),
)  # fmt: skip
MADE = tuple(name for name, _, _ in COST_COLUMNS)
_RUN_ONLY = frozenset({"op", "op_source", "dur_ns"})  # columns by which a RUN's ops are known
_CHUNK = 1 << 14  # rows priced at once: their columns together fit a core's cache
_NAMED = 5  # bad rows that a failure names


@dataclass(frozen=True, slots=True)
class Pricing:
    """How a table is priced: the machine and what the law must know beside the ops."""

    hw: Hardware
    context: PriceContext
    keep_going: bool = False
    anchors: Anchors | None = None


def cost(
    table: TableLike,
    hw: Hardware | str,
    *,
    engine: str = ANY_ENGINE,
    cache: Cache = "warm",
    keep_going: bool = False,
    anchor: TableLike | None = None,
    model: ModelSpec | str | None = None,
    placement: str = "spread",
) -> pa.Table:
    """The table with the cost of each row's op: seconds with an 80 % interval, its parts, its lower bound and provenance.

    `table` is a pyarrow Table, a pandas DataFrame, a mapping of columns, or a Parquet, CSV or JSON-lines file; its columns
    are those of docs/cost.md, and others are passed through. `engine` chooses among coefficients fitted apart; `cache` is
    ``warm`` for an op that is repeated alone, as micro-benchmarks do, ``cold`` for one among others. Raises ScenarioError
    that names the first bad rows; with `keep_going` these have a `problem` and no times. `anchor` is a table of measured ops
    (with `seconds`), relative to which ops of their shapes are predicted: see `anchors`. `model` and `placement` are for wafers
    (see `context_for`).
    """
    hw = load_hardware(hw)
    context = context_for(hw, engine, cache, model, placement)
    measured = None if anchor is None else read_anchors(anchor, hw, context)
    how = Pricing(hw, context, keep_going, measured)
    parts, at = [], 0
    for batch in batches(table):
        parts.append(_priced(batch, how, at)[0])
        at += batch.num_rows
    return pa.concat_tables(parts).unify_dictionaries()


def context_for(
    hw: Hardware, engine: str, cache: Cache, model: ModelSpec | str | Path | None, placement: str
) -> PriceContext:
    """What the machine's law must know beside the ops of a table.

    On a wafer an op runs on the cores that hold its weights, so that its time depends on the `model` (a name or config.json)
    whose layers share them, and on the `placement` of experts. Raises ScenarioError on a wafer without
    a model, or elsewhere with one, and for an engine or cache that there is not.
    """
    engine = _checked_engine(hw, engine)
    if cache not in get_args(Cache):
        raise ScenarioError(unknown("value of cache", str(cache), get_args(Cache)))
    plain = PriceContext(engine=engine, cache=cache)
    if hw.law != "wafer":
        if model is not None or placement != plain.placement:
            raise ScenarioError(
                f"model and placement say where a wafer keeps its weights; {hw.name} is none: leave them out"
            )
        return plain
    if model is None:
        raise ScenarioError(
            f"{hw.name}: an op runs on the cores that hold its weights, and how many these are follows from the model: name it "
            "(--model NAME or config.json; model= in Python)"
        )
    return plain.of_model(load_model(model), placement)


def _checked_engine(hw: Hardware, engine: str) -> str:
    """The engine by its key. Raises ScenarioError for one that nobody knows: its ops would be priced as of one not measured."""
    known = {ANY_ENGINE, *ENGINES, *(key.partition("@")[2] for key in hw.families)} - {""}
    name = engine_among(known, "engine", str(engine))
    if name != ANY_ENGINE and hw.device_class != "gpu":
        raise ScenarioError(f"engine={engine}: {hw.name} is not a GPU, and its law knows no engines")
    return name


@dataclass(slots=True)
class Tally:
    """What pricing a file came to: rows, rows that could not be priced, seconds that routing took."""

    rows: int = 0
    bad: int = 0
    routing_s: float = 0.0


def cost_file(source: Path, output: Path, how: Pricing, progress: Callable[[float], None]) -> Tally:
    """Writes what `cost` gives of a file as Parquet, batch by batch. Raises as `cost` does, and then leaves no file."""
    tally = Tally()

    def write(part: Path) -> None:
        writer: pq.ParquetWriter | None = None
        try:
            for batch in batches(source, progress):
                priced, routing_s = _priced(batch, how, tally.rows)
                about = priced.schema.with_metadata(
                    {**(priced.schema.metadata or {}), **table_facts("cost", 1)}
                )
                writer = writer or pq.ParquetWriter(part, about, compression="zstd")
                writer.write_table(priced.cast(writer.schema))
                tally.rows += batch.num_rows
                tally.bad += priced.column("time_s").null_count
                tally.routing_s += routing_s
        finally:
            if writer is not None:
                writer.close()

    write_whole(output, write)
    return tally


def _of_run(batch: pa.Table) -> pa.Table:
    """The table; of a RUN's ops, what says of the run's own times whose they are, named so: cost has a column of that name."""
    if not _RUN_ONLY.issubset(batch.column_names):
        return batch
    own = {name: f"run_{name}" for name in ("error", "provenance")}
    return batch.rename_columns([own.get(name, name) for name in batch.column_names])


def _priced(batch: pa.Table, how: Pricing, before: int) -> tuple[pa.Table, float]:
    """One batch with its costs, and the seconds that its routing took; `before` rows lie ahead of it, for messages."""
    columns_of(batch.column_names)
    batch = _of_run(batch)
    taken = [name for name in MADE if name in batch.column_names]
    if taken:
        raise ScenarioError(
            f"the table has a column {taken[0]} already: rename it, cost writes one of that name"
        )
    read = read_ops(batch, how.context.engine)
    starts = range(0, len(read.ops), _CHUNK)
    parts = [_costs(read.ops.take(slice(at, at + _CHUNK)), how) for at in starts]
    costs = _joined([part for part, _, _ in parts])
    warm, fits = (np.concatenate([p[i] for p in parts]) if parts else np.zeros(0, bool) for i in (1, 2))
    if not fits.all():
        read = read.marked(~fits, f"its bytes exceed the memory of {how.hw.name}")
    words, word = _provenance(costs, read)
    good = (read.problem == 0) & ~np.isnan(costs.expected_s)
    problems, problem = _problems(costs, read, good)
    if not how.keep_going and not good.all():
        _refuse(problems, problem, before)
    seconds, error = costs.expected_s, costs.error
    used = np.full(len(read.ops), -1, dtype=np.int64)
    if how.anchors is not None:
        seconds, error, used = anchored(costs, read, how.anchors, how.hw)
        ways = ("", ", from an anchor", ", by the anchors of its kind together")
        word = word + len(words) * np.where(used >= 0, 1, np.where(used == POOLED, 2, 0))
        words = [text + way for way in ways for text in words]
    low, high = interval(costs, warm, seconds, error)
    columns = {
        "time_s": seconds,
        "low_s": low,
        "high_s": high,
        **{part: getattr(costs, part) for part in PARTS},
        "lower_bound_s": costs.lower_bound_s,
    }
    out = batch
    for name, values in columns.items():
        out = out.append_column(
            name, pa.array(values) if good.all() else nullable(values, ~good, pa.float64())
        )
    out = out.append_column("bound", text_column(np.where(good, costs.bound, -1), BOUNDS))
    out = out.append_column("provenance", text_column(np.where(good, word, -1), words))
    if how.anchors is not None:
        out = out.append_column("anchor", nullable(used + 1, (used < 0) | ~good, pa.int64()))
    if how.keep_going:
        out = out.append_column("problem", text_column(np.where(good, -1, problem), problems))
    return out, read.routing_s


def _costs(some: OpColumns, how: Pricing) -> tuple[Costs, BoolArray, BoolArray]:
    """The costs of ops, which of them a cache may hold, and which the memory holds."""
    works = ops.works(some)
    return (
        price(works, how.hw, context=how.context), cache_warm(works, how.hw), fits_memory(works, how.hw)
    )  # fmt: skip


def _joined(parts: list[Costs]) -> Costs:
    """Costs of consecutive rows as one."""
    words = tuple(dict.fromkeys(word for part in parts for word in part.words))
    place = [np.array([words.index(word) for word in part.words], dtype=np.int64) for part in parts]
    word = [at[part.word] for at, part in zip(place, parts, strict=True)]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0)
        for name in (*PARTS, "expected_s", "lower_bound_s", "error")
    }
    return Costs(**columns, words=words, word=np.concatenate(word) if word else np.zeros(0, dtype=np.int64))


def _provenance(costs: Costs, read: OpTable) -> tuple[list[str], IntArray]:
    """The texts of where a time comes from, and each row's: the law's word, and for MoE ops what its routing was."""
    pairs = costs.word * len(read.routings) + read.routing
    used = np.flatnonzero(np.bincount(pairs, minlength=max(1, len(costs.words) * len(read.routings))))
    place = np.zeros(max(1, int(used.max(initial=0)) + 1), dtype=np.int64)
    place[used] = np.arange(used.size)
    said = []
    for pair in used.tolist():
        word, routing = divmod(pair, len(read.routings))
        text = read.routings[routing]
        said.append(costs.words[word] + (f", {text} routing" if text else ""))
    return said, place[pairs] if pairs.size else pairs


def _problems(costs: Costs, read: OpTable, good: BoolArray) -> tuple[list[str], IntArray]:
    """What is wrong with each row that has no time: what its columns say, else why the law has none."""
    words = [*read.problems, *costs.words]
    return words, np.where(good, 0, np.where(read.problem > 0, read.problem, len(read.problems) + costs.word))


def _refuse(problems: list[str], problem: IntArray, before: int) -> None:
    bad = np.flatnonzero(problem)
    first: dict[int, int] = {}
    for row in bad.tolist():
        first.setdefault(int(problem[row]), row)
        if len(first) == _NAMED:
            break
    named = "; ".join(f"row {before + row + 1}: {problems[code]}" for code, row in first.items())
    raise ScenarioError(
        f"{bad.size} bad row(s): {named}. Mend them, or let them be marked in a column problem (--keep-going)"
    )
