"""validate: published figures and measured tables -> a ledger of predictions and their errors, no row left out.

`published.csv` holds what was transcribed from papers and pages, each row with its source. Nothing is ever fitted to the
ledger as a whole; where a constant of moetrace was chosen on some of these figures, their rows say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from moetrace.errors import MoetraceError, ScenarioError
from moetrace.given import several
from moetrace.validate import figure
from moetrace.validate.entry import Entry, refused
from moetrace.validate.ledger import LEDGER_COLUMNS, LEDGER_SCHEMA, LEDGER_VERSION, summary, table_of
from moetrace.validate.measured import measured_table
from moetrace.validate.sources import SOURCES

__all__ = ["LEDGER_COLUMNS", "LEDGER_SCHEMA", "LEDGER_VERSION", "entries", "summary", "validate"]


def validate(
    on: Sequence[Path | str] | Path | str = (), progress: Callable[[float], None] = lambda share: None
) -> pa.Table:
    """The ledger: a row for each figure, and for each ratio made of two. Columns in docs/validate.md.

    `on` names files: a CSV with the columns of `published.csv` is scored beside what is shipped, a Parquet file of measured
    ops (the columns of `moetrace cost`, and `latency` in ms) by the law of their machine. Raises ScenarioError on another file.
    """
    paths = [
        Path(one)
        for one in several(on, (str, os.PathLike), "file", "expected the path of one", ScenarioError)
    ]
    figures = figure.shipped()
    for path in paths:
        if path.suffix != ".parquet":
            known = {f.id: f for f in figures}
            own = figure.read(path)
            for one in own:
                if known.setdefault(one.id, one).said != one.said:
                    raise ScenarioError(
                        f"{path}: {one.id} is the id of another figure already: give it one of its own"
                    )
            figures = list(known.values())
    done: list[Entry] = []
    for entry in entries(figures):
        done.append(entry)
        progress(min(1.0, len(done) / len(figures)))
    tables = [table_of(done), *(measured_table(path) for path in paths if path.suffix == ".parquet")]
    return pa.concat_tables(tables)


def entries(figures: Sequence[figure.Figure]) -> Iterator[Entry]:
    """The entries of figures, source by source; kinds that no source names come last, as not simulated."""
    left = list(figures)
    for source in SOURCES:
        own = [f for f in left if f.kind in source.KINDS]
        left = [f for f in left if f.kind not in source.KINDS]
        for one in own:
            try:
                yield from source.entries(one, own)
            except MoetraceError as why:
                yield refused(one, str(why))
    for stranger in left:
        kinds = ", ".join(sorted(kind for source in SOURCES for kind in source.KINDS))
        yield refused(
            stranger,
            f"no mapping for figures {stranger.kind}: an id begins with SRV- (a run), TTF- or another of {kinds}",
        )
