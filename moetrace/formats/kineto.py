"""PyTorch profiler (Kineto) traces: Chrome trace JSON, plain, gzip or zstd, of the dialects since 2021, CUDA and ROCm.

Read in pieces: kineto_text cuts the file between events, kineto_rows makes columns of them (kineto_values: of their fields);
here is what stands around the list of events. Not read: flow events (links come from correlation ids, which are complete
where flows dangle), python_function events other than module calls, counters, memory events, host names and user names.
`ts` and `dur` are always microseconds, whatever displayTimeUnit says; baseTimeNanoseconds makes them absolute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson

from moetrace.errors import TraceError
from moetrace.formats.events import COLUMNS, Events
from moetrace.formats.kineto_rows import FAR, Rows, loads
from moetrace.formats.kineto_text import BLOCK, ZSTD, Layout, blocks, cuts, list_of_events
from moetrace.formats.kineto_values import whole

SUFFIXES = (".json", ".json.gz", ".json.zst", ".trace", ".pt.trace.json", ".pt.trace.json.gz", ".tmp")

_BOM = b"\xef\xbb\xbf"
_MAX_PIECE = (
    64 << 20
)  # bytes of one event, or of what stands before or after the events: real ones have a few KB
_MAX_TEXTS = 256 << 20  # bytes of distinct names: real traces have a few MB
_HINT = "record again; torch 2.13 writes invalid JSON when a name holds a quote, its use_python_export=True does not"


def sniff(head: bytes) -> bool:
    """Whether the first bytes of a file (decompressed, or of a zstd file as they are) look like a Chrome trace."""
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    return text[:1] in (b"{", b"[") or head.startswith(ZSTD)


def read(path: Path, progress: Callable[[float], object] | None = None) -> Events:
    """All events of a trace file. Raises TraceError with one line if it is not one, is empty, cut off or damaged.

    `progress` is told the share of the file's bytes that were read.
    """
    if not path.stat().st_size:
        raise TraceError(f"{path} is empty")
    reader = _Reader(path, blocks(path, progress))
    top = reader.read()
    info = top.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    devices = top.get("deviceProperties")
    events = reader.rows.builder.build(
        rank=whole(info.get("rank")),
        world_size=max(1, whole(info.get("world_size"), 1)),
        devices=tuple(d for d in devices if isinstance(d, dict)) if isinstance(devices, list) else (),
        metadata=_own_metadata(top),
    )
    return _absolute(events, whole(top.get("baseTimeNanoseconds")), reader.rows)


def _absolute(events: Events, base: int, rows: Rows) -> Events:
    """The events with the base added to their starts, and without those that then are beyond any clock."""
    low, high = max(-FAR - base, -(1 << 63)), min(FAR - base, (1 << 63) - 1)
    sound = (events.start > low) & (events.start < high)
    lost = len(sound) - int(np.count_nonzero(sound))
    counts = {"events": rows.count, "damaged": rows.damaged + lost}
    if lost:
        events = replace(events, **{name: getattr(events, name)[sound] for name in COLUMNS})
    return replace(events, start=events.start + base, counts=counts)


class _Reader:
    """One pass over a file: `rows` fills while `read` goes on. Holds little more than the piece being read."""

    def __init__(self, path: Path, source: Iterator[bytes]) -> None:
        self.rows = Rows()
        self._path = path
        self._source = source
        self._text = b""
        self._behind = 0  # bytes of the text that were taken already
        self._whole = False  # whether the text reaches to the file's end
        self._layout = Layout()

    def read(self) -> dict[str, Any]:
        """What stands around the list of events, which goes into `rows`."""
        self._fill(BLOCK)
        if not sniff(self._text[:64]) or self._text.startswith(ZSTD):
            raise TraceError(
                f"{self._path} is not a PyTorch profiler trace: expected JSON (.json or .json.gz) beginning with '{{' or '['"
            )
        self._drop(len(self._text) - len(self._text.removeprefix(_BOM).lstrip(b" \t\r\n")))
        if self._text.startswith(b"["):
            self._drop(1)
            self._events()
            return self._after(b"[]")
        top = self._before()
        self._events()
        return {**top, **self._after(b'{"":0')}

    # -- text --------------------------------------------------------------------------------------------------------
    def _fill(self, size: int) -> None:
        """Reads on until the text has so many bytes, or to the end."""
        parts, have = [self._text], len(self._text)
        while have < size and not self._whole:
            block = next(self._source, b"")
            self._whole = not block
            parts.append(block)
            have += len(block)
        self._text = b"".join(parts)

    def _grow(self, what: str) -> None:
        if len(self._text) >= _MAX_PIECE:
            raise TraceError(
                f"{self._path} is not a trace that can be read: {what} takes more than {_MAX_PIECE >> 20} MiB "
                f"(from byte {self._behind}), expected a few KB"
            )
        self._fill(2 * len(self._text) + BLOCK)

    def _drop(self, size: int) -> None:
        self._text = self._text[size:]
        self._behind += size

    # -- before, between, after --------------------------------------------------------------------------------------
    def _before(self) -> dict[str, Any]:
        """The entries before the list of events; the text then begins with the list's inside."""
        while (found := list_of_events(self._text)) is None:
            if self._whole:
                self._decoded(self._text)
                raise TraceError(
                    f"{self._path} is JSON but not a trace: it has no 'traceEvents' list (expected a PyTorch profiler "
                    "export)"
                )
            self._grow("what stands before 'traceEvents'")
        entry, inside = found
        top = self._decoded((self._text[:entry] or b"{") + b"}")
        self._drop(inside)
        return top if isinstance(top, dict) else {}

    def _events(self) -> None:
        """Takes the list of events, piece by piece, and its closing bracket."""
        fresh, ended = True, False
        while not ended:
            self._fill(BLOCK)
            comma = -1 if self._whole else self._layout.guess(self._text)
            if comma < 0 or not self._takes(self._text[:comma]):
                comma, ended = self._cut()
                piece = self._text[:comma]
                if (not piece.strip() and not (fresh and ended)) or not self._takes(piece):
                    self._broken(b"[" + piece + b"]", "damaged")
                if not ended:
                    self._layout.learn(self._text, comma)
            self._drop(comma + 1)
            fresh = False
            if self.rows.text_bytes > _MAX_TEXTS:
                raise TraceError(
                    f"{self._path} has more than {_MAX_TEXTS >> 20} MiB of different names: expected a few MB"
                )

    def _takes(self, piece: bytes) -> bool:
        """Whether a piece is a list of JSON values; if so, its events are taken."""
        try:
            self.rows.add(piece)
        except (ValueError, RecursionError):
            return False
        return True

    def _cut(self) -> tuple[int, bool]:
        """(the last comma between events or the list's closing bracket, whether it is the bracket), however far it is."""
        while True:
            found = cuts(self._text)
            if found.end >= 0:
                if self._text[found.end : found.end + 1] != b"]":
                    self._broken(b"[" + self._text[: found.end + 1], "damaged")
                return found.end, True
            if found.comma >= 0 and not self._whole:
                return found.comma, False
            if self._whole:
                self._broken(b"[" + self._text)
            if len(self._text) < 4 * BLOCK:
                self._check_open(b"[" + self._text)
            self._grow("one event")

    def _check_open(self, text: bytes) -> None:
        """Raises if a list that is still open is damaged before its end so far."""
        try:
            loads(text)
        except json.JSONDecodeError as err:
            if not err.msg.startswith("Unterminated") and err.pos < len(text) - 64:
                self._broken(text, "damaged")
        except RecursionError:
            self._broken(text)
        except ValueError:  # a number of thousands of digits, which only the lenient reader refuses
            return

    def _after(self, opening: bytes) -> dict[str, Any]:
        """The entries after the list of events, to the file's end; `opening` makes JSON of what is left."""
        while not self._whole:
            self._grow("what stands after the events")
        rest = self._decoded(opening + self._text)
        if isinstance(rest, list):
            return {}
        if rest.pop("traceEvents", None) is not None:
            raise TraceError(f"{self._path} has two entries 'traceEvents': expected one list of events")
        rest.pop("", None)
        return dict(rest)

    # -- errors ------------------------------------------------------------------------------------------------------
    def _decoded(self, text: bytes) -> Any:
        try:
            return loads(text)
        except (ValueError, RecursionError):
            self._broken(text)

    def _broken(self, text: bytes, kind: str = "") -> NoReturn:
        """Raises the one line that says what is wrong with a text that is no JSON, and where in the file."""
        try:
            json.loads(text.decode("utf-8", "replace"), strict=False)
        except json.JSONDecodeError as err:
            ends = text.rstrip().endswith((b"}", b"]"))
            more = err.msg == "Extra data"
            cut = "truncated" if not more and (err.pos >= len(text) - 2 or not ends) else "damaged"
            where = f"near byte {self._behind + err.pos}: {err.msg}"
            hint = _HINT if "delimiter" in err.msg else "record again"  # what a quote in a name leads to
            raise TraceError(f"{self._path} is {kind or cut} JSON ({where}): {hint}") from err
        except RecursionError:
            raise TraceError(f"{self._path} is not a trace: its JSON is nested too deeply") from None
        except ValueError as err:  # a number of thousands of digits
            raise TraceError(f"{self._path} is damaged JSON ({err}): record again") from err
        raise TraceError(f"{self._path} is damaged JSON (near byte {self._behind}): {_HINT}")


def _own_metadata(top: Mapping[str, Any]) -> Mapping[str, Any]:
    """What moetrace's recorder stored in the trace, if it did."""
    own = top.get("moetrace")
    if isinstance(own, str):
        try:
            own = orjson.loads(own)
        except orjson.JSONDecodeError:
            own = None
    return own if isinstance(own, dict) else {}
