"""Signals that ask a process to end: they end it in order, so that its temporary files and its workers go."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 143  # exit status: 128 + SIGTERM
_GRACE_S = 5.0


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


@contextmanager
def terminable() -> Iterator[None]:
    """A SIGTERM, as batch systems send, raises SystemExit in the main thread, unless the signal is handled already."""
    mine = threading.current_thread() is threading.main_thread() and os.name == "posix"
    if not mine or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and processes that are started meanwhile never see it: whoever started them ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def as_worker() -> None:
    """For a process that works for another: it ends in order when it is told to, or when the other one is gone.

    Until this is done there is nothing to put in order, and whoever called it would report the exception as its fault: told
    to end meanwhile, the process ends at once.
    """
    try:
        if os.name == "posix":
            signal.signal(signal.SIGTERM, _leave)
        threading.Thread(target=_follow, daemon=True).start()
    except SystemExit:
        os._exit(TERMINATED)


def _follow() -> None:
    from multiprocessing import parent_process  # slow to import, and only workers come here

    parent = parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(TERMINATED)
