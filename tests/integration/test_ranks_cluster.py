"""Ranks on real Dask clusters: one that loses a worker, and one whose scheduler is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
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


@contextmanager
def cluster_of_processes(folder, *options):
    """(scheduler's address) of a scheduler and a worker, each a process of its own."""
    at = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    started = []

    def start(module, *more):
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.{module}",
            "--scheduler-file",
            str(at),
            "--no-dashboard",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*command, *options, *more], env=environment, **quiet))

    try:
        start("dask_scheduler", "--port", "0")
        for _ in range(300):
            if at.is_file() and at.stat().st_size:
                break
            time.sleep(0.1)
        start("dask_worker", "--nthreads", "1")
        yield json.loads(at.read_text())["address"]
    finally:
        for one in reversed(started):
            one.terminate()
            one.wait(30)


def test_a_scheduler_of_its_own_process(files, tmp_path, process):
    with cluster_of_processes(tmp_path) as address:
        answer = process("parse", files[0].parent, "-o", tmp_path / "out", "--scheduler", address)
    assert answer.status == 0, answer.err
    assert "straggler: the others wait" in answer.out and "for rank 1" in answer.out


def test_tls_of_dask_s_own_configuration(files, tmp_path, process, monkeypatch):
    """Scheduler and worker are started with certificates; moetrace finds its own where Dask's configuration says."""
    security, named = distributed.Security.temporary(), {}
    for option, text in (
        ("ca-file", security.tls_ca_file),
        ("cert", security.tls_scheduler_cert),
        ("key", security.tls_scheduler_key),
    ):
        named[option] = tmp_path / f"{option}.pem"
        named[option].write_text(text)
    options = [word for option, file in named.items() for word in (f"--tls-{option}", str(file))]
    with cluster_of_processes(tmp_path, "--protocol", "tls", *options) as address:
        assert address.startswith("tls://")
        arguments = ("parse", files[0].parent, "-o", tmp_path / "out", "--scheduler", address)
        bare = process(*arguments)
        for name, option in (("CA_FILE", "ca-file"), ("CLIENT__CERT", "cert"), ("CLIENT__KEY", "key")):
            monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(named[option]))
        answer = process(*arguments)
    assert bare.status == 2 and len(bare.error_lines) == 1 and address in bare.err, bare.err
    assert answer.status == 0, answer.err
    assert "for rank 1" in answer.out and Run.load(tmp_path / "out" / "rank-2").num_rows == 6


def test_a_damaged_rank_and_a_scheduler_that_is_not_there(files, tmp_path, process):
    files[1].write_text("no JSON")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        pytest.raises(TraceError, match=r"rank1\.json"),
    ):
        parse_ranks(files, tmp_path / "out", scheduler=cluster.scheduler_address)
    answer = process("parse", files[0].parent, "--scheduler", "tcp://127.0.0.1:1")
    assert answer.status == 2 and "no Dask scheduler answers" in answer.err and answer.err.count("\n") == 1
