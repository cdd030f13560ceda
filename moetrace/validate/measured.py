"""A table of measured ops scored row by row: what `moetrace cost` predicts, warm, beside the column ``latency`` (ms).

`system` (or `hardware`) names the machine of each row, `aic_framework` (or `engine`) the engine whose coefficients are taken.
Rows whose `quality_flag` is not 0 are marked and left out of the errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moetrace.cost import cost
from moetrace.cost.reading import batches
from moetrace.errors import ScenarioError
from moetrace.hardware import ANY_ENGINE, profile_names
from moetrace.validate.entry import NOT_SIMULATED, PREDICTED
from moetrace.validate.ledger import LEDGER_SCHEMA

_ENGINES = ("vllm", "sglang", "trtllm")


def measured_table(path: Path) -> pa.Table:
    """The rows of a ledger for a Parquet file of measured ops. Raises ScenarioError if its columns do not say what they are."""
    return pa.concat_tables([_scored(batch, path) for batch in batches(path)])


def _scored(batch: pa.Table, path: Path) -> pa.Table:
    names = set(batch.column_names)
    machine = next((name for name in ("system", "hardware") if name in names), None)
    if "latency" not in names or machine is None:
        raise ScenarioError(
            f"{path}: expected a column latency (ms) and one of system, hardware beside the ops' dims"
        )
    rows = batch.select([machine]).to_pandas()
    rows["engine"] = _engines(batch)
    parts = [
        _group(batch.take(pa.array(at)), path, str(system).replace("_", "-"), str(engine))
        for (system, engine), at in rows.groupby([machine, "engine"]).indices.items()
    ]
    return pa.concat_tables(parts)


def _engines(batch: pa.Table) -> list[str]:
    name = next((n for n in ("engine", "aic_framework") if n in batch.column_names), None)
    texts = batch.column(name).to_pylist() if name else [None] * batch.num_rows
    return [text if text in _ENGINES else ANY_ENGINE for text in texts]


def _group(part: pa.Table, path: Path, system: str, engine: str) -> pa.Table:
    measured = part.column("latency").to_numpy().astype(float)
    flags = (
        part.column("quality_flag").to_numpy()
        if "quality_flag" in part.column_names
        else np.zeros(len(measured))
    )
    if system in profile_names():
        priced = cost(part, system, engine=engine, keep_going=True)
        predicted, low, high = (
            1e3 * priced.column(name).to_numpy().astype(float) for name in ("time_s", "low_s", "high_s")
        )
        why = pd.Series(priced.column("problem").to_pylist(), dtype=object)
    else:
        predicted = low = high = np.full(len(measured), np.nan)
        why = pd.Series([f"there is no profile of {system!r}"] * len(measured))
    good = np.isfinite(predicted)
    marked = np.where(flags != 0, "marked by its source: quality_flag", "")
    note = np.where(good, marked, why.fillna("").to_numpy())
    columns: dict[str, Any] = {
        "id": [path.stem] * len(measured),
        "kind": path.stem,
        "source": f"{path.name}, {engine}",
        "model": "",
        "hardware": system,
        "setting": _texts(part),
        "metric": "latency",
        "unit": "ms",
        "printed": "",
        "measured": measured,
        "predicted": predicted,
        "low": low,
        "high": high,
        "error": predicted / measured - 1,
        "within": np.where(good, (low <= measured) & (measured <= high), None),
        "verdict": np.where(good, PREDICTED, NOT_SIMULATED),
        "note": note,
    }
    return pa.Table.from_pandas(pd.DataFrame(columns), schema=LEDGER_SCHEMA, preserve_index=False)


def _texts(part: pa.Table) -> list[str]:
    """What tells a row's op, kernel and dims, in words."""
    telling = [n for n in part.column_names if n not in ("latency", "system", "quality_flag", "device")]
    frame = part.select(telling).to_pandas()
    return [
        "; ".join(f"{n} {v}" for n, v in zip(telling, row, strict=True))
        for row in frame.itertuples(index=False)
    ]
