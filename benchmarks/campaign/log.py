"""points.jsonl: what the campaign has done, what broke off, and what is left."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from clocks import Clocks

from moetrace import __version__
from moetrace.errors import MoetraceError
from moetrace.files import write_parquet

_TRIES = 3  # of a point that fails, over all runs
_PART_BYTES = 15 << 20  # of a packed file
_CANNOT = (RuntimeError, ValueError, NotImplementedError, AttributeError, TypeError, MoetraceError)
_BROKE_OFF = "was begun and did not end: killed, or it hung"


class BrokenDeviceError(Exception):
    """The device does nothing more in this process."""


class NoKernelsError(Exception):
    """The profiler sees no kernel on this machine."""


class Log:
    """What is done is not done again; what failed says why, and is tried again by later runs, behind all that is new."""

    def __init__(
        self, folder: Path, minutes: float | None, hardware: str, clocks: Clocks | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.hardware = folder, hardware
        self._clocks = clocks
        self._path = folder / "points.jsonl"
        text = self._path.read_text() if self._path.exists() else ""
        if text and not text.endswith("\n"):  # a run was killed while it wrote
            self._path.write_text(text[: text.rfind("\n") + 1])
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._tries: Counter[tuple[str, str]] = Counter()
        for row in _whole(text.splitlines()):
            at = row["part"], row["key"]
            if row.pop("begun", False):
                self._tries[at] += 1
                row["error"] = _BROKE_OFF
            self.rows[at] = row
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.made, self.left = 0, 0

    def tries(self, part: str, key: str) -> int:
        """How often a point was begun before this run."""
        return self._tries[part, key]

    def wanted(self, part: str, key: str) -> bool:
        """Whether a point is still to be done, and there is time for it."""
        row = self.rows.get((part, key))
        if row is not None and ("error" not in row or self._tries[part, key] >= _TRIES):
            return False
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.left += 1
            return False
        return True

    def point(self, part: str, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Do a point and write it down; one that the machine cannot do is written down with its error.

        Raises BrokenDeviceError where nothing more can be done in this process, NoKernelsError where traces are of no use.
        """
        if not self.wanted(part, key):
            return
        row: dict[str, Any] = {"part": part, "key": key, "hardware": self.hardware}
        self._write({**row, "begun": True})
        began, blind = time.monotonic(), False
        try:
            row |= make()
        except (*_CANNOT, NoKernelsError) as failure:
            row["error"] = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            blind = isinstance(failure, NoKernelsError)
        if self._clocks is not None:
            row |= self._clocks.since(began)
        self.rows[part, key] = row
        self.made += 1
        self._write(row)
        print(f"{part}: {key}: {row.get('error') or _told(row)}", flush=True)
        if "error" in row:
            _free()  # here, for the failure's frames held what it had allocated
        if blind:
            raise NoKernelsError(row["error"])

    def _write(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def tables(self) -> None:
        """decode.parquet and ops.parquet from all that was done so far."""
        for part in ("decode", "ops"):
            rows = [row for (where, _), row in self.rows.items() if where == part and "error" not in row]
            if rows:
                frame = pd.DataFrame(rows).drop(columns=["part", "key"])
                meta = {"moetrace.campaign": f"{part}/1", "moetrace": __version__}
                write_parquet(
                    pa.Table.from_pandas(frame, preserve_index=False), self.folder / f"{part}.parquet", meta
                )

    def summary(self) -> str:
        failed = sum("error" in row for row in self.rows.values())
        return f"{self.folder}: {self.made} points now, {len(self.rows)} in all, {failed} failed, {self.left} left"


def pack(folder: Path, out: Path) -> list[Path]:
    """The folder as a few tar files of at most 15 MiB in `out` (a larger file has one of its own): what is easy to carry."""
    out.mkdir(parents=True, exist_ok=True)
    parts: list[list[Path]] = [[]]
    held = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size + 2 * tarfile.BLOCKSIZE
        if parts[-1] and held + size > _PART_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(path)
        held += size
    made = []
    for number, paths in enumerate(parts):
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for path in paths:
                tar.add(path, arcname=str(path.relative_to(folder)), recursive=False)
        made.append(out / f"campaign-{number}.tar")
        made[-1].write_bytes(whole.getvalue())
    return made


def _free() -> None:
    """Gives back what a failed point held. Raises BrokenDeviceError if the device answers nothing any more."""
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as failure:
        raise BrokenDeviceError(str(failure).splitlines()[0]) from failure


def _whole(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The lines that were written to their end."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "key" in row and "part" in row:
            yield row


def _told(row: dict[str, Any]) -> str:
    return f"{1e6 * row['seconds']:.1f} us" if "seconds" in row else str(row.get("bytes", "done"))
