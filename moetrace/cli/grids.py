"""The options of a grid, and what they make of a verb's scenarios: tables on disk, a Pareto front, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moetrace.cli.options import PATH, names_in

if TYPE_CHECKING:
    from moetrace.replay.grid.plan import Ask
    from moetrace.replay.grid.recorded import Replays
    from moetrace.replay.grid.store import Grid

_LARGE = 1_000_000  # scenarios, from which on it is said beforehand what they take


price_option = click.option(
    "--price-per-hour",
    "prices",
    metavar="PRICE|NAME=PRICE",
    multiple=True,
    help="What one device costs per hour, for all machines or one of them; repeatable, or separated by commas. No default.",
)


def grid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--grid``, ``--pareto``, ``--slo``, ``--budget``, ``--scheduler``, which the command takes as one `many`."""

    @wraps(command)
    def gathered(**options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(GridAsked)}
        return command(many=GridAsked(**own), **options)

    made: Callable[..., Any] = gathered
    for option in reversed(
        (
            click.option(
                "--grid",
                metavar="DIR",
                type=PATH,
                help="Write every scenario as a row of Parquet tables in DIR; an interrupted one is continued.",
            ),
            click.option(
                "--pareto", is_flag=True,
                help="Show the scenarios that no other beats in both tokens/s for a user and tokens/s of a GPU.",
            ),
            click.option(
                "--slo", metavar="NAME=LIMIT[,..]",
                help="Show only scenarios within these limits: tpot=20ms,ttft=1s; rates are minima (user_speed=50).",
            ),
            click.option(
                "--budget", metavar="gpus=N",
                help="Show only scenarios on at most N GPUs; throughput counts as many copies as fit on them.",
            ),
            click.option(
                "--scheduler", metavar="ADDRESS",
                help="Spread a grid on the Dask cluster of this scheduler (pip install 'moetrace[dask]').",
            ),
        )
    ):  # fmt: skip
        made = option(made)
    return made


@dataclass(frozen=True, slots=True)
class GridAsked:
    """What the options of a grid say."""

    grid: Path | None
    pareto: bool
    slo: str | None
    budget: str | None
    scheduler: str | None

    @property
    def any(self) -> bool:
        """Whether a grid is asked for."""
        return self.grid is not None or self.pareto or bool(self.slo or self.budget or self.scheduler)


def show_grid(
    asked: GridAsked,
    models: str,
    machines: Sequence[str],
    sets: Sequence[str],
    prices: Sequence[str],
    force: bool,
    as_json: bool,
) -> None:
    """Works a grid of simulations out and prints what of it was asked for. Without ``--grid`` its tables are not kept."""
    from moetrace.replay.grid.plan import Ask

    names = tuple(name for group in machines for name in names_in(group))
    _show(asked, Ask(tuple(names_in(models)), names, tuple(sets), tuple(prices)), force, as_json)


def show_replays(asked: GridAsked, replays: Replays, force: bool, as_json: bool) -> None:
    """The same of a run's replays. Raises ScenarioError for a limit that a replay does not know, or a cluster."""
    from moetrace.errors import ScenarioError
    from moetrace.replay.grid.choose import read_slo
    from moetrace.replay.grid.recorded import check_measures

    if asked.scheduler:
        raise ScenarioError(
            "--scheduler: a run is replayed in this process; a cluster works out grids of 'moetrace simulate'"
        )
    check_measures(read_slo(asked.slo) if asked.slo else {})
    if (asked.pareto or asked.slo or asked.budget) and not replays.run.meta.step_is_token:
        raise ScenarioError(
            "the run is a simulation with prompts, the host's time or drafting between its steps, so that replays of it have "
            "no TPOT to choose by: give --pareto, --slo and --budget to 'moetrace simulate'"
        )
    _show(asked, replays, force, as_json)


def _show(asked: GridAsked, what: Ask | Replays, force: bool, as_json: bool) -> None:
    from tempfile import TemporaryDirectory

    if asked.grid is not None:
        _show_at(asked, asked.grid, what, force, as_json)
        return
    with TemporaryDirectory() as made:
        _show_at(asked, Path(made) / "grid", what, force, as_json)


def _show_at(asked: GridAsked, root: Path, what: Ask | Replays, force: bool, as_json: bool) -> None:
    import time
    from dataclasses import asdict

    from moetrace.files import table_facts, write_parquet
    from moetrace.replay.grid.choose import (
        OTHER_MODEL,
        QUEUED,
        WHY,
        Limits,
        cheapest,
        front,
        marked,
        met_by,
        read_budget,
        read_slo,
    )
    from moetrace.replay.grid.store import check_room, open_grid
    from moetrace.report import grid as report
    from moetrace.report import terminal

    limits = Limits(
        read_slo(asked.slo) if asked.slo else {}, read_budget(asked.budget) if asked.budget else None
    )
    grid = open_grid(root, what, force)
    if grid.left >= _LARGE:
        room = check_room(grid)
        terminal.note(
            f"{grid.left:,} scenarios, about {room / 1e9:,.1f} GB of tables, {report.about_s(grid.left)}"
        )
    begin = time.perf_counter()
    before = _worked_out(asked, grid)
    took = time.perf_counter() - begin
    best, met = front(grid.parts(), limits)
    if asked.pareto and best is not None and asked.grid is not None:
        write_parquet(best, root / "pareto.parquet", table_facts("scenarios", 1))
    why = (*WHY, QUEUED) if grid.simulates else WHY
    facts = report.grid_facts(
        grid.plan, before, took, met, best, marked(grid.parts(why)), limits, asked.pareto, asked.grid
    )
    facts["cheapest"] = report.rows_of(cheapest(grid.parts(), limits), limits)
    served = [name for name in OTHER_MODEL if name in ("model", *facts["knobs"])]
    shares = met_by(grid.parts(), limits, served) if best is not None else {}
    facts["met_by"] = {
        name: {value: asdict(one) for value, one in own.items()} for name, own in shares.items()
    }
    if as_json:
        terminal.show_json(facts)
    else:
        terminal.show(report.grid_report(facts))


def _worked_out(asked: GridAsked, grid: Grid) -> int:
    """Works the grid out; how many of its scenarios had been before. An interruption says what is kept."""
    from moetrace.replay.grid.store import run_grid
    from moetrace.report import terminal

    try:
        with terminal.progress(f"{grid.plan.size:,} scenarios") as tell:
            return run_grid(grid, tell, _worker(asked.scheduler))
    except KeyboardInterrupt:
        if asked.grid is None:
            raise
        done = grid.plan.size - grid.left
        raise KeyboardInterrupt(
            f"interrupted: {done:,} of {grid.plan.size:,} scenarios are in {grid.root}; the same command goes on from there"
        ) from None


def _worker(scheduler: str | None) -> Any:
    if scheduler is None:
        return None
    from moetrace.replay.grid.spread import on_cluster

    return lambda ask, waiting: on_cluster(scheduler, ask, waiting)
