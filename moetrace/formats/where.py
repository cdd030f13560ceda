"""Where a trace lies: a file, named by itself, by a pattern or by its folder, or a URL; and what lies beside it."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from moetrace.errors import TraceError
from moetrace.files import url_of
from moetrace.formats.kineto_json import loads
from moetrace.formats.kineto_mend import PH
from moetrace.formats.kineto_text import Blocks
from moetrace.formats.remote import Remote, files_at, remote_file

_TRACES = re.compile(r".*\.(json|trace|tmp|sqlite|nsys-rep|qdrep)(\.gz|\.zst)?", re.IGNORECASE)
_JSON = re.compile(r".*\.json(\.gz|\.zst)?", re.IGNORECASE)
_NO_TRACES = ("run.json", "recording.json")  # what moetrace itself writes beside traces
_EVENTS = b'"traceEvents"'
# Bytes of a file that is looked through for events: a tokenizer.json has 20 MB at most.
_MOST_BESIDE = 32 << 20
_OVERLAP = 64  # bytes in which what is looked for lies, where it is cut by the end of a block
_SHOWN = 3


def located(path: Path) -> Path | Remote:
    """The file that a path means: a URL's, a pattern's one match, the one trace in a folder, else the path itself.

    Raises TraceError with one line where a pattern or a folder means none or several, or a URL cannot be opened.
    """
    url = url_of(path)
    if url is not None:
        return remote_file(url)
    if not path.exists() and glob.has_magic(str(path)):
        found = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
        return _one([p for p in found if p.is_file()], f"{path} matches", "the pattern")
    return path


def trace_in(folder: Path) -> Path:
    """The one trace file in a folder. Raises TraceError if there is none or several."""
    found = [p for p in folder.iterdir() if p.is_file() and is_trace_name(p.name)]
    return _one(found, f"{folder} holds", "a folder")


def is_trace_name(name: str) -> bool:
    """Whether a file of this name is taken for a trace."""
    return _TRACES.fullmatch(name.rstrip("/").rsplit("/", 1)[-1]) is not None and name not in _NO_TRACES


def is_beside(path: Path | Remote) -> bool:
    """Whether a file only lies beside traces: sound JSON without an event, such as a model's config or an engine's metrics.

    A damaged file is none of these: it may have been a trace.
    """
    if not _JSON.fullmatch(path.name):
        return False
    source, text = Blocks(path), bytearray()
    for block in source:
        begin = max(0, len(text) - _OVERLAP)
        text += block
        if text.find(_EVENTS, begin) >= 0 or PH.search(text, begin) or len(text) > _MOST_BESIDE:
            return False
    if source.trouble:
        return False
    try:
        loads(bytes(text))
    except (ValueError, RecursionError):
        return False
    return True


def traces_at(path: Path) -> list[Path | Remote]:
    """All trace files that a path means: those in a folder, those that a pattern matches, ascending; else the one file.

    Raises TraceError where a folder or pattern has none, or a URL cannot be opened.
    """
    if (url := url_of(path)) is not None:
        files: list[Path | Remote] = [f for f in files_at(url) if _TRACES.fullmatch(f.name)]
        return files or [remote_file(url)]
    if path.is_dir():
        found = path.iterdir()
    elif not path.exists() and glob.has_magic(str(path)):
        found = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
    else:
        return [path]
    traces = sorted(p for p in found if p.is_file() and is_trace_name(p.name))
    if not traces:
        raise TraceError(f"{path} holds no trace file")
    return list(traces)


def _one(found: list[Path], said: str, what: str) -> Path:
    if len(found) > 1:
        found = [p for p in found if not is_beside(p)] or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(p.name for p in found)[:_SHOWN]) + (", ..." if found[_SHOWN:] else "")
    if not found:
        raise TraceError(
            f"{said} no trace file: expected one (.json, .sqlite, either with .gz, .nsys-rep), or a RUN of 'moetrace parse'"
        )
    raise TraceError(f"{said} {len(found)} files ({names}): expected one trace for {what}, give one of them")
