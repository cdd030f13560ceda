"""A grid's tasks on a Dask cluster: `pip install "moetrace[dask]"` here and on every worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moetrace.cluster import connected
from moetrace.errors import ScenarioError
from moetrace.replay.grid.plan import Ask, Task
from moetrace.replay.grid.rows import tables
from moetrace.replay.grid.store import Made

_RETRIES = 3  # of a task whose worker dies
_AHEAD = 3  # tasks given out per worker, so that results wait in bounded memory


def on_cluster(scheduler: str, ask: Ask, waiting: list[tuple[int, Task]]) -> Iterator[Made]:
    """The tables of tasks as workers finish them. A task whose worker dies goes to another one.

    Raises ScenarioError if Dask is not installed or nobody answers at `scheduler`. Profiles and configs that are named by a
    path must lie there on the workers too.
    """
    client = connected(scheduler, ScenarioError)
    from distributed import as_completed

    with client:
        todo = iter(waiting)

        def give() -> Any:
            task = next(todo, None)
            return None if task is None else client.submit(_made, ask, *task, retries=_RETRIES, pure=False)

        room = _AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        given = [future for _ in range(room) if (future := give()) is not None]
        results = as_completed(given)
        for future in results:
            made: Made = future.result()
            following = give()
            if following is not None:
                results.add(following)
            future.release()
            yield made


def _made(ask: Ask, place: int, task: Task) -> Made:
    return (place, *tables(ask, task))
