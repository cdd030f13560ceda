"""Shared by all tests: the command line in this process and in one of its own, and the shipped recording."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Random search belongs to development; what gates a change must not depend on chance, nor on how busy the machine is.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("development", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "development")

REPO = Path(__file__).parents[1]
SHIPPED = REPO / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu"


def pytest_configure() -> None:
    """A shell's background job ignores interrupts, and so would every process that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(config: pytest.Config | None, val: object, argname: str) -> str | None:
    """Bytes never make a test's name: a gzip stamp in them would differ between the workers, which then refuse to start."""
    return argname if isinstance(val, bytes) else None


@dataclass(frozen=True)
class Answer:
    """What a run of the command line said."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The recording of OLMoE that ships with the project; `make demo` runs on it."""
    assert SHIPPED.is_dir(), f"{SHIPPED} is missing from the checkout"
    return SHIPPED


@pytest.fixture(scope="session")
def process() -> Callable[..., Answer]:
    """Runs `moetrace ARGS` as a process of its own, with a plain environment."""

    def run(*arguments: str | os.PathLike[str], cwd: Path | None = None, timeout: float = 120) -> Answer:
        environment = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "80"}
        done = subprocess.run(
            [sys.executable, "-m", "moetrace", *map(os.fspath, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs the command line in this process: faster, and a bug's traceback reaches pytest."""
    from moetrace.cli.main import run as cli_run

    def run(*arguments: str | os.PathLike[str]) -> Answer:
        capsys.readouterr()
        status = cli_run([os.fspath(a) for a in arguments])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def run_dir(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recording, parsed once. Read it; a test that writes copies it first."""
    from moetrace.parse import parse

    target = tmp_path_factory.mktemp("shipped") / "run"
    parse(shipped).save(target)
    return target
