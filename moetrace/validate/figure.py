"""Published figures: one row of a table is one Figure. See docs/validate.md for the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path

from moetrace.errors import ScenarioError, plainly
from moetrace.replay.knobs import KNOBS

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


@dataclass(frozen=True, slots=True)
class Figure:
    """One published figure as its source prints it; an empty text is what the source does not state.

    `id` begins with letters that name the kind of source, `value` may be a range (``-15..-20``), a bound (``>120``) or words.
    """

    id: str
    source: str
    model: str
    hw: str
    n_gpus: str
    parallelism: str
    precision: str
    batch: str
    input_len: str
    output_len: str
    n_a: str
    n_e: str
    other_knob: str
    metric: str
    value: str
    unit: str
    how_read: str

    @property
    def kind(self) -> str:
        """What comes before the number: ``FM8`` of ``FM8-0012``."""
        return self.id.split("-")[0]

    @property
    def said(self) -> Figure:
        """The figure without words on where it is from, which may be put otherwise in another copy."""
        return replace(self, source="", how_read="")

    def whole(self, name: str) -> int | None:
        """A column as a whole number, None where it is empty or says something else."""
        text = str(getattr(self, name))
        return int(text) if text.isdecimal() else None

    @property
    def measured(self) -> float | None:
        """The value as a number, ``~`` and commas of thousands left out; None where it is a range, a bound or words, or where
        its comma may stand for a point (``1,5``)."""
        text = self.value.removeprefix("~")
        if _THOUSANDS.fullmatch(text):
            text = text.replace(",", "")
        try:
            return None if "_" in text else float(text)
        except ValueError:
            return None


COLUMNS = tuple(f.name for f in fields(Figure))


def shipped() -> list[Figure]:
    """The figures that come with the package."""
    text = (files("moetrace.validate") / "published.csv").read_text(encoding="utf-8")
    return list(_figures(csv.DictReader(text.splitlines()), "published.csv"))


def read(path: Path) -> list[Figure]:
    """The figures of a CSV with the columns of `Figure`. Raises ScenarioError if it is none."""
    try:
        with path.open(
            encoding="utf-8-sig", newline=""
        ) as file:  # spreadsheets write a mark before the first column
            found = list(_figures(csv.DictReader(file, strict=True), str(path)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"{path}: cannot be read as a table of figures ({plainly(error)})") from error
    if not found:
        raise ScenarioError(f"{path}: no row: expected a figure in each")
    return found


def _figures(rows: csv.DictReader[str], name: str) -> Iterator[Figure]:
    given_names = list(rows.fieldnames or ())
    missing = [column for column in COLUMNS if column not in given_names]
    if missing:
        raise ScenarioError(
            f"{name}: no column {', '.join(missing)}: expected those of a table of figures "
            "(docs/validate.md); measured ops are read from a .parquet file"
        )
    if twice := [column for column in COLUMNS if given_names.count(column) > 1]:
        raise ScenarioError(f"{name}: more than one column {', '.join(twice)}: expected each once")
    if unread := [column for column in given_names if column in KNOBS and column not in COLUMNS]:
        raise ScenarioError(
            f"{name}: the column {unread[0]} would not be read: state it in other_knob, as {unread[0]}=VALUE"
        )
    for row in rows:
        if None in row:  # the cells beyond the last column
            raise ScenarioError(
                f"{name}, line {rows.line_num}: more cells than columns: quote a text or a number that has a comma"
            )
        given = {column: (row[column] or "").strip() for column in COLUMNS}
        if not given["id"] or not given["metric"]:
            raise ScenarioError(f"{name}, line {rows.line_num}: a figure needs an id and a metric")
        yield Figure(**given)
