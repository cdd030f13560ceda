"""Grids as a user has them: on the command line, and on real Dask clusters, one of which loses a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moetrace import cluster
from moetrace.cli import grids
from moetrace.errors import ScenarioError
from moetrace.replay.grid import plan as plans
from moetrace.replay.grid import store
from moetrace.replay.grid.plan import Ask, Task
from moetrace.replay.grid.spread import on_cluster
from moetrace.replay.grid.store import Grid, Made, open_grid, run_grid
from tests.conftest import Answer

ASK = Ask(
    ("olmoe-1b-7b",), ("h100-sxm",), ("batch=1,2,3,4,5,6,7,8", "input_len=64", "output_len=9", "n_a=4,8")
)
ARGUMENTS = (
    "simulate", "--model", ASK.models[0], "--hw", "h100-sxm", "--batch", "1,4,16,64", "--input-len", "128",
    "--output-len", "32", "--n-a", "2,8",
)  # fmt: skip


def test_loads_with_more_prompts_than_their_steps_work_through_are_marked(
    call: Callable[..., Answer],
) -> None:
    """Prompts of 1,024 tokens in chunks of 512 take two steps each, while each sequence decodes 64."""
    load = ("--input-len", "1024", "--output-len", "64", "--batch", "32,33", "--pareto")
    simulated = (*ARGUMENTS[:5], *load, "--set", "serving=continuous", "--set", "chunk=512")
    facts = json.loads(call(*simulated, "--json").out)
    assert facts["queued"] == 1 and {row["batch"]: row["queued"] for row in facts["pareto"]} == {
        32: False,
        33: True,
    }
    told = call(*simulated).out
    assert "1 with more prompts than their steps work through (column queued)" in told
    assert "QUEUED" in told and "keeps up" in told
    static = call(*ARGUMENTS[:5], *load)
    assert "queued" not in static.out and json.loads(call(*ARGUMENTS[:5], *load, "--json").out)["queued"] == 0


def test_a_grid_is_written_and_its_front_shown(call: Callable[..., Answer], tmp_path: Path) -> None:
    grid = tmp_path / "grid"
    done = call(*ARGUMENTS, "--grid", str(grid), "--pareto", "--slo", "tpot=1s")
    assert done.status == 0, done.err
    assert done.out.startswith("8 scenarios, 8 of them worked out in ") and f"written: {grid}" in done.out
    scenarios = pq.read_table(grid / "scenarios").to_pylist()
    assert len(scenarios) == 8 and {row["n_a"] for row in scenarios} == {2, 8}
    front = pq.read_table(grid / "pareto.parquet").to_pylist()
    speeds = [row["user_speed_per_s"] for row in front]
    assert speeds == sorted(speeds, reverse=True) and len(front) == done.out.count("h100-sxm ")
    shown = call("show", str(grid))
    assert (
        shown.status == 2
        and f"is a grid, whose scenarios are tables and no run: read {grid / 'scenarios'}" in shown.err
    )
    again = call(*ARGUMENTS, "--grid", str(grid), "--json")
    assert (json.loads(again.out)["done_before"], json.loads(again.out)["met"]) == (8, 8)


def test_the_cheapest_is_shown_beside_the_front_where_there_are_prices(call: Callable[..., Answer]) -> None:
    priced = (*ARGUMENTS, "--hw", "cs3", "--pareto", "--price-per-hour", "h100-sxm=2,cs3=500")
    (row,) = json.loads(call(*priced, "--json").out)["cheapest"]
    told = call(*priced).out
    head, _, tail = told.partition("the cheapest output tokens of those that keep to it")
    assert "wafers" in head and "h100-sxm" not in head.partition("best scenarios")[2]
    assert (
        row["hardware"] == "h100-sxm"
        and f"{row['cost_per_million_tokens']:.4g}" in tail
        and "(2) the" in tail
    )
    free = call(*ARGUMENTS, "--pareto")
    assert (
        "cheapest" not in free.out
        and json.loads(call(*ARGUMENTS, "--pareto", "--json").out)["cheapest"] == []
    )


def test_limits_without_a_directory_keep_nothing(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*ARGUMENTS, "--budget", "gpus=4", "--slo", "ttft=1us")
    assert done.status == 0 and "0 fit their machine and keep to ttft 1.0 us, at most 4 GPUs" in done.out
    assert not list(tmp_path.iterdir())


def test_what_is_no_answer_is_counted_with_its_reasons(call: Callable[..., Answer], tmp_path: Path) -> None:
    asked = ("simulate", "--model", "mixtral-8x7b", "--hw", "h100-sxm-x4", "--set", "tp=4", "--input-len", "128",
             "--output-len", "8", "--batch", "1,100000", "--n-a", "2,9")  # fmt: skip
    done = call(*asked, "--pareto")
    assert done.status == 0 and "\n1 out of memory: column fits\n2 cannot be: column problem\n" in done.out
    assert "  2: n_a=9: there are 8 experts per layer, so n_a is at most 8\n" in done.out
    facts = json.loads(call(*asked, "--json", "--pareto").out)
    assert (facts["met"], facts["out_of_memory"], sum(facts["refused"].values())) == (1, 1, 2)
    none = call(*asked[:-1], "9", "--grid", str(tmp_path / "grid"))
    assert (
        none.status == 0
        and "\n0 fit their machine\n2 cannot be" in none.out
        and "best scenarios" not in none.out
    )


def test_a_large_grid_says_what_it_takes_and_an_interrupted_one_what_is_kept(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = str(tmp_path / "grid")
    monkeypatch.setattr(plans, "CHUNK", 2)
    monkeypatch.setattr(grids, "_LARGE", 8)
    keep = Grid.keep

    def stopped(self: Grid, made: Made) -> None:
        keep(self, made)
        if made[0] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Grid, "keep", stopped)
    done = call(*ARGUMENTS, "--grid", grid)
    assert done.status == 130 and done.error_lines[0].startswith("8 scenarios, about 0.0 GB of tables, ")
    assert done.error_lines[1].endswith(
        f"interrupted: 4 of 8 scenarios are in {grid}; the same command goes on from there"
    )
    monkeypatch.setattr(Grid, "keep", keep)
    again = call(*ARGUMENTS, "--grid", grid)
    assert (
        again.status == 0 and again.out.startswith("8 scenarios, 4 of them worked out in ") and not again.err
    )
    monkeypatch.setattr(store, "BYTES", 1e18)
    full = call(*ARGUMENTS, "--grid", str(tmp_path / "more"))
    assert full.status == 2 and "8 scenarios take about" in full.err


def test_a_file_is_no_place_for_a_grid(call: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for force in ((), ("--force",)):
        done = call(*ARGUMENTS, "--grid", str(tmp_path / "file"), *force)
        assert done.status == 2 and "is not a directory: give another name" in done.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--slo", "tpot=20"), "expected a time such as 20ms"),
        (("--pareto", "-o", "runs"), "without -o"),
        (("--scheduler", "tcp://127.0.0.1:1"), "no Dask scheduler answers"),
    ],
)
def test_what_cannot_be_is_one_line(
    more: tuple[str, ...],
    words: str,
    call: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    done = call(*ARGUMENTS, *more)
    assert done.status == 2 and words in done.err and len(done.error_lines) == 1


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The grid worked out in this process, in eight tasks."""
    monkeypatch.setattr(plans, "CHUNK", 2)
    run_grid(open_grid(tmp_path / "alone", ASK))
    return tmp_path / "alone"


def same(one: Path, two: Path) -> bool:
    return all(
        pq.read_table(one / name).equals(pq.read_table(two / name)) for name in ("scenarios", "breakdown")
    )


def test_a_cluster_that_loses_a_worker_gives_the_same(alone: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:

        def work(ask: Ask, waiting: list[tuple[int, Task]]) -> Iterator[Made]:
            for count, made in enumerate(on_cluster(cluster.scheduler_address, ask, waiting)):
                if count == 1:
                    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
                yield made

        run_grid(open_grid(tmp_path / "spread", ASK), work=work)
    assert same(alone, tmp_path / "spread")


def test_a_scheduler_of_its_own_process_gives_the_same(alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    at = tmp_path / "scheduler.json"
    python = (sys.executable, "-m")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(at)],
        env=environment, **quiet,
    )  # fmt: skip
    worker = subprocess.Popen(
        [*python, "distributed.cli.dask_worker", "--scheduler-file", str(at), "--nthreads", "1", "--no-dashboard"],
        env=environment, **quiet,
    )  # fmt: skip
    try:
        for _ in range(300):
            if at.exists() and at.stat().st_size:
                break
            time.sleep(0.1)
        address = json.loads(at.read_text())["address"]
        grid = open_grid(tmp_path / "spread", ASK)
        run_grid(grid, work=lambda ask, waiting: on_cluster(address, ask, waiting))
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(30)
    assert same(alone, tmp_path / "spread")


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ScenarioError, match=r"pip install \"moetrace\[dask\]\""):
        list(on_cluster("tcp://127.0.0.1:1", ASK, []))
