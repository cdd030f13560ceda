"""All ranks of one run: each parsed by a process of its own into a RUN of its own, then compared by their collectives.

On disk a directory: ``rank-0``, ``rank-1``, ... are RUNs, ``ranks.parquet`` has a row per rank and step, ``ranks.json``, which
is written last, the summary. Memory: each process holds one rank's parse; comparing holds the collectives of two ranks.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from moetrace.errors import OutputError, TraceError
from moetrace.files import check_directory, is_run, write_parquet, write_whole
from moetrace.parse.ranks.compare import RANKS_COLUMNS, compare
from moetrace.parse.ranks.find import Found, rank_files
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
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Parses every rank's file into `output` and compares them; returns the summary, JSON-able.

    `files` are those of `rank_files`; `options` go to `parse`. `jobs` processes work at a time (default: as many as there are
    cores). Raises TraceError if a file cannot be read or two hold the same rank, OutputError if something is in the way.
    """
    _check(output, force)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".moetrace-ranks-", dir=output) as scratch:
        made = _parsed(files, Path(scratch), dict(options or {}), jobs or os.cpu_count() or 1, progress)
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
    files: Mapping[int, Path], scratch: Path, options: dict[str, Any], jobs: int, progress: Progress | None
) -> dict[int, Path]:
    """The folder of each rank's RUN, by the rank that the trace states."""
    made: dict[int, Path] = {}
    source: dict[int, Path] = {}
    sizes = {place: file.stat().st_size for place, file in files.items()}
    done = 0
    with _pool(min(jobs, len(files))) as pool:
        asked: dict[Future[int], int] = {
            pool.submit(parse_one, file, scratch / str(place), (place, max(files) + 1), options): place
            for place, file in files.items()
        }
        while asked:
            finished, _ = wait(asked, return_when=FIRST_COMPLETED)
            for future in finished:
                place = asked.pop(future)
                rank = _result(future, files[place])
                if rank in made:
                    raise TraceError(
                        f"{source[rank]} and {files[place]} are both of rank {rank}: keep one file per rank in the folder"
                    )
                made[rank], source[rank] = scratch / str(place), files[place]
                done += sizes[place]
                if progress is not None:
                    progress(done / max(1, sum(sizes.values())))
    return made


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start afresh (threads of this one are not copied); what waits is given up on an error."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[int], file: Path) -> int:
    try:
        return future.result()
    except BrokenProcessPool as err:
        raise TraceError(
            f"a process that parsed a rank ended (at {file} or beside it), most likely for want of memory: give --jobs 1"
        ) from err


def parse_one(file: Path, target: Path, place: tuple[int, int], options: Mapping[str, Any]) -> int:
    """Parses one rank's file into a RUN at `target`; returns its rank, `place` (rank, world) where the trace has none."""
    from moetrace.parse import parse

    target.parent.mkdir(parents=True, exist_ok=True)
    run = parse(file, place=place, scratch=target.parent, **options).save(target)
    for part in run.parts(["rank"]):
        return int(part.numpy("rank")[0]) if part.num_rows else place[0]
    return place[0]


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
