"""Who parses the ranks: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetrace.errors import TraceError

_RETRIES = 3  # of a rank whose worker dies
_CONNECT_S = 10
Results = Generator[tuple[int, int], None, None]  # (place in the task's files, rank that the trace states)


@dataclass(frozen=True, slots=True)
class Task:
    """Files by place, the folder for their RUNs (named by place), and the options of `parse`."""

    files: Mapping[int, Path]
    scratch: Path
    options: Mapping[str, Any]

    def arguments(self, place: int) -> tuple[Path, Path, tuple[int, int], dict[str, Any]]:
        """Those of `parse_one`; paths are absolute, for a worker may be elsewhere."""
        options = {k: v.resolve() if isinstance(v, Path) else v for k, v in self.options.items()}
        return self.files[place].resolve(), self.scratch / str(place), (place, max(self.files) + 1), options


def parse_one(file: Path, target: Path, place: tuple[int, int], options: Mapping[str, Any]) -> int:
    """Parses one rank's file into a RUN at `target`; returns its rank, `place` (rank, world) where the trace has none.

    Done again, after a worker was lost, it replaces what there is.
    """
    from moetrace.parse import parse

    target.parent.mkdir(parents=True, exist_ok=True)
    run = parse(file, place=place, scratch=target.parent, **options).save(target, force=True)
    for part in run.parts(["rank"]):
        return int(part.numpy("rank")[0]) if part.num_rows else place[0]
    return place[0]


def on_cores(jobs: int, task: Task) -> Results:
    """The results as they come, of processes that start afresh: threads of this one are not copied."""
    pool = ProcessPoolExecutor(min(jobs, len(task.files)), mp_context=multiprocessing.get_context("spawn"))
    try:
        asked = {pool.submit(parse_one, *task.arguments(place)): place for place in task.files}
        for future in as_completed(asked):
            yield asked[future], future.result()
    except BrokenProcessPool as err:
        raise TraceError(
            "a process that parsed a rank ended, most likely for want of memory: give --jobs 1"
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


def on_cluster(scheduler: str, task: Task) -> Results:
    """The results as workers finish them; a rank whose worker dies goes to another one.

    Raises TraceError if Dask is not installed, nobody answers at `scheduler`, or a rank's workers died again and again.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed import as_completed as completed
    except ImportError as err:
        raise TraceError('--scheduler needs Dask: pip install "moetrace[dask]"') from err
    try:
        client: Any = Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError) as err:
        raise TraceError(f"--scheduler {scheduler}: no Dask scheduler answers there ({err})") from err
    with client:
        asked = {
            client.submit(parse_one, *task.arguments(place), retries=_RETRIES, pure=False): place
            for place in task.files
        }
        for future in completed(list(asked)):
            try:
                rank = int(future.result())
            except KilledWorker as err:
                file = task.files[asked[future]]
                raise TraceError(
                    f"{file}: the workers that parsed it died, most likely for want of memory"
                ) from err
            yield asked[future], rank
