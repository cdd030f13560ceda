"""Damaged JSON of a trace: which events in it are whole, and what the entries around them still say.

Profilers have left quotes in names unescaped, were killed while they wrote, and disks lose blocks. An event that decodes
by itself from where an event begins is taken; what lies between two such events was damaged, and is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from moetrace.formats.kineto_json import loads

_SPACE = rb"[ \t\r\n]*"
_START = rb"\{" + _SPACE + rb'"(?:ph|cat|name|pid|tid|ts|dur|args|id|bp|s)"' + _SPACE + rb":"
EVENT = re.compile(_START)
PH = re.compile(rb'"ph"' + _SPACE + rb":" + _SPACE + rb'"[A-Za-z]"')  # what only events have
LIST_OF_EVENTS = re.compile(
    rb'"traceEvents"' + _SPACE + rb":" + _SPACE + rb"\[(?=" + _SPACE + rb"(?:" + _START + rb"))"
)
_NEXT = re.compile(rb"\}" + _SPACE + rb"," + _SPACE + rb"(?=" + _START + rb")")
_BEHIND = rb"(?:traceName|displayTimeUnit|baseTimeNanoseconds|schemaVersion|deviceProperties|distributedInfo|trace_id|metadata)"
_LIST_END = re.compile(rb"\}%b(\])%b,%b\"%b\"%b:" % (_SPACE, _SPACE, _SPACE, _BEHIND, _SPACE))
_TEXT_END = re.compile(rb"\}%b(\])%b\}%b\Z" % (_SPACE, _SPACE, _SPACE))
_ENDS = re.compile(rb"\]%b(?:\Z|\}|,%b\")" % (_SPACE, _SPACE))
_SURE_END = re.compile(rb"\]%b,%b\"%b\"" % (_SPACE, _SPACE, _BEHIND))
_BETWEEN = re.compile(rb"[ \t\r\n,]*")
_DECODER = json.JSONDecoder(strict=False)


@dataclass(slots=True)
class Mended:
    """What was found in a text that begins at an event: `used` bytes of it hold `events`, and `damaged` that are none.

    `ended`: the list's closing bracket was found, right behind what was used. `lost`: bytes of what was damaged.
    `deep`: something in it is nested too deeply to be read.
    """

    events: list[Any] = field(default_factory=list)
    used: int = 0
    damaged: int = 0
    lost: int = 0
    ended: bool = False
    deep: bool = False


def mend(text: bytes, whole: bool) -> Mended:
    """The sound events of a text; unless it is `whole`, the end that may go on beyond the text is left unused."""
    found, plain = Mended(), text.decode("latin-1")  # a character is a byte: places are the same
    at, broken = 0, -1  # where the next event should begin; where the damage before it began

    def close(place: int) -> None:
        if broken >= 0:
            found.damaged += 1 + sum(1 for _ in _NEXT.finditer(text, broken, place))
            found.lost += place - broken

    while True:
        at = _end(_BETWEEN, text, at)
        if at >= len(text):
            break
        if ends_list(text, at):
            close(at)
            found.used, found.ended = at + 1, True
            return found
        try:
            value, end = _value(text, plain, at)
        except RecursionError:
            value, end, found.deep = None, -1, True
        if (
            end >= 0 and (whole or end < len(text)) and not isinstance(value, list)
        ):  # a stray bracket holds events
            close(at)
            broken = -1
            found.events.append(value)
            found.used = at = end
            continue
        broken = at if broken < 0 else broken
        start = EVENT.search(text, at + 1)
        if start is None:
            break
        at = start.start()
    if broken >= 0 and (
        ended := _LIST_END.search(text, broken) or (_TEXT_END.search(text, broken) if whole else None)
    ):
        close(ended.start(1))
        found.used, found.ended = ended.end(1), True
    elif whole:
        close(len(text))
        found.used = len(text)
    return found


def ends_list(text: bytes, at: int) -> bool:
    """Whether the list of events ends at a place: a closing bracket, and what follows is what follows such a list."""
    return bool(_SURE_END.match(text, at) or (_ENDS.match(text, at) and not EVENT.search(text, at + 1)))


def _end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _value(text: bytes, plain: str, at: int) -> tuple[Any, int]:
    """(the JSON value that begins at a place, where it ends); -1 if none does."""
    try:
        _, end = _DECODER.raw_decode(plain, at)
        return loads(text[at:end]), end
    except ValueError:
        return None, -1


def entries(text: bytes, names: Iterable[str]) -> dict[str, Any]:
    """The values of these entries as far as they can be read in a text that is not JSON as a whole."""
    plain, found = text.decode("latin-1"), {}
    for name in names:
        for match in re.finditer(rb'"' + re.escape(name.encode()) + rb'"' + _SPACE + rb":" + _SPACE, text):
            with suppress(RecursionError):
                value, end = _value(text, plain, match.end())
                if end >= 0:
                    found[name] = value
                    break
    return found
