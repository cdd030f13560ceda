"""PyTorch profiler (Kineto) traces: Chrome trace JSON, plain, gzip or zstd, of the dialects since 2021, CUDA and ROCm.

Read in pieces: kineto_text cuts the file between events, kineto_rows makes columns of them (kineto_values: of their fields);
here is what stands around the list of events. Not read: flow events (links come from correlation ids, which are complete
where flows dangle), python_function events other than module calls, counters, memory events, host names and user names.
A damaged event costs that event, and a file that is cut off gives what it holds: `counts` says how much was lost.
`ts` and `dur` are always microseconds, whatever displayTimeUnit says; baseTimeNanoseconds makes them absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import orjson

from moetrace.errors import TraceError
from moetrace.formats.events import Events, Stored
from moetrace.formats.kineto_json import loads
from moetrace.formats.kineto_mend import EVENT, LIST_OF_EVENTS, PH, ends_list, entries, mend
from moetrace.formats.kineto_rows import Rows
from moetrace.formats.kineto_text import BLOCK, ZSTD, Blocks, Layout, cuts, list_of_events
from moetrace.formats.kineto_values import whole
from moetrace.formats.piles import Spill
from moetrace.formats.remote import Remote

SUFFIXES = (".json", ".json.gz", ".json.zst", ".trace", ".pt.trace.json", ".pt.trace.json.gz", ".tmp")

_BOM = b"\xef\xbb\xbf"
# Bytes of one event, or of what stands before or after the events: real ones have a few KB.
_MAX_PIECE = 8 << 20
_PATIENCE = 1 << 20  # bytes in which an event ends, or the list of events begins, if nothing is damaged
_MAX_TEXTS = 256 << 20  # characters of distinct names that memory holds: real traces have a few million
_FACTS = ("distributedInfo", "deviceProperties", "baseTimeNanoseconds", "moetrace", "displayTimeUnit")


def sniff(head: bytes) -> bool:
    """Whether the first bytes of a file (decompressed, or of a zstd file as they are) look like a Chrome trace."""
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    return text[:1] in (b"{", b"[") or head.startswith(ZSTD)


def read(
    path: Path | Remote, progress: Callable[[float], object] | None = None, spill: Spill | None = None
) -> Events | Stored:
    """All sound events of a trace file. Raises TraceError with one line if it is not one, or holds no event that is whole.

    `progress` is told the share of the file's bytes that were read. With a `spill` a long trace is stored there, else all of
    it is held in memory.
    """
    if not path.stat().st_size:
        raise TraceError(f"{path} is empty")
    reader = _Reader(path, Blocks(path, progress), spill)
    top = reader.read()
    info = top.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    devices = top.get("deviceProperties")
    rows = reader.rows
    return rows.builder.build(
        whole(top.get("baseTimeNanoseconds")),
        rank=whole(info.get("rank")),
        world_size=max(1, whole(info.get("world_size"), 1)),
        devices=tuple(d for d in devices if isinstance(d, dict)) if isinstance(devices, list) else (),
        metadata=_own_metadata(top),
        counts={"events": rows.count, "damaged": rows.damaged, **rows.told(), **reader.losses()},
    )


class _Reader:
    """One pass over a file: `rows` fills while `read` goes on. Holds little more than the piece being read."""

    def __init__(self, path: object, source: Blocks, spill: Spill | None = None) -> None:
        self.rows = Rows(spill)
        self._path = path
        self._source = source
        self._blocks = iter(source)
        self._text = b""
        self._behind = 0  # bytes of the text that were taken already
        self._whole = False  # whether the text reaches to the file's end
        self._layout = Layout()
        self._lost = 0  # bytes of the text that hold nothing sound
        self._cut_off = False  # whether the list of events has no end
        self._why = ""  # what is known of damage, in an error
        self._skipping = False  # whether the text begins within an event that is too long to be one

    def losses(self) -> dict[str, int]:
        """What was lost, in bytes; nothing for a file that is sound: of its text, and of the packed file behind damage."""
        lost = {
            "lost_bytes": self._lost, "cut_off": int(self._cut_off), "packed_damage": int(bool(self._source.trouble)),
            "unread_bytes": self._source.unread,
        }  # fmt: skip
        return {**lost, "bytes": self._behind, "file_bytes": self._source.size} if any(lost.values()) else {}

    def read(self) -> dict[str, Any]:
        """What stands around the list of events, which goes into `rows`."""
        self._fill(BLOCK)
        if not sniff(self._text[:64]) or self._text.startswith(ZSTD):
            raise TraceError(
                self._source.trouble
                or f"{self._path} is not a PyTorch profiler trace: expected JSON (.json or .json.gz) beginning with '{{' or '['"
            )
        self._drop(len(self._text) - len(self._text.removeprefix(_BOM).lstrip(b" \t\r\n")))
        bare = self._text.startswith(b"[")
        top = self._list() if bare else self._before()
        self._events()
        top |= self._after(b"[]" if bare else b'{"":0')
        if (self._cut_off or self._lost or self._source.trouble) and not self.rows.found:
            self._refuse()
        return top

    def _refuse(self) -> NoReturn:
        raise TraceError(
            self._source.trouble
            or f"{self._path} is truncated or damaged JSON that holds no whole event{self._why}: record again"
        )

    # -- text --------------------------------------------------------------------------------------------------------
    def _fill(self, size: int) -> None:
        """Reads on until the text has so many bytes, or to the end."""
        parts, have = [self._text], len(self._text)
        while have < size and not self._whole:
            block = next(self._blocks, b"")
            self._whole = not block
            parts.append(block)
            have += len(block)
        self._text = b"".join(parts)

    def _grow(self) -> bool:
        """Doubles the text; False if it is as long as it may be."""
        if len(self._text) >= _MAX_PIECE:
            return False
        self._fill(2 * len(self._text) + BLOCK)
        return True

    def _drop(self, size: int) -> None:
        self._text = self._text[size:]
        self._behind += size

    # -- before, between, after --------------------------------------------------------------------------------------
    def _list(self) -> dict[str, Any]:
        self._drop(1)
        return {}

    def _before(self) -> dict[str, Any]:
        """The entries before the list of events; the text then begins with the list's inside."""
        while (found := list_of_events(self._text)) is None:
            if self._whole or len(self._text) >= _PATIENCE:
                found = self._hidden()
            if found is not None:
                break
            if self._whole:
                self._not_a_trace()
            if not self._grow():
                raise TraceError(
                    f"{self._path} is not a trace that can be read: what stands before 'traceEvents' takes more than "
                    f"{_MAX_PIECE >> 20} MiB, expected a few KB"
                )
        entry, inside = found
        head = self._text[:entry]
        try:
            top = loads((head or b"{") + b"}")
        except (ValueError, RecursionError):
            top = entries(head, _FACTS)
            self._lost += len(head)
        self._drop(inside)
        return top if isinstance(top, dict) else {}

    def _hidden(self) -> tuple[int, int] | None:
        """The same for a text whose beginning is damaged: the first list of that name with events, else the first event."""
        if match := LIST_OF_EVENTS.search(self._text):
            return match.start(), match.end()
        event = EVENT.search(self._text, 1) if self._whole and PH.search(self._text) else None
        if event and not self._is_sound():
            return event.start(), event.start()
        return None

    def _is_sound(self) -> bool:
        try:
            loads(self._text)
        except (ValueError, RecursionError):
            return False
        return True

    def _not_a_trace(self) -> NoReturn:
        try:
            loads(self._text)
        except RecursionError:
            raise TraceError(f"{self._path} is not a trace: its JSON is nested too deeply") from None
        except ValueError:
            self._refuse()
        raise TraceError(
            f"{self._path} is JSON but not a trace: it has no 'traceEvents' list (expected a PyTorch profiler export)"
        )

    def _events(self) -> None:
        """Takes the list of events, piece by piece, and its closing bracket."""
        fresh, ended = True, False
        while not ended:
            self._fill(BLOCK)
            comma = -1 if self._whole or self._skipping else self._layout.guess(self._text)
            if comma >= 0 and self._takes(self._text[:comma]):
                self._drop(comma + 1)
            else:
                cut = None if self._skipping else self._cut()
                comma, ended = cut or (-1, False)
                piece = self._text[: max(comma, 0)]
                if cut and (piece.strip() or (fresh and ended)) and self._takes(piece):
                    if not ended:
                        self._layout.learn(self._text, comma)
                    self._drop(comma + 1)
                else:
                    ended = self._mend()
            fresh = False
            if self.rows.builder.texts.held > _MAX_TEXTS:
                raise TraceError(
                    f"{self._path} has more than {_MAX_TEXTS >> 20} MiB of different names: expected a few MB"
                )

    def _takes(self, piece: bytes) -> bool:
        """Whether a piece is a list of JSON values; if so, its events are taken."""
        try:
            self.rows.add(piece, self._layout.between)
        except (ValueError, RecursionError):
            return False
        return True

    def _cut(self) -> tuple[int, bool] | None:
        """(the last comma between events or the list's closing bracket, whether it is the bracket); None: damaged."""
        while True:
            found = cuts(self._text)
            if found.end >= 0:
                return (found.end, True) if ends_list(self._text, found.end) else None
            if found.comma >= 0 and not self._whole:
                return found.comma, False
            several = len(self._text) > _PATIENCE and EVENT.search(self._text, 1 + len(self._text) // 2)
            if self._whole or several or not self._grow():
                return None

    def _mend(self) -> bool:
        """Takes what is sound of a text that is not JSON; whether the list ends there. Always gets on."""
        if self._skipping:
            start = EVENT.search(self._text)
            gone = (
                start.start() if start else len(self._text) - (0 if self._whole else min(64, len(self._text)))
            )
            self._lost += gone
            self._drop(gone)
            self._skipping = start is None
            if self._skipping:
                self._cut_off |= self._whole
                return self._whole
        found = mend(self._text, self._whole)
        while not found.used and not self._whole and self._grow():
            found = mend(self._text, self._whole)
        self.rows.add_each(found.events)
        self.rows.count += found.damaged
        self.rows.damaged += found.damaged
        self._lost += found.lost
        self._why = self._why or (" (it is nested too deeply)" if found.deep else "")
        self._drop(found.used)
        if not found.used and not self._whole:  # one event, longer than any is
            self._skipping = True
            self._why = (
                f" (one takes more than {_MAX_PIECE >> 20} MiB from byte {self._behind}, expected a few KB)"
            )
            self.rows.count += 1
            self.rows.damaged += 1
            self._lost += 1
            self._drop(1)
        self._cut_off |= self._whole and not found.ended
        return found.ended or self._whole

    def _after(self, opening: bytes) -> dict[str, Any]:
        """The entries after the list of events, to the file's end; `opening` makes JSON of what is left."""
        while not self._whole and self._grow():
            continue
        text, sound = self._text, self._whole
        self._drop(len(text))
        try:
            rest = loads(opening + text) if sound else None
        except (ValueError, RecursionError):
            rest = None
        if rest is None:
            if text.strip() or not self._cut_off:
                self._lost += len(text)
                self._cut_off |= not text.rstrip().endswith(b"}")
            return entries(text, _FACTS)
        if isinstance(rest, list):
            return {}
        self._lost += len(text) if rest.pop("traceEvents", None) is not None else 0  # a second list: not read
        rest.pop("", None)
        return dict(rest)


def _own_metadata(top: Mapping[str, Any]) -> Mapping[str, Any]:
    """What moetrace's recorder stored in the trace, if it did."""
    own = top.get("moetrace")
    if isinstance(own, str):
        try:
            own = orjson.loads(own)
        except orjson.JSONDecodeError:
            own = None
    return own if isinstance(own, dict) else {}
