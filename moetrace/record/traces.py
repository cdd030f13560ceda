"""The traces that an engine writes: which are new, whose rank's they are, when they are whole; copied without names."""

from __future__ import annotations

import gzip
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moetrace.errors import MoetraceError
from moetrace.record import capture

_PATTERN = "*.trace.json*"
_CAPTURES = "capture_traces"  # vLLM's folder for them
# The places of a rank, in the order in which ranks are numbered; the names of vLLM, SGLang and torch.
_PLACES = tuple(
    re.compile(rf"(?i)(?<![a-z0-9]){name}[-_]?(\d+)") for name in ("dp", "pp", "tp", "ep", "rank")
)
_POLL_S = 0.5
_QUIET_S = 3.0  # how long nothing may change where the engine does not say how many traces come


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

    def keep(self, place: Callable[[int, int], Path], timeout: float, expected: int) -> dict[str, Any]:
        """Copy each rank's new trace to `place(rank, ranks)` once all are whole; what is known of them.

        Waits until there are as many as the engine was `expected` to write or, where that is 0, none has come for a while.
        Raises MoetraceError after `timeout`.
        """
        deadline, changed = time.monotonic() + timeout, time.monotonic()
        seen: dict[Path, tuple[int, int]] = {}
        why = "no new trace came"
        while True:
            now = {
                p: s
                for p, s in self._state().items()
                if self._before.get(p) != s and _CAPTURES not in p.parts
            }
            ranks, late = by_rank(list(now)), time.monotonic() > deadline
            if now != seen:
                changed = time.monotonic()
            quiet = late or (len(ranks) >= expected if expected else time.monotonic() - changed >= _QUIET_S)
            if ranks and now == seen and quiet:
                broken = next((p for p in ranks if not is_whole(p)), None)
                if broken is None:
                    for rank, path in enumerate(ranks):
                        keep_trace(path, place(rank, len(ranks)))
                    return {
                        "ranks": len(ranks),
                        "expected_ranks": max(expected, len(ranks)),
                        "files": len(now),
                    }
                why = f"{broken.name} stayed incomplete"
            if late:
                raise MoetraceError(
                    f"{self.folder}: {why} within {timeout:g} s (does the server write its traces there?)"
                )
            seen = now
            time.sleep(_POLL_S)

    def captures(self) -> list[Path]:
        """vLLM's traces of a graph capture, the newest of each rank, if it was started to make them."""
        return by_rank([p for p in self._state() if _CAPTURES in p.parts])

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


def by_rank(paths: list[Path]) -> list[Path]:
    """One trace of each rank, in their order; the decode stage's where stages are apart; never vLLM's front end's."""
    found: dict[tuple[int, ...], Path] = {}
    for path in sorted(paths, key=lambda p: ("DECODE" in p.name, p.stat().st_mtime_ns)):
        if "async_llm" not in path.name:
            found[tuple(int(m[-1]) if (m := at.findall(path.name)) else 0 for at in _PLACES)] = path
    return [found[place] for place in sorted(found)]


def is_whole(path: Path) -> bool:
    """Whether a trace was written to its end, as far as its compression tells."""
    if path.suffix != ".gz":
        return True
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return True


def keep_trace(source: Path, target: Path) -> None:
    """Copy a trace, line by line, without the names of host and user."""
    with (
        source.open("rb") as raw,
        gzip.GzipFile(fileobj=raw) if source.suffix == ".gz" else raw as lines,
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as out,
    ):
        for line in lines:
            out.write(capture.without_owner(line))
