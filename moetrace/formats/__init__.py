"""Trace formats: bytes on disk -> Events. A new format is one file here with `sniff` and `read`, and its name below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from moetrace.errors import TraceError
from moetrace.formats import kineto
from moetrace.formats.events import Events

FORMATS: tuple[ModuleType, ...] = (kineto,)


def read(path: Path, progress: Callable[[float], object] | None = None) -> Events:
    """The events of a trace file of any known format. Raises TraceError if it is missing or of no known format."""
    if not path.exists():
        raise TraceError(f"{path} does not exist")
    if not path.is_file():
        raise TraceError(
            f"{path} is not a file: expected a trace ({', '.join(kineto.SUFFIXES[:2])}) or a moetrace run"
        )
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"SQLite format 3"):
        raise TraceError(
            f"{path} is an SQLite file (nsys export?): this version reads PyTorch profiler traces only"
        )
    events: Events = kineto.read(path, progress)
    return events


__all__ = ["FORMATS", "Events", "read"]
