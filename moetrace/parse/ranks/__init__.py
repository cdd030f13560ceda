"""All ranks of one run: each parsed by a process of its own into a RUN of its own, then compared by their collectives.

On disk a directory: ``rank-0``, ``rank-1``, ... are RUNs, ``ranks.parquet`` has a row per rank and step, ``ranks.json``, which
is written last, the summary. Memory: each process holds one rank's parse; comparing holds the collectives of two ranks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from moetrace.errors import OutputError, TraceError
from moetrace.files import check_directory, is_run, write_parquet, write_whole
from moetrace.parse.ranks.compare import RANKS_COLUMNS, compare
from moetrace.parse.ranks.find import Found, rank_files
from moetrace.parse.ranks.work import Task, on_cluster, on_cores
from moetrace.run import Run

TABLE, SUMMARY = "ranks.parquet", "ranks.json"
_TABLE_FACTS = {"moetrace.table": "ranks", "moetrace.version": "1"}
_FOLDER = "rank-{}"
Progress = Callable[[float], object]


def parse_ranks(
    files: Mapping[int, Path],
    output: Path,
    *,
    options: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Parses every rank's file into `output` and compares them; returns the summary, JSON-able.

    `files` are those of `rank_files`; `options` go to `parse`. `jobs` processes work at a time (default: as many as there are
    cores), or the workers of the Dask cluster of `scheduler`, which see the files and `output` under the same names.
    Raises TraceError if a file cannot be read or two hold the same rank, OutputError if something is in the way.
    """
    _check(output, force)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".moetrace-ranks-", dir=output) as scratch:
        task = Task(dict(files), Path(scratch).resolve(), dict(options or {}))
        given = on_cluster(scheduler, task) if scheduler else on_cores(jobs or os.cpu_count() or 1, task)
        with closing(given):
            made = _parsed(files, task.scratch, given, progress)
        (output / SUMMARY).unlink(missing_ok=True)
        for old in output.glob(_FOLDER.format("*")):
            shutil.rmtree(old)
        runs = {}
        for rank, folder in sorted(made.items()):
            runs[rank] = Run.load(folder.rename(output / _FOLDER.format(rank)))
    table, facts = compare(runs)
    for rank, run in runs.items():
        _tell(run, rank, facts)
    write_parquet(table, output / TABLE, _TABLE_FACTS)
    write_whole(
        output / SUMMARY, lambda path: path.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    )
    return facts


def _check(output: Path, force: bool) -> None:
    """Refuses an output that exists, unless it is one of ours and may be replaced, rank by rank."""
    if is_run(output):
        raise OutputError(f"{output} is a RUN of one rank: give another name for a run of many")
    if not output.exists():
        return
    if not output.is_dir() or output.is_symlink():
        raise OutputError(f"{output} is not a directory: it is not replaced, give another name")
    there = [p for p in output.iterdir() if not p.name.startswith(".moetrace-ranks-")]
    if there and not force:
        raise OutputError(f"{output} exists: give another name or --force to replace it")
    for path in there:
        if path.name in (TABLE, SUMMARY):
            continue
        if not (path.name.startswith("rank-") and is_run(path)):
            raise OutputError(f"{path} is not moetrace's: give another name")
        check_directory(path, force)


def _parsed(
    files: Mapping[int, Path], scratch: Path, given: Iterator[tuple[int, int]], progress: Progress | None
) -> dict[int, Path]:
    """The folder of each rank's RUN, by the rank that the trace states."""
    made: dict[int, Path] = {}
    source: dict[int, Path] = {}
    sizes = {place: file.stat().st_size for place, file in files.items()}
    done = 0
    for place, rank in given:
        if rank in made:
            raise TraceError(
                f"{source[rank]} and {files[place]} are both of rank {rank}: keep one file per rank in the folder"
            )
        made[rank], source[rank] = scratch / str(place), files[place]
        if not is_run(made[rank]):
            raise TraceError(
                f"a worker wrote {made[rank]}, which is not seen here: give an output in a folder that all share"
            )
        done += sizes[place]
        if progress is not None:
            progress(done / max(1, sum(sizes.values())))
    return made


def _tell(run: Run, rank: int, facts: Mapping[str, Any]) -> None:
    """Puts what the ranks say of each other into a rank's own metadata, where every verb shows it."""
    own = next(r for r in facts["ranks"] if r["rank"] == rank)
    note = f"one of {len(facts['ranks'])} ranks parsed together"
    if own["wait_s"] is not None and own["matched_comm_s"]:
        note += (
            f": {100 * own['wait_s'] / own['matched_comm_s']:.0f} % of its time in collectives was waiting for a later rank; "
            f"it was the last to arrive in {100 * own['last_share']:.0f} % of them"
        )
    meta = run.with_meta(
        notes=(*run.meta.notes, note), facts={**run.meta.facts, "ranks": len(facts["ranks"])}
    ).meta
    text = orjson.dumps(meta.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
    if run.path is not None:
        write_whole(run.path / "run.json", lambda path: path.write_bytes(text))


__all__ = ["RANKS_COLUMNS", "Found", "parse_ranks", "rank_files"]
