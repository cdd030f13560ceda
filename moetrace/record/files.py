"""The directory of a recording: what it holds, and how it comes to stand there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from moetrace.errors import OutputError

TRACE_FILE = "trace.json.gz"
ROUTING_FILE = "routing.parquet"
RECORDING_FILE = "recording.json"


def check_output(out: Path, force: bool) -> None:
    """Raise OutputError unless `out` is free, or with `force` an older recording that may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise OutputError(
            f"{out} exists already: name another output, or replace it with --force (force=True)"
        )
    ours = {TRACE_FILE, ROUTING_FILE, RECORDING_FILE}
    if not out.is_dir():
        raise OutputError(f"{out} is not a directory, so it is not a recording and is not replaced")
    other = sorted(entry.name for entry in out.iterdir() if entry.name not in ours)
    if other:
        raise OutputError(f"{out} holds {other[0]!r}, which is no part of a recording: it is not replaced")


def publish(made: Path, out: Path, force: bool) -> None:
    """Rename a finished directory into place; the old one, if any, is set aside until that has worked."""
    check_output(out, force)
    old = made.with_name(made.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        made.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def staging(out: Path) -> Path:
    """A new directory beside `out`: a bad path fails before the run, and the last act is one rename."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        made.chmod(0o755)
    except OSError as failure:
        raise OutputError(f"{out}: cannot write there: {failure.strerror}") from failure
    return made
