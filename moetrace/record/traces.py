"""The traces that an engine writes: which are new, which is rank 0's, when they are whole; copied without names."""

from __future__ import annotations

import gzip
import re
import time
import zlib
from pathlib import Path
from typing import Any

from moetrace.errors import MoetraceError
from moetrace.record import capture

_PATTERN = "*.trace.json*"
_CAPTURES = "capture_traces"  # vLLM's folder for them
_RANK = re.compile(r"(?:TP-|rank_?|tp)(\d+)")
_POLL_S = 0.5


class Traces:
    """The trace files in `folder` (and below) that came after `mark`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._before: dict[Path, tuple[int, int]] = {}
        if not folder.is_dir():
            raise MoetraceError(
                f"--trace-dir {folder}: no such folder here (it must be the one that the server sees)"
            )

    def mark(self) -> None:
        """Take what is there now as old."""
        self._before = self._state()

    def keep(self, target: Path, timeout: float) -> dict[str, Any]:
        """Copy rank 0's new trace to `target` once it is whole; what is known of it. Raises MoetraceError after `timeout`."""
        deadline = time.monotonic() + timeout
        seen: dict[Path, tuple[int, int]] = {}
        why = "no new trace came"
        while True:
            now = {
                p: s
                for p, s in self._state().items()
                if self._before.get(p) != s and _CAPTURES not in p.parts
            }
            found = rank_zero(list(now))
            if found is not None and now == seen:
                try:
                    keep_trace(found, target)
                except (EOFError, zlib.error, gzip.BadGzipFile):
                    why = f"{found.name} stayed incomplete"
                else:
                    return {"ranks": len(_ranks(list(now))), "files": len(now)}
            if time.monotonic() > deadline:
                raise MoetraceError(
                    f"{self.folder}: {why} within {timeout:g} s (does the server write its traces there?)"
                )
            seen = now
            time.sleep(_POLL_S)

    def capture(self) -> Path | None:
        """vLLM's newest trace of a graph capture, if it was started to make one."""
        found = [p for p in self._state() if _CAPTURES in p.parts]
        return max(found, key=lambda p: p.stat().st_mtime_ns, default=None)

    def _state(self) -> dict[Path, tuple[int, int]]:
        """(size, time of change) of every trace file there is."""
        state = {}
        for path in self.folder.rglob(_PATTERN):
            try:
                stat = path.stat()
            except OSError:  # renamed meanwhile
                continue
            if path.is_file() and path.name.endswith((".json", ".json.gz")):
                state[path] = (stat.st_size, stat.st_mtime_ns)
        return state


def rank_zero(paths: list[Path]) -> Path | None:
    """The trace of the lowest rank, the decode stage's where stages are apart; never that of vLLM's front end."""
    workers = [p for p in paths if "async_llm" not in p.name]
    if not workers:
        return None
    return min(workers, key=lambda p: (_rank(p), "DECODE" not in p.name, -p.stat().st_mtime_ns))


def _rank(path: Path) -> int:
    numbers = _RANK.findall(path.name)
    return max((int(n) for n in numbers), default=0)


def _ranks(paths: list[Path]) -> set[int]:
    return {_rank(p) for p in paths if "async_llm" not in p.name}


def keep_trace(source: Path, target: Path) -> None:
    """Copy a trace, line by line, without the names of host and user. Raises EOFError if its gzip is cut off."""
    with (
        source.open("rb") as raw,
        gzip.GzipFile(fileobj=raw) if source.suffix == ".gz" else raw as lines,
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as out,
    ):
        for line in lines:
            out.write(capture.without_owner(line))
