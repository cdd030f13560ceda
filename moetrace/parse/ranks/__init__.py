"""All ranks of one run: each parsed by a process of its own into a RUN of its own, then compared by their collectives.

On disk a directory: ``rank-0``, ``rank-1``, ... are RUNs, ``ranks.parquet`` has a row per rank and step, ``ranks.json``, which
is written last, the summary: what `moetrace.ranks` reads as one Run. Memory: each process holds one rank's parse and what
comparing needs of it; comparing holds the collectives of two ranks.

find (which files), work (who parses), gathered (what comparing needs of a rank), groups (which ranks a collective is of),
clocks, arrivals (who waits), experts (load), compare (the table and the summary), output (where it all goes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from moetrace.errors import TraceError
from moetrace.formats import Export, Remote
from moetrace.parse.ranks.compare import RANKS_COLUMNS, compare
from moetrace.parse.ranks.find import Found, rank_files, ranks_of
from moetrace.parse.ranks.gathered import Gathered
from moetrace.parse.ranks.output import Bucket, Folder, output_at
from moetrace.parse.ranks.work import Results, Task, on_cluster, on_cores

Progress = Callable[[float], object]


def parse_ranks(
    files: Mapping[int, Path | Remote | Export],
    output: Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Parses every rank's trace into `output` (a folder or URL; None: nothing is kept) and compares them; returns the
    summary, JSON-able.

    `files` are those of `rank_files` or `ranks_of`; `options` go to `parse`.
    `jobs` processes work at a time (default: as many as there are
    cores), or the workers of the Dask cluster of `scheduler`, which must reach the files and `output` under the same names.
    Raises TraceError if a file cannot be read, two hold the same rank or are of different models, or nothing says that they
    are ranks of one run; OutputError if something is in the way.
    """
    place = output_at(output) if output is not None else None
    if place is None:
        task = Task(files, None, options or {})
        facts = compare(_parsed(files, task, None, jobs, scheduler, progress, {}), _one_clock(files))[1]
        return _noted(facts, files)
    place.check(force)
    stage = place.stage()
    try:
        made: dict[int, str] = {}
        task = Task(files, stage, options or {})
        found = _parsed(files, task, place, jobs, scheduler, progress, made)
        table, facts = compare(found, _one_clock(files))
        facts = _noted(facts, files)
        place.take(made)
    finally:
        place.clean()
    for own in facts["ranks"]:
        place.edit_meta(own["rank"], lambda raw, own=own: _told(raw, own, len(facts["ranks"])))  # type: ignore[misc]
    place.finish(table, facts)
    return facts


def _noted(facts: dict[str, Any], files: Mapping[int, Path | Remote | Export]) -> dict[str, Any]:
    """The summary with what was left out beside the ranks' files."""
    return {**facts, "notes": [*files.notes, *facts["notes"]]} if isinstance(files, Found) else facts


def _one_clock(files: Mapping[int, Path | Remote | Export]) -> bool:
    """Whether the ranks are of one nsys file, which has one clock for all its processes and GPUs."""
    whole = {file.path if isinstance(file, Export) else None for file in files.values()}
    return len(whole) == 1 and None not in whole


def _parsed(
    files: Mapping[int, Path | Remote | Export],
    task: Task,
    place: Folder | Bucket | None,
    jobs: int | None,
    scheduler: str | None,
    progress: Progress | None,
    made: dict[int, str],
) -> Iterator[Gathered]:
    """What comparing needs of each rank, as they come; where the RUN of each was made goes to `made`."""
    given: Results = on_cluster(scheduler, task) if scheduler else on_cores(jobs or os.cpu_count() or 1, task)
    source: dict[int, Path | Remote | Export] = {}
    model: tuple[tuple[str, tuple[int, ...]], Path | Remote | Export] | None = None
    sizes = {at: file.stat().st_size for at, file in files.items()}
    apart = isinstance(files, Found) and not files.told
    done = 0
    with closing(given):
        for at, found in given:
            if found.rank in source:
                raise TraceError(
                    f"{source[found.rank]} and {files[at]} are both of rank {found.rank}: keep one file per rank in the folder"
                )
            if found.model is not None:
                other, first = model or (found.model, files[at])
                if found.model[1] != other[1]:
                    raise TraceError(
                        f"{first} is of {other[0]}, {files[at]} of {found.model[0]}: traces of two models are not ranks of one "
                        "run; parse each by itself"
                    )
                model = other, first
            source[found.rank] = files[at]
            apart &= found.alone
            target = task.target(at)
            if place is not None and target is not None:
                place.check_made(target)
                made[found.rank] = target
            done += sizes[at]
            if progress is not None:
                progress(done / max(1, sum(sizes.values())))
            yield found
    if apart:
        names = " and ".join(str(file) for file in list(files.values())[:2])
        raise TraceError(
            f"nothing says that {names} are ranks of one run: neither their names (trace-rank0.json) nor what they hold "
            "(distributedInfo, communication). Parse each by itself; 'moetrace diff' compares two"
        )


def _told(raw: dict[str, Any], own: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A rank's metadata with what the ranks say of each other, where every verb shows it."""
    note = f"one of {count} ranks parsed together"
    if own["wait_s"] is not None and own["matched_comm_s"]:
        note += (
            f": {100 * own['wait_s'] / own['matched_comm_s']:.0f} % of its time in collectives was waiting for a later rank; "
            f"it was the last to arrive in {100 * own['last_share']:.0f} % of them"
        )
    return {**raw, "notes": [*raw["notes"], note], "facts": {**raw["facts"], "ranks": count}}


__all__ = ["RANKS_COLUMNS", "Found", "parse_ranks", "rank_files", "ranks_of"]
