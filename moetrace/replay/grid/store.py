"""A grid on disk: parts of its two tables, each written whole, so that an interrupted grid goes on where it stopped.

GRID/grid.json says what was asked, GRID/scenarios/*.parquet and GRID/breakdown/*.parquet are the tables, which any reader of
Parquet takes as one each. A part of `scenarios` is written after that of `breakdown`: it marks its task as done.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa

from moetrace.errors import OutputError
from moetrace.files import GRID_SUMMARY, read_parquet, table_facts, write_parquet, write_whole
from moetrace.replay.grid.plan import Ask, Plan, Task, plan_of
from moetrace.replay.grid.recorded import Replays
from moetrace.replay.grid.rows import MINOR, tables

SCHEMA = "moetrace.grid/1"
BYTES = 215.0  # of a scenario's rows in both tables, as measured (docs/grid.md)
FILES = (GRID_SUMMARY, "scenarios", "breakdown", "pareto.parquet")
Made = tuple[int, pa.Table, pa.Table]  # place of the task, its tables


@dataclass(frozen=True, slots=True)
class Grid:
    """A directory of a grid, and its plan."""

    root: Path
    plan: Plan | Replays

    @property
    def simulates(self) -> bool:
        """Whether its scenarios are simulations, and not replays of a run."""
        return not isinstance(self.plan, Replays)

    def part(self, table: str, task: int) -> Path:
        """Where a task's rows of a table lie."""
        return self.root / table / f"{task:06d}.parquet"

    def waiting(self) -> list[tuple[int, Task]]:
        """The tasks that are not done, with their places."""
        return [
            (i, task) for i, task in enumerate(self.plan.tasks()) if not self.part("scenarios", i).exists()
        ]

    @property
    def left(self) -> int:
        """Scenarios that are not worked out yet."""
        return sum(task.stop - task.start for _, task in self.waiting())

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of the scenarios of all tasks, or these columns of them, one task at a time."""
        for i, _ in enumerate(self.plan.tasks()):
            yield read_parquet(self.part("scenarios", i), columns)

    def keep(self, made: Made) -> None:
        """Writes what a task gave."""
        place, scenarios, breakdown = made
        write_parquet(breakdown, self.part("breakdown", place), table_facts("breakdown", 1, MINOR))
        write_parquet(scenarios, self.part("scenarios", place), table_facts("scenarios", 1, MINOR))


def open_grid(root: Path, asked: Ask | Replays, force: bool = False) -> Grid:
    """The directory of a grid, of what is asked or of a run's replays: new, or one of the very same grid that was interrupted.

    Raises OutputError if it holds another grid (unless `force`, which removes that one) or what is not a grid's.
    """
    plan = asked if isinstance(asked, Replays) else plan_of(asked)
    said = orjson.dumps(_facts(plan), option=orjson.OPT_INDENT_2)
    facts = root / GRID_SUMMARY
    if facts.is_file() and facts.read_bytes() == said and not force:
        return Grid(root, plan)
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root} is not a directory: give another name")
    if root.exists() and not force and any(root.iterdir()):
        what = "another grid (or this one from another version or profile)" if facts.is_file() else "no grid"
        raise OutputError(f"{root} exists and holds {what}: give another name or --force to replace it")
    if root.exists():
        _check_replaceable(root)
        for name in ("scenarios", "breakdown"):
            shutil.rmtree(root / name, ignore_errors=True)
        (root / "pareto.parquet").unlink(missing_ok=True)
    for name in ("scenarios", "breakdown"):
        (root / name).mkdir(parents=True, exist_ok=True)
    write_whole(facts, lambda part: part.write_bytes(said))
    return Grid(root, plan)


def run_grid(
    grid: Grid,
    progress: Callable[[float], None] = lambda share: None,
    work: Callable[[Ask, list[tuple[int, Task]]], Iterable[Made]] | None = None,
) -> int:
    """Works out what is not done yet; the number of scenarios that were done before.

    `work` gives the tables of tasks in any order, by default one after another in this process.
    """
    waiting = grid.waiting()
    left = sum(task.stop - task.start for _, task in waiting)
    done = before = grid.plan.size - left
    plan = grid.plan
    if isinstance(plan, Replays):
        every: Iterable[Made] = ((place, *plan.tables(task)) for place, task in waiting)
    else:
        every = (work or one_after_another)(plan.ask, waiting)
    for made in every:
        grid.keep(made)
        done += made[1].num_rows
        progress(done / max(1, grid.plan.size))
    return before


def check_room(grid: Grid) -> float:
    """Bytes that the tables which are not written yet will take, about. Raises OutputError if the disk has less."""
    needed = grid.left * BYTES
    free = shutil.disk_usage(grid.root).free
    if needed > free:
        raise OutputError(
            f"{grid.left:,} scenarios take about {needed / 1e9:,.1f} GB of tables, and {grid.root} has {free / 1e9:,.1f}: name "
            "another place with --grid, or fewer values"
        )
    return needed


def one_after_another(ask: Ask, waiting: list[tuple[int, Task]]) -> Iterator[Made]:
    """The tables of tasks, worked out in this process."""
    for place, task in waiting:
        yield (place, *tables(ask, task))


def _facts(plan: Plan | Replays) -> dict[str, object]:
    from moetrace import __version__

    if isinstance(plan, Replays):
        return {"schema": SCHEMA, "minor": MINOR, "version": __version__, **plan.facts()}
    parts = (
        {case.hw.name: case.hw for case in plan.cases},
        {case.model.name: case.model for case in plan.cases},
    )
    machines = repr(parts)
    return {
        "schema": SCHEMA,
        "minor": MINOR,
        "version": __version__,
        "models": list(plan.ask.models),
        "machines": list(plan.ask.machines),
        "sets": list(plan.ask.sets),
        "prices": list(plan.ask.prices),
        "scenarios": plan.size,
        "profiles": hashlib.sha256(machines.encode()).hexdigest(),
    }


def _check_replaceable(root: Path) -> None:
    """Raises OutputError where a directory holds what no grid wrote: that is not removed."""
    if root.is_symlink() or not root.is_dir():
        raise OutputError(f"{root} is not a directory of its own: it is not replaced, give another name")
    inside = [file for name in ("scenarios", "breakdown") for file in (root / name).glob("*")]
    strange = [path for path in root.iterdir() if path.name not in FILES]
    strange += [file for file in inside if file.suffix not in (".parquet", ".part")]
    if strange:
        raise OutputError(f"{root} holds files that are no grid's ({strange[0].name}): give another name")
