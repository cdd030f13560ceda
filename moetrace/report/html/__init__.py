"""The report as one HTML file that needs no network: facts -> page (templates, assets), bulk data packed beside.

The words and tables are in the page's HTML; scripts add the drawn charts, sorting, filters and the colour scheme.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from moetrace.errors import RunError
from moetrace.files import check_output, write_whole
from moetrace.hardware import Hardware
from moetrace.report.facts import report_facts
from moetrace.report.html.page import Report, render
from moetrace.run import Run, check_runs, runs_of


def write_report(
    runs: Run | Sequence[Run],
    path: str | os.PathLike[str],
    hardware: Hardware | str | None = None,
    machines: Sequence[Hardware | str] | Hardware | str | None = None,
    force: bool = False,
) -> Path:
    """Writes the report of one or several runs as one HTML file, whole or not at all, and returns its path.

    Each run is held against `hardware` (default: the machine it ran on) and predicted on `machines` (default: its own, H100 and
    CS-3). A file that exists is replaced only with `force`. Raises ProfileError where a machine is not known, OutputError if
    the file cannot be written.
    """
    several, target = runs_of(runs), Path(path)
    if not several:
        raise RunError("a report needs at least one run")
    check_output(target, force, ours=())
    write_page([make_report(run, hardware, machines) for run in several], target)
    return target


def write_page(reports: Sequence[Report], path: Path) -> int:
    """Writes the page of some reports, whole or not at all, and returns its size in bytes."""
    text = render(reports).encode("utf-8", "backslashreplace")
    write_whole(path, lambda part: part.write_bytes(text))
    return len(text)


def make_report(
    run: Run,
    hardware: Hardware | str | None = None,
    machines: Sequence[Hardware | str] | Hardware | str | None = None,
) -> Report:
    """The report of one run, which a notebook shows as the page; `write_report` puts it into a file.

    Held against `hardware` and predicted on `machines` as by `write_report`, and raises what that does.
    """
    check_runs(run)
    facts, held = report_facts(run, hardware, machines)
    return Report.of(run, facts, held)


__all__ = ["make_report", "write_page", "write_report"]
