"""A user's own program, run in this process under the recorder as ``python`` would run it.

Nothing in the program changes: its arguments, its ``__main__``, its output and its exit status are its own. Not
followed: processes that it starts, and forwards on several threads at once.
"""

from __future__ import annotations

import runpy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from moetrace.errors import MoetraceError
from moetrace.record.recorder import Recorder
from moetrace.record.settings import Settings
from moetrace.signals import terminable

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Program:
    """A script's path or, with `is_module`, a module's name, and its arguments."""

    name: str
    arguments: tuple[str, ...] = ()
    is_module: bool = False

    def command(self) -> list[str]:
        """As on the command line."""
        return [*(("-m",) if self.is_module else ()), self.name, *self.arguments]


@dataclass(slots=True)
class Ran:
    """How a program ended, and what was recorded of it (None: nothing)."""

    status: int = 0
    error: BaseException | None = None
    recording: dict[str, Any] | None = None
    said: str = ""  # why nothing was recorded or kept


@dataclass(slots=True)
class _Held:
    """Keeps what a block raises instead of raising it: the program's end is not the recorder's."""

    error: BaseException | None = field(default=None)

    def __enter__(self) -> _Held:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


def run_program(program: Program, out: Path, settings: Settings) -> Ran:
    """Run a program under the recorder; what was captured is written to `out` however it ends.

    Raises MoetraceError before the program starts if it is not there or `out` cannot be written; afterwards a
    failure of the recording is told in the answer, so that the program's own end is not lost.
    """
    _check(program)
    ran = Ran()
    recorder = Recorder(out.absolute(), settings)  # the program may change the directory
    # The program's names: what models it holds is looked at when the recording is written.
    left: list[object] = []
    try:
        with recorder:
            with _Held() as held, _as_main(program), terminable():
                left.append(_execute(program))
                _wait_for_threads()
            ran.error, ran.status = held.error, _status(held.error)
            if ran.status:
                recorder.ended = type(held.error).__name__
        ran.recording = recorder.told
    except MoetraceError as failure:
        if not recorder.entered:
            raise
        ran.said = str(failure)
    return ran


def _check(program: Program) -> None:
    if not program.is_module and not Path(program.name).exists():
        raise MoetraceError(f"{program.name}: no such script (give a module with -m NAME)")
    if (
        not program.is_module
        and Path(program.name).is_dir()
        and not Path(program.name, "__main__.py").exists()
    ):
        raise MoetraceError(f"{program.name}: a directory without __main__.py, so there is no script to run")


def _execute(program: Program) -> dict[str, Any]:
    if program.is_module:
        return runpy.run_module(program.name, run_name="__main__", alter_sys=True)
    return runpy.run_path(program.name, run_name="__main__")


@contextmanager
def _as_main(program: Program) -> Iterator[None]:
    """sys.argv and sys.path as the program would find them."""
    arguments, path = sys.argv, list(sys.path)
    sys.argv = [program.name, *program.arguments]
    sys.path[0] = str(Path.cwd()) if program.is_module else str(Path(program.name).resolve().parent)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = arguments, path


def _wait_for_threads() -> None:
    """Python itself waits for these before it ends; a model may still generate on one."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _status(error: BaseException | None) -> int:
    """The exit status that python would give."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
