"""A trace file as text in pieces: decompressed in blocks, cut between events. Memory does not grow with the file.

`Blocks` undoes gzip and zstd, as far as damage lets it.
`cuts` says where a piece of a JSON list may be cut, whatever its layout: it knows strings
and escapes, and costs about a third of decoding. `Layout` guesses the same from what stood between earlier events; the
caller's decoding proves or refutes the guess.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.errors import TraceError
from moetrace.formats.remote import Remote

BLOCK = 1 << 19  # decompressed and decoded at once: what fits the cache decodes nearly twice as fast as 16 MB
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_READ = 1 << 16
# A real trace shrinks 15 to 60 times. Deflate's limit is 1,032; only a bomb of gigabytes comes near it.
_MAX_RATIO, _RATIO_FROM = 300, 1 << 30

_OPEN, _CLOSE, _COMMA, _QUOTE, _ESCAPE = b"[{", b"]}", ord(","), ord('"'), ord("\\")
_DELTA = np.zeros(256, dtype=np.int8)
_DELTA[list(_OPEN)], _DELTA[list(_CLOSE)] = 1, -1
_STRUCTURE = _DELTA != 0
_STRUCTURE[_COMMA] = True
_LEFT, _RIGHT = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*$"), re.compile(rb",[ \t\r\n]*\{")
_MARGIN = 64  # bytes around a comma in which the layout is looked for
_LIST_KEY = re.compile(rb'[{,][ \t\r\n]*"traceEvents"[ \t\r\n]*:[ \t\r\n]*\[')


class Blocks:
    """The text of a file, plain, gzip or zstd, in blocks, as far as it can be read.

    Where the compressed stream is damaged or cut off, the text ends there: `trouble` then says so in a line, and `unread`
    is the number of the file's bytes behind the damage. Raises TraceError for a bomb and a file that cannot be read.
    """

    def __init__(self, path: Path | Remote, progress: Callable[[float], object] | None = None) -> None:
        self.path = path
        self.size = max(1, path.stat().st_size)
        self.trouble = ""
        self.unread = 0
        self._progress = progress

    def __iter__(self) -> Iterator[bytes]:
        written = place = 0
        with self.path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            form = _gunzip if head[:2] == GZIP else _unzstd if head == ZSTD else _plain
            name = {_gunzip: "gzip", _unzstd: "zstd"}.get(form, "")
            try:
                for block in form(file):
                    written, place = written + len(block), file.tell()
                    if name and written > _RATIO_FROM and written > _MAX_RATIO * place:
                        raise TraceError(
                            f"{self.path} expands to more than {_MAX_RATIO} times its size: not a trace that was recorded; "
                            "decompress it yourself if you trust it"
                        )
                    yield block
                    if self._progress is not None:
                        self._progress(min(1.0, place / self.size))
            except (EOFError, zlib.error, pa.ArrowException, OSError) as err:
                if not name:
                    raise TraceError(f"{self.path} cannot be read ({err})") from err
                said = " ".join(str(err).split())
                self.trouble = f"{self.path} is a damaged or truncated {name} file ({said}): copy it again or record again"
                self.unread = self.size - place


def _plain(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    """All members of a gzip file. zlib checks each one's length and checksum."""
    raw, more, inside = b"", False, False
    member = zlib.decompressobj(wbits=31)
    while True:
        if not raw and not more:
            raw = file.read(_READ)
            if not raw:
                break
        before = member.copy()
        try:
            block = member.decompress(raw, BLOCK)
        except zlib.error:
            yield from filter(None, _until_damage(before, raw))
            raise
        inside, raw, more = True, member.unconsumed_tail, len(block) == BLOCK
        if block:
            yield block
        if member.eof:
            raw, more, inside = member.unused_data.lstrip(b"\0"), False, False
            while not raw and (padding := file.read(_READ)):
                raw = padding.lstrip(b"\0")
            if not raw:
                break
            member = zlib.decompressobj(wbits=31)
    if inside:
        raise EOFError("it ends before the end of its stream")


def _until_damage(member: zlib._Decompress, raw: bytes) -> Iterator[bytes]:
    """What a block whose decompression failed gives before the damage: fed in ever smaller steps."""
    step = 1 << 12
    while raw:
        before = member.copy()
        try:
            block = member.decompress(raw[:step])
        except zlib.error:
            if step == 1:
                return
            member, step = before, step >> 4
            continue
        raw = raw[step:]
        yield block


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
        while block := stream.read(_READ):
            yield block


# -- structure -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a piece of a list may be cut: its last comma (-1: none), and the list's end (-1: not in the piece)."""

    comma: int
    end: int


def cuts(text: bytes) -> Cuts:
    """Where to cut the inside of a JSON list that `text` begins with (or continues, from behind a comma)."""
    at, char, depth = _structure(text)
    over = np.flatnonzero(depth < 0)
    end = int(over[0]) if len(over) else len(at)
    commas = np.flatnonzero((char[:end] == _COMMA) & (depth[:end] == 0))
    return Cuts(int(at[commas[-1]]) if len(commas) else -1, int(at[end]) if len(over) else -1)


def list_of_events(text: bytes) -> tuple[int, int] | None:
    """In the text of an object: (where the entry `traceEvents` begins, where its list does); None if it is not there."""
    found = list(_LIST_KEY.finditer(text))
    if not found:
        return None
    at, _, depth = _structure(text)
    closed = np.flatnonzero(depth == 0)
    limit = int(at[closed[0]]) if len(closed) else len(text)
    for match in found:
        place = int(np.searchsorted(at, match.start()))
        if match.start() < limit and place < len(at) and at[place] == match.start() and depth[place] == 1:
            return match.start(), match.end()
    return None


def _structure(text: bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(position, character, depth behind it) of the brackets and commas that stand outside of strings."""
    raw = np.frombuffer(text, dtype=np.uint8)
    quotes = np.flatnonzero(raw == _QUOTE)
    escapes = np.flatnonzero(raw == _ESCAPE)
    if len(escapes) and len(quotes):
        quotes = quotes[~_escaped(quotes, escapes)]
    at = np.flatnonzero(_STRUCTURE[raw])
    at = at[np.searchsorted(quotes, at) % 2 == 0]
    return at, raw[at], np.cumsum(_DELTA[raw[at]], dtype=np.int64)


def _escaped(quotes: npt.NDArray[np.intp], escapes: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which quotes stand behind an odd number of backslashes."""
    fresh = np.concatenate(([True], np.diff(escapes) != 1))
    first = np.maximum.accumulate(np.where(fresh, escapes, 0))  # of the run that each backslash belongs to
    place = np.searchsorted(escapes, quotes) - 1
    behind = (place >= 0) & (escapes[place] == quotes - 1)
    odd: npt.NDArray[np.bool_] = behind & ((quotes - first[place]) % 2 == 1)
    return odd


class Layout:
    """What stands between two events in this file, learned from a cut that is certain."""

    def __init__(self) -> None:
        self.between = b""  # a closing brace, a comma and an opening one; empty as long as it is not known
        self._left = 0

    def learn(self, text: bytes, comma: int) -> None:
        """Takes over what stands around a comma between events, or nothing if these are no objects."""
        left = _LEFT.search(text, max(0, comma - _MARGIN), comma)
        right = _RIGHT.match(text, comma, comma + _MARGIN)
        self.between = left[0] + right[0] if left and right else b""
        self._left = len(left[0]) if left else 0

    def guess(self, text: bytes) -> int:
        """The comma behind the last event that seems whole; -1 for none."""
        found = text.rfind(self.between) if self.between else -1
        return found + self._left if found >= 0 else -1
