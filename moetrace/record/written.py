"""A recording is written: routing, trace, metadata, in a folder that takes its place whole or not at all."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from moetrace.errors import OutputError
from moetrace.record import capture
from moetrace.record.counted import Counted
from moetrace.record.files import RECORDING_FILE, ROUTING_FILE, TOKENS_FILE, publish

if TYPE_CHECKING:
    from torch.profiler import _KinetoProfile


def write(
    out: Path,
    folder: Path,
    told: dict[str, Any],
    *,
    counted: Counted | None,
    profiler: _KinetoProfile | None,
    others: Mapping[str, Path],
    force: bool,
) -> dict[str, Any]:
    """recording.json as written, `told` and the trace's name; all lies in `folder` first, which then becomes `out`.

    `others` are files copied in under a name. Raises OutputError.
    """
    try:
        if counted is not None:
            _write_routing(folder, counted)
        if profiler is not None:
            told = {**told, "trace": capture.export_trace(profiler, folder)}
        for name, path in others.items():
            shutil.copyfile(path, folder / name)
        text = orjson.dumps(told, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (folder / RECORDING_FILE).write_bytes(text)
        publish(folder, out, force)
    except OSError as failure:
        raise OutputError(
            f"{out}: the recording could not be written: {failure.strerror or failure}"
        ) from failure
    return told


def _write_routing(folder: Path, counted: Counted) -> None:
    routing = counted.routing()
    if routing is not None:
        routing.save(folder / ROUTING_FILE)
    if counted.has_tokens:
        counted.save_tokens(folder / TOKENS_FILE)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is done: what a first one ended is still written where a second one follows.

    Does nothing outside of the main thread, which is the only one that Ctrl-C reaches.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
