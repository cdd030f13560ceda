"""The exceptions a user may meet. Every message names the file or value, what was expected and what to do.

The command line prints one line of them and exits with status 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches


class MoetraceError(Exception):
    """Root of all errors that are the user's to mend."""


class TraceError(MoetraceError):
    """A trace file that cannot be read: absent, empty, cut off, or of another kind."""


class RunError(MoetraceError):
    """A RUN directory that is missing, incomplete, or of another schema version."""


class ModelError(MoetraceError):
    """A model config that is unknown or lacks a field."""


class ProfileError(MoetraceError):
    """A hardware profile that is unknown, has an unknown key or a nonsensical value."""


class ScenarioError(MoetraceError):
    """A knob that is unknown, given twice, or cannot apply to this run or machine."""


class CalibrationError(MoetraceError):
    """Measurements that cannot be read, or that do not determine what is to be fitted to them."""


class OutputError(MoetraceError):
    """An output that exists already or cannot be written."""


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist: first what it begins with or is spelled like, then all there are."""
    names = sorted(known)
    plain = {name.casefold(): name for name in names}
    said = given.strip().casefold()
    # b200-sxm is b200 and more
    begin = sorted((name for name in plain if said.startswith(name) and 2 * len(name) >= len(said)), key=len)
    longer = [name for name in plain if said and name.startswith(said)]  # qwen3-235b-a22b of qwen3-235b
    near = begin[-1:] or (longer if len(longer) == 1 else get_close_matches(said, plain, n=1))
    hint = f"did you mean {plain[near[0]]!r}? " if near else ""
    return f"unknown {what} {given!r}: {hint}there are {', '.join(names) or 'none'}"


def plainly(error: Exception) -> str:
    """What an exception says in a line; what the system refused in the system's own words, without its number and the file."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return next(iter(str(error).splitlines()), "") or type(error).__name__
