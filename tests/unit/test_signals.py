"""Processes that are told to end."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from moetrace import signals


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_worker_that_is_ended_as_it_begins_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who called as_worker would print the exception as a fault of it."""

    def ended(_thread: threading.Thread) -> None:
        raise SystemExit(signals.TERMINATED)

    left: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(threading.Thread, "start", ended)
    monkeypatch.setattr("os._exit", left.append)
    try:
        signals.as_worker()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left == [signals.TERMINATED]
