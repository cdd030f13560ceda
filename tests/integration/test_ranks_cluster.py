"""Ranks on real Dask clusters: one that loses a worker, and one whose scheduler is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moetrace.errors import TraceError
from moetrace.parse.ranks import parse_ranks, rank_files
from moetrace.run import Run
from tests.made import rank_traces, write

distributed = pytest.importorskip("distributed")
REPO = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "traces").mkdir()
    for rank, events in enumerate(rank_traces([100, 130, 110], clocks=[0, 70, 30])):
        write(
            tmp_path / "traces" / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 3}
        )
    return rank_files(tmp_path / "traces")


def test_a_lost_worker_loses_no_rank(files, tmp_path):
    alone = parse_ranks(files, tmp_path / "alone", jobs=1)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values())).pid
        killed = []

        def told(share):
            if not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(share)

        facts = parse_ranks(files, tmp_path / "out", scheduler=cluster.scheduler_address, progress=told)
    assert killed and facts == alone
    assert [Run.load(tmp_path / "out" / f"rank-{r}").num_rows for r in range(3)] == [6, 6, 6]
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_urls_need_no_shared_folder(files, tmp_path):
    """Workers start elsewhere, read the traces and write the RUNs by URL; one of them is lost on the way."""
    alone = parse_ranks(files, jobs=1)
    (tmp_path / "elsewhere").mkdir()
    source, out = (Path(f"file://{tmp_path}/{name}") for name in ("traces", "out"))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path / "elsewhere"
    ) as cluster:
        victim, killed = next(iter(cluster.workers.values())).pid, []

        def told(share):
            if not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(share)

        facts = parse_ranks(rank_files(source), out, scheduler=cluster.scheduler_address, progress=told)
    assert killed and facts == alone
    assert [Run.load(tmp_path / "out" / f"rank-{r}").num_rows for r in range(3)] == [6, 6, 6]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file()) == [
        "ranks.json",
        "ranks.parquet",
    ]


def test_a_scheduler_of_its_own_process(files, tmp_path, process):
    at = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    common = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    python = [sys.executable, "-m"]
    started = [
        subprocess.Popen(
            [
                *python,
                "distributed.cli.dask_scheduler",
                "--port",
                "0",
                "--no-dashboard",
                "--scheduler-file",
                str(at),
            ],
            **common,
        )
    ]
    try:
        for _ in range(300):
            if at.is_file() and at.stat().st_size:
                break
            time.sleep(0.1)
        started.append(
            subprocess.Popen(
                [
                    *python,
                    "distributed.cli.dask_worker",
                    "--scheduler-file",
                    str(at),
                    "--nthreads",
                    "1",
                    "--no-dashboard",
                ],
                **common,
            )
        )
        with distributed.Client(scheduler_file=str(at)) as client:
            address = client.scheduler.address
        answer = process("parse", files[0].parent, "-o", tmp_path / "out", "--scheduler", address)
    finally:
        for one in reversed(started):
            one.terminate()
            one.wait(30)
    assert answer.status == 0, answer.err
    assert "straggler: the others wait" in answer.out and "for rank 1" in answer.out


def test_a_damaged_rank_and_a_scheduler_that_is_not_there(files, tmp_path, process):
    files[1].write_text("no JSON")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        pytest.raises(TraceError, match=r"rank1\.json"),
    ):
        parse_ranks(files, tmp_path / "out", scheduler=cluster.scheduler_address)
    answer = process("parse", files[0].parent, "--scheduler", "tcp://127.0.0.1:1")
    assert answer.status == 2 and "no Dask scheduler answers" in answer.err and answer.err.count("\n") == 1
