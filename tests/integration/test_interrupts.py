"""However a parse of many ranks is ended, its workers end with it and nothing half-made stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.made import decode_trace, write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    events = decode_trace(layers=4, steps=40)
    for rank in range(6):
        write(folder / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 6})
    return folder


@pytest.mark.parametrize(
    ("number", "group", "status", "said"),
    [
        (signal.SIGINT, True, 130, "moetrace: error: interrupted\n"),  # Ctrl-C goes to the workers too
        (signal.SIGINT, False, 130, "moetrace: error: interrupted\n"),
        (signal.SIGTERM, False, 143, ""),  # as a batch system's end of time
    ],
)
def test_workers_and_files_go(
    traces: Path, tmp_path: Path, number: signal.Signals, group: bool, status: int, said: str
) -> None:
    child = _started(traces, tmp_path)
    (os.killpg if group else os.kill)(child.pid, number)
    _, err = child.communicate(timeout=30)  # the workers hold stderr too: it ends with the last of them
    assert (child.returncode, err) == (status, said)
    assert list(tmp_path.rglob("*")) == [tmp_path / "temporary"]


def test_workers_go_with_a_parent_that_was_killed(traces: Path, tmp_path: Path) -> None:
    child = _started(traces, tmp_path)
    child.kill()
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL


def test_the_next_parse_removes_what_a_killed_one_left(traces: Path, tmp_path: Path) -> None:
    child = _started(traces, tmp_path)
    child.kill()
    child.communicate(timeout=30)
    left = list((tmp_path / "out").iterdir())
    assert [path.name[:16] for path in left] == [".moetrace-ranks-"]
    (tmp_path / "out" / ".moetrace-ranks-mine").mkdir()  # no such name is made
    again = _parse(traces, tmp_path, "--force")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert not left[0].exists()
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")} == {
        ".moetrace-ranks-mine"
    }


def _started(traces: Path, folder: Path) -> subprocess.Popen[str]:
    """A parse of the ranks, whose workers have been asked to begin."""
    (folder / "temporary").mkdir()
    child = _parse(traces, folder)
    until = time.monotonic() + 30
    while not list(folder.glob("out/.moetrace-ranks-*")) and child.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.2)
    return child


def _parse(traces: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "moetrace", "parse", str(traces), "-o", "out", "--jobs", "2", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(REPO), "TMPDIR": str(folder / "temporary")},
        start_new_session=True,
    )
