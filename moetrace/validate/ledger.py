"""The ledger as a table, and its summary: errors by source, model and hardware, and why rows have no prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from moetrace.calibrate.interval import coverage
from moetrace.machines.gpu import decade_of
from moetrace.validate.entry import NOT_SIMULATED, PREDICTED, STATEMENTS, Entry
from moetrace.validate.figure import shipped

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "moetrace.ledger/1"
_TEXT, _NUMBER = pa.string(), pa.float64()
LEDGER_VERSION = 1
LEDGER_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("id", _TEXT, "id of the figure, or of the first of the two that a ratio is made of"),
    ("kind", _TEXT, "what made the figure: the letters of its id"),
    ("source", _TEXT, "paper, page or file that it stands in"),
    ("model", _TEXT, "model; empty: the source does not say"),
    ("hardware", _TEXT, "profile that was simulated, or the source's word where none was"),
    ("setting", _TEXT, "what `moetrace simulate` was asked, or the op; empty: not simulated"),
    ("metric", _TEXT, "what was measured"),
    ("unit", _TEXT, "unit of measured, predicted, low and high; `ratio` of what is made of two figures"),
    ("printed", _TEXT, "the value as the source has it; empty for what is made of two"),
    ("measured", _NUMBER, "the value as a number, in `unit`; null: a statement without one"),
    ("predicted", _NUMBER, "what moetrace predicts, in `unit`; null: not simulated"),
    ("low", _NUMBER, "low end of the 80 % interval, in `unit`; null: no interval is worked out"),
    ("high", _NUMBER, "high end of the 80 % interval, in `unit`; null: no interval is worked out"),
    ("error", _NUMBER, "predicted / measured - 1; null: one of them is missing"),
    (
        "within",
        pa.bool_(),
        "whether the interval holds what was measured; null: no interval, or nothing measured",
    ),
    ("verdict", _TEXT, "predicted, reproduced, partly, contradicted, carried or not simulated"),
    ("note", _TEXT, "marks of the source, what was taken where it says nothing, or why it is not simulated"),
    ("family", _TEXT, "op family of a measured op; null: no measured op"),
    ("tokens", _NUMBER, "tokens of a measured op; null: no measured op, or it has none"),
    (
        "lower_bound",
        _NUMBER,
        "what no correct measurement of the op can beat, in `unit`; null: no measured op",
    ),
    ("warm", pa.bool_(), "whether the bytes of the op fit the last-level cache; null: no measured op"),
    ("beaten", pa.bool_(), "whether what was measured beats the lower bound; null: no measured op"),
)
LEDGER_SCHEMA = pa.schema([(name, kind) for name, kind, _ in LEDGER_COLUMNS])
GROUPS = ("source", "model", "hardware")
RATIO = "ratio"  # the unit of what is made of two figures
# Rows of a source that tells nothing of this are left out of the errors: they are queue-bound or outliers by its own account.
MARKS = ("QUEUED", "NON-MONOTONE")


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """The entries as a table with LEDGER_SCHEMA."""
    return pa.Table.from_pylist([_row(entry) for entry in entries], schema=LEDGER_SCHEMA)


def _row(entry: Entry) -> dict[str, Any]:
    f, e = entry.figure, entry.estimate
    marked = [mark for mark in MARKS if mark in f.other_knob]
    derived = entry.metric != f.metric
    return {
        "id": f.id,
        "kind": f.kind,
        "source": f.source,
        "model": f.model,
        "hardware": (e.hardware if e else "") or f.hw,
        "setting": e.setting if e else "",
        "metric": entry.metric,
        "unit": entry.unit or (RATIO if derived else f.unit),
        "printed": "" if derived else f.value,
        "measured": entry.measured,
        "predicted": e.value if e else None,
        "low": e.low if e else None,
        "high": e.high if e else None,
        "error": entry.error,
        "within": entry.within,
        "verdict": entry.verdict,
        "note": "; ".join(t for t in (*(f"marked {m} by its source" for m in marked), entry.note) if t),
    }


def summary(ledger: pa.Table) -> dict[str, Any]:
    """A JSON-able summary (schema ``moetrace.ledger/1``): `groups` by source, model and hardware; `reasons`.

    Rows of one's own are a source beside the shipped ones of their kind.
    """
    rows = ledger.select(
        ["id", "model", "hardware", "kind", "source", "unit", "error", "within", "verdict", "note"]
    )
    rows = rows.to_pandas()
    rows["marked"] = rows["note"].str.startswith("marked ")
    ours = {figure.id for figure in shipped()}
    mine = ~rows["id"].isin(ours)
    mine &= rows["kind"].isin(set(rows["kind"][~mine]))
    kind = rows["kind"] + np.where(mine, ", yours", "")
    title = rows.groupby(kind)["source"].agg(_title)
    ratio = np.where(rows["unit"] == RATIO, ", as ratios", "")
    rows["source"] = kind + ": " + kind.map(title) + ratio
    groups = {
        name: [_group(str(key), part) for key, part in rows.groupby(name, sort=True)] for name in GROUPS
    }
    missing = rows[rows["verdict"] == NOT_SIMULATED]
    reasons = Counter(missing["note"].tolist())
    return {
        "schema": SCHEMA,
        "all": _group("all", rows),
        "groups": groups,
        "reasons": [{"rows": count, "why": why} for why, count in reasons.most_common()],
        "intervals": _intervals(ledger),
        "beaten": _beaten(ledger),
    }


def _title(sources: pd.Series[str]) -> str:
    """What the rows of one kind stand in: the first of its papers and pages, and how many more there are."""
    found = sources.unique()
    return str(found[0]) + (f" and {len(found) - 1} more" if len(found) > 1 else "")


def _intervals(ledger: pa.Table) -> list[dict[str, Any]]:
    """Whether the 80 % intervals hold, by op family and decade of tokens, of the measured ops that are not marked."""
    rows = ledger.select(["family", "tokens", "predicted", "high", "error", "verdict", "note"]).to_pandas()
    rows = rows[
        (rows["verdict"] == PREDICTED) & ~rows["note"].str.startswith("marked ") & (rows["family"] != "")
    ]
    out = []
    for family, part in rows[rows["family"].notna()].groupby("family", sort=True):
        stated = part["high"].to_numpy() / part["predicted"].to_numpy() - 1.0
        decade = decade_of(part["tokens"].to_numpy(dtype=float))
        for one in coverage(decade, np.log1p(part["error"].to_numpy()), stated):
            out.append({"family": str(family), **asdict(one)})
    return out


def _beaten(ledger: pa.Table) -> list[dict[str, Any]]:
    """The rows that beat a lower bound they cannot beat, by family, machine and cause; marked ones are left out."""
    rows = ledger.select(
        ["family", "hardware", "source", "measured", "lower_bound", "beaten", "note"]
    ).to_pandas()
    rows = rows[(rows["beaten"] == True) & ~rows["note"].str.startswith("marked ")]  # noqa: E712, as it may be null
    rows = rows.assign(ratio=rows["measured"] / rows["lower_bound"])
    groups = rows.groupby(["source", "hardware", "family", "note"], sort=True)
    return [
        {
            "source": s,
            "hardware": h,
            "family": f,
            "rows": len(part),
            "least": float(part["ratio"].min()),
            "why": note,
        }
        for (s, h, f, note), part in groups
    ]


def _group(name: str, rows: Any) -> dict[str, Any]:
    good = rows[(rows["verdict"] == PREDICTED) & ~rows["marked"]]
    error = good["error"].to_numpy(dtype=float)
    within = good["within"].dropna().to_numpy(dtype=bool)
    verdicts = rows["verdict"].value_counts()
    return {
        "name": name,
        "rows": len(rows),
        "predicted": int((rows["verdict"] == PREDICTED).sum()),
        "marked": int(rows["marked"].sum()),
        "mean_error": float(np.abs(error).mean()) if error.size else None,
        "median_error": float(np.median(np.abs(error))) if error.size else None,
        "bias": float(np.median(error)) if error.size else None,
        "within": float(within.mean()) if within.size else None,
        **{word: int(verdicts.get(word, 0)) for word in (*STATEMENTS, "carried")},
        "not_simulated": int(verdicts.get(NOT_SIMULATED, 0)),
    }
