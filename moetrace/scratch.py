"""Directories that a process holds while it makes something, so that the next one finds and removes what a killed one left.

A directory is held by a lock of the operating system on it, which ends with the process however that ends. Where the system
has no such locks (Windows, some network file systems) nothing that was left is removed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_RANDOM = "[a-z0-9_]{8}"  # what mkdtemp puts between
_held: dict[Path, int] = {}  # descriptors of the directories that this process holds


def held_directory(parent: Path, prefix: str, suffix: str = "") -> Path:
    """A new directory there, which this process holds. Removes those of its like that no process holds any more.

    Raises OSError where none can be made.
    """
    _sweep(parent, prefix, suffix)
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent)).resolve()
        lock = _lock(made)
        if lock is None:
            return made
        with suppress(FileNotFoundError):  # else another process swept it before it was held
            if os.path.samestat(os.fstat(lock), made.stat()):
                _held[made] = lock
                return made
        os.close(lock)


def let_go(made: Path) -> None:
    """Ends the holding of a directory, wherever it was moved."""
    lock = _held.pop(made, None)
    if lock is not None:
        os.close(lock)


def remove(made: Path) -> None:
    """Removes a directory that this process holds, if it is still there."""
    shutil.rmtree(made, ignore_errors=True)
    let_go(made)


def _sweep(parent: Path, prefix: str, suffix: str) -> None:
    like = re.compile(re.escape(prefix) + _RANDOM + re.escape(suffix))
    with suppress(OSError):
        for left in [
            p for p in parent.iterdir() if like.fullmatch(p.name) and p.is_dir() and not p.is_symlink()
        ]:
            lock = _lock(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds a directory; None where another process does, or where none can."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
