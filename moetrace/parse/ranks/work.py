"""Who parses the ranks: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetrace.cluster import connected
from moetrace.errors import TraceError
from moetrace.files import url_of
from moetrace.formats import Export, Remote
from moetrace.parse.ranks.gathered import Gathered, gathered
from moetrace.signals import as_worker, uninterrupted

_RETRIES = 3  # of a rank whose worker dies
# (place in the task's files, what comparing needs of it).
Results = Generator[tuple[int, Gathered], None, None]


@dataclass(frozen=True, slots=True)
class Task:
    """Traces by place, where their RUNs go (a folder or URL, in it one by the name of the place; None: nowhere), and the
    options of `parse`."""

    files: Mapping[int, Path | Remote | Export]
    stage: str | None
    options: Mapping[str, Any]

    def target(self, place: int) -> str | None:
        """Where the RUN of a place goes."""
        return None if self.stage is None else f"{self.stage}/{place}"

    def arguments(self, place: int) -> tuple[str | Export, str | None, tuple[int, int], dict[str, Any]]:
        """Those of `parse_one`; paths are absolute, for a worker may be elsewhere, and URLs are as they are."""
        options = {k: _absolute(v) if isinstance(v, Path) else v for k, v in self.options.items()}
        return (
            _absolute(self.files[place]),
            self.target(place),
            (place, max(self.files) + 1),
            options,
        )


def _absolute(path: Path | Remote | Export) -> str | Export:
    if isinstance(path, Export):
        return path.resolve()
    if isinstance(path, Remote):
        return path.url
    return url_of(path) or str(path.resolve())


def parse_one(
    file: str | Export, target: str | None, place: tuple[int, int], options: Mapping[str, Any]
) -> Gathered:
    """Parses one rank's trace into a RUN at `target`; its rank is `place` (rank, world) where the trace has none."""
    from moetrace.parse import parse
    from moetrace.parse.ranks.output import write_run

    beside = Path(target).parent if target is not None and url_of(target) is None else None
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    run = parse(file, place=place, scratch=beside, **options)
    if target is not None:
        write_run(run, target)
    rank = next((int(p.numpy("rank")[0]) for p in run.parts(["rank"]) if p.num_rows), place[0])
    return gathered(run, rank)


def on_cores(jobs: int, task: Task) -> Results:
    """The results as they come, of processes that start afresh: threads of this one are not copied.

    They end with this one, in whatever way, and at once where not all of the results are wanted.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(jobs, len(task.files)), multiprocessing.get_context("spawn"), initializer=as_worker
    )
    asked: dict[Future[Gathered], int] = {}
    try:
        with uninterrupted():
            asked |= {pool.submit(parse_one, *task.arguments(place)): place for place in task.files}
        for future in as_completed(list(asked)):
            yield asked.pop(future), future.result()
            del future
    except BrokenProcessPool as err:
        raise TraceError(
            "a process that parsed a rank ended, most likely for want of memory: give --jobs 1"
        ) from err
    finally:
        for future in asked:
            future.cancel()
        for worker in set(multiprocessing.active_children()) - others if asked else ():
            worker.terminate()
        pool.shutdown(cancel_futures=True)


def on_cluster(scheduler: str, task: Task) -> Results:
    """The results as workers finish them; a rank whose worker dies goes to another one.

    Raises TraceError if Dask is not installed, nobody answers at `scheduler`, or a rank's workers died again and again.
    """
    client = connected(scheduler, TraceError)
    from distributed import KilledWorker
    from distributed import as_completed as completed

    with client:
        asked = {
            client.submit(parse_one, *task.arguments(place), retries=_RETRIES, pure=False): place
            for place in task.files
        }
        for future in completed(list(asked)):
            place = asked.pop(future)
            try:
                found = future.result()
            except KilledWorker as err:
                raise TraceError(
                    f"{task.files[place]}: the workers that parsed it died, most likely for want of memory"
                ) from err
            yield place, found
            future.release()
