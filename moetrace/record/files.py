"""The directory of a recording: what it holds, and how it comes to stand there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from moetrace import files
from moetrace.files import staging
from moetrace.routing.tokens import TOKENS_FILE

TRACE_FILE = "trace.json.gz"
NSYS_FILE = "trace.sqlite"
ROUTING_FILE = "routing.parquet"
RECORDING_FILE = "recording.json"
CAPTURE_FILE = "capture.json.gz"  # the trace of a graph's capture
_OURS = (TRACE_FILE, NSYS_FILE, ROUTING_FILE, TOKENS_FILE, RECORDING_FILE, CAPTURE_FILE)

_RANK = r"rank-\d+"  # the recordings of a server's ranks


def rank_folder(made: Path, rank: int) -> Path:
    """The folder for one rank of several, which `parse` reads as such; made if it is not there."""
    folder = made / f"rank-{rank}"
    folder.mkdir(exist_ok=True)
    return folder


def check_output(out: Path, force: bool) -> None:
    """Raise OutputError unless `out` is free, or with `force` an older recording that may be replaced."""
    files.check_directory(out, force, _OURS, "a recording's", _RANK)


def publish(made: Path, out: Path, force: bool) -> None:
    """Rename a finished directory into place; the old one, if any, is set aside until that has worked."""
    files.publish(made, out, force, _OURS, "a recording's", _RANK)


__all__ = [
    "CAPTURE_FILE", "NSYS_FILE", "RECORDING_FILE", "ROUTING_FILE", "TOKENS_FILE", "TRACE_FILE",
    "check_output", "publish", "rank_folder", "staging",
]  # fmt: skip
