"""Directories held while something is made: what a living process has stays, what a killed one left goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moetrace import scratch
from moetrace.files import publish, staging
from moetrace.scratch import held_directory, let_go, remove
from tests.conftest import REPO

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks and signals of POSIX")
_HOLD = """
import sys, time
from pathlib import Path
from moetrace.scratch import held_directory
made = held_directory(Path(sys.argv[1]), ".run.", ".part")
(made / "ops.parquet").write_bytes(b"half")
print(made, flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a directory, and the directory."""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    child, left = holder(tmp_path)
    other = held_directory(tmp_path, ".run.", ".part")
    assert left.is_dir() and other.is_dir()  # its process lives
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (left / "ops.parquet").exists()
    strangers = [
        tmp_path / ".run.12345678.part.txt",
        tmp_path / ".other.abcdefgh.part",
        tmp_path / ".run.toolongname.part",
    ]
    for path in strangers:
        path.mkdir()
    third = held_directory(tmp_path, ".run.", ".part")
    assert not left.exists() and other.is_dir() and all(path.is_dir() for path in strangers)
    remove(other)
    remove(third)
    assert sorted(tmp_path.iterdir()) == sorted(strangers)


def test_a_directory_that_was_swept_before_it_was_held_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, swept = scratch._lock, []

    def late(folder: Path) -> int | None:
        lock = real(folder)
        if not swept:
            swept.append(folder)
            folder.rmdir()
        return lock

    monkeypatch.setattr(scratch, "_lock", late)
    made = held_directory(tmp_path, ".run.", ".part")
    assert made.is_dir() and made not in swept and list(tmp_path.iterdir()) == [made]
    remove(made)


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = held_directory(tmp_path, ".run.", ".part")
    let_go(left)
    monkeypatch.setattr(scratch, "_lock", lambda _folder: None)
    made = held_directory(tmp_path, ".run.", ".part")
    assert left.is_dir() and made.is_dir()
    remove(made)
    monkeypatch.undo()
    remove(held_directory(tmp_path, ".run.", ".part"))
    assert not list(tmp_path.iterdir())


def test_what_is_published_is_held_no_more(tmp_path: Path) -> None:
    before = set(scratch._held)
    for _ in range(3):
        made = staging(tmp_path / "run")
        publish(made, tmp_path / "run", force=True)
    assert set(scratch._held) == before and [path.name for path in tmp_path.iterdir()] == ["run"]
