"""A table of measured ops scored row by row: what the law says of an op that is repeated alone, beside what was measured.

Public performance tables are read as `moetrace calibrate` reads them; any other table as `moetrace cost` does, with `latency`
(ms) or `seconds`, and `system` or `hardware`. Rows whose `quality_flag` is not 0 are marked and left out of the errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from moetrace import ops as work_of
from moetrace.calibrate.measured import SYSTEMS, family_of
from moetrace.calibrate.tables import read_public
from moetrace.cost import PriceContext, price
from moetrace.cost.bounds import beats_bound, cache_warm, interval
from moetrace.cost.reading import batches
from moetrace.cost.table import read_ops
from moetrace.engines import stated
from moetrace.errors import ScenarioError
from moetrace.hardware import ANY_ENGINE, ENGINES, load_hardware, profile_names
from moetrace.machines.gpu import tokens_of
from moetrace.op import FloatArray, OpColumns
from moetrace.validate.beaten import cause
from moetrace.validate.entry import NOT_SIMULATED, PREDICTED
from moetrace.validate.ledger import LEDGER_SCHEMA

_UNREAD = "its element type or its ranks are not known"


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a table of one machine and engine. `row` is their place in it; `why` what is wrong with a row, "" if nothing."""

    ops: OpColumns
    seconds: FloatArray
    row: npt.NDArray[np.int64]
    why: npt.NDArray[np.object_]
    system: str
    engine: str


def measured_table(path: Path) -> pa.Table:
    """The rows of a ledger for a Parquet file of measured ops. Raises ScenarioError if its columns do not say what they are."""
    return pa.concat_tables([_scored(batch, path) for batch in batches(path)])


def _scored(batch: pa.Table, path: Path) -> pa.Table:
    frame = batch.to_pandas()
    texts = _texts(frame)
    marked = (
        frame["quality_flag"].to_numpy() != 0 if "quality_flag" in frame else np.zeros(len(frame), dtype=bool)
    )
    done = np.zeros(len(frame), dtype=bool)
    out = []
    for part in _parts(batch, frame, path):
        done[part.row] = True
        out.append(_rows(part, path, texts[part.row], marked[part.row]))
    left = np.flatnonzero(~done)
    if left.size:
        system, nothing = _machines(frame, path)[left], np.full(left.size, np.nan)
        out.append(_ledger(path, texts[left], {"hardware": system, "measured": nothing, "note": _UNREAD}))
    return pa.concat_tables(out)


def _parts(batch: pa.Table, frame: pd.DataFrame, path: Path) -> Iterator[_Part]:
    systems = _machines(frame, path)
    found = read_public(frame, path)
    if found is not None:
        bad = np.zeros(len(found), dtype=bool)
        for values in found.ops.dims.values():
            bad |= values < 0
        why = np.where(bad, "a dim is negative", "").astype(object)
        for system, engine in sorted(set(zip(found.hardware.tolist(), found.engine.tolist(), strict=True))):
            at = np.flatnonzero((found.hardware == system) & (found.engine == engine))
            yield _Part(found.ops.take(at), found.seconds[at], found.row[at], why[at], system, engine)
        return
    seconds = _seconds(frame, path)
    named = next((n for n in ("engine", "aic_framework") if n in frame), None)
    engines = [_engine(e) for e in (frame[named] if named else [None] * len(frame))]
    pairs = list(zip(systems.tolist(), engines, strict=True))
    for system, engine in sorted(set(pairs)):
        at = np.flatnonzero([pair == (system, engine) for pair in pairs])
        read = read_ops(batch.take(pa.array(at)), engine)
        why = np.array(read.problems, dtype=object)[read.problem]
        yield _Part(read.ops, seconds[at], at, why, system, engine)


def _engine(said: object) -> str:
    """The engine of a row by its key, with its version where it says one; ``any`` where it is none that is told apart."""
    found = stated(said) if isinstance(said, str) else None
    return "@".join(filter(None, found)) if found and found[0] in ENGINES else ANY_ENGINE


def _machines(frame: pd.DataFrame, path: Path) -> npt.NDArray[np.object_]:
    column = next((name for name in ("system", "hardware") if name in frame), None)
    if column is None or (not {"latency", "seconds"} & set(frame) and "kernel_source" not in frame):
        raise ScenarioError(
            f"{path}: expected a column latency (ms) or seconds, and one of system, hardware beside the ops' dims"
        )
    return np.array([SYSTEMS.get(str(n), str(n).replace("_", "-")) for n in frame[column]], dtype=object)


def _seconds(frame: pd.DataFrame, path: Path) -> FloatArray:
    name = "seconds" if "seconds" in frame else "latency"
    try:
        return np.asarray(frame[name].to_numpy(dtype=np.float64) * (1.0 if name == "seconds" else 1e-3))
    except (KeyError, TypeError, ValueError) as error:
        raise ScenarioError(f"{path}: the column {name} has no times in it") from error


def _rows(part: _Part, path: Path, texts: npt.NDArray[np.object_], marked: npt.NDArray[np.bool_]) -> pa.Table:
    """The ledger's rows of ops of one machine and engine."""
    families = np.array(
        [family_of(op.kind) if op.kind in work_of.KINDS else "" for op in part.ops.types], dtype=object
    )
    said: dict[str, Any] = {
        "source": f"{path.name}, {part.engine}", "hardware": part.system, "measured": part.seconds * 1e3,
        "family": families[part.ops.code],
    }  # fmt: skip
    if part.system not in profile_names():
        return _ledger(path, texts, {**said, "note": f"there is no profile of {part.system!r}"})
    hw = load_hardware(part.system)
    works = work_of.works(part.ops)
    costs = price(works, hw, context=PriceContext(engine=part.engine, cache="warm"))
    good = np.isfinite(costs.expected_s) & (part.why == "") & np.isfinite(part.seconds) & (part.seconds > 0)
    warm = cache_warm(works, hw)
    beaten = good & beats_bound(costs, warm, part.seconds)
    why = np.where(part.why == "", np.array(costs.words, dtype=object)[costs.word], part.why)
    note = np.where(marked, "marked by its source: quality_flag", "").astype(object)
    engine = part.engine.partition("@")[0]
    note[beaten & ~marked] = [
        f"beats the lower bound: {cause(part.ops, engine, int(i))}" for i in np.flatnonzero(beaten & ~marked)
    ]
    low, high = (
        np.where(good, end * 1e3, np.nan) for end in interval(costs, warm, costs.expected_s, costs.error)
    )
    said |= {
        "predicted": np.where(good, costs.expected_s * 1e3, np.nan), "low": low, "high": high,
        "tokens": tokens_of(works), "lower_bound": np.where(good, costs.lower_bound_s * 1e3, np.nan),
        "warm": _if(good, warm), "beaten": _if(good, beaten),
        "note": np.where(good, note, np.where(why == "", "its time is not above 0", why)),
    }  # fmt: skip
    return _ledger(path, texts, said)


def _ledger(path: Path, texts: npt.NDArray[np.object_], said: dict[str, Any]) -> pa.Table:
    """A table with LEDGER_SCHEMA; what is not said is empty, and rows without a prediction are not simulated."""
    size = len(texts)
    nothing = np.full(size, np.nan)
    measured, predicted = said["measured"], said.get("predicted", nothing)
    low, high, good = said.get("low", nothing), said.get("high", nothing), np.isfinite(predicted)
    columns: dict[str, Any] = {
        "id": path.stem, "kind": path.stem, "source": path.name, "model": "", "setting": texts, "metric": "latency",
        "unit": "ms", "printed": "", "predicted": predicted, "low": low, "high": high, "error": predicted / measured - 1,
        "within": _if(good, (low <= measured) & (measured <= high)),
        "verdict": np.where(good, PREDICTED, NOT_SIMULATED), **said,
    }  # fmt: skip
    frame = pd.DataFrame({name: columns.get(name) for name in LEDGER_SCHEMA.names}, index=range(size))
    return pa.Table.from_pandas(frame, schema=LEDGER_SCHEMA, preserve_index=False)


def _if(good: npt.NDArray[np.bool_], values: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """The values where they are good, else None."""
    out = values.astype(object)
    out[~good] = None
    return out


def _texts(frame: pd.DataFrame) -> npt.NDArray[np.object_]:
    """What tells a row's op, kernel and dims, in words."""
    left_out = ("latency", "seconds", "system", "hardware", "quality_flag", "device")
    telling = [n for n in frame.columns if n not in left_out]
    texts = [
        "; ".join(f"{n} {v}" for n, v in zip(telling, row, strict=True))
        for row in frame[telling].itertuples(index=False)
    ]
    return np.array(texts, dtype=object)
