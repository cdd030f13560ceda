"""Trace formats: bytes on disk -> Events. A new format is one file here with `sniff` and `read`, and its name below."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moetrace.errors import TraceError
from moetrace.formats import kineto, nsys
from moetrace.formats.events import Events, Stored, Tensors
from moetrace.formats.nsys_file import REPORTS, Export, exported
from moetrace.formats.piles import Block, Spill
from moetrace.formats.remote import Remote
from moetrace.formats.where import located, trace_in


def read(
    path: Path | Remote | Export, progress: Callable[[float], object] | None = None, spill: Spill | None = None,
    gpu: int | None = None,
) -> Events | Stored:  # fmt: skip
    """The events of a trace file of any known format; with a `spill`, stored there if they are many.

    `gpu`: which of the ranks that an nsys export holds. Raises TraceError if the file is missing or of no known format.
    """
    if isinstance(path, Export):
        return _sound(nsys.read(path, progress, spill, gpu), path)
    known = ", ".join((*kineto.SUFFIXES[:2], *nsys.SUFFIXES))
    if not path.exists():
        raise TraceError(f"{path} does not exist")
    if not path.is_file():
        raise TraceError(f"{path} is not a file: expected a trace ({known}) or a moetrace run")
    if isinstance(path, Remote):
        return _read_remote(path, progress, spill, gpu)
    head = b"" if path.suffix in REPORTS else _head(path)
    if path.suffix in REPORTS or nsys.sniff(head):
        return _sound(nsys.read(path, progress, spill, gpu), path)
    if gpu is not None:
        raise TraceError(f"{path}: a GPU can be chosen in an nsys export that holds several; this is none")
    if kineto.sniff(head):
        return _sound(kineto.read(path, progress, spill), path)
    raise TraceError(
        f"{path} is not a PyTorch profiler trace (JSON beginning with '{{' or '[') and not an nsys export (SQLite): "
        f"expected {known}"
    )


def _read_remote(
    path: Remote, progress: Callable[[float], object] | None, spill: Spill | None, gpu: int | None
) -> Events | Stored:
    """The same for a trace behind a URL: a PyTorch trace is streamed, an nsys export, which is a database, copied here."""
    if is_nsys(path):
        return _sound(nsys.read(path, progress, spill, gpu), path)
    if not kineto.sniff(_head(path)):
        raise TraceError(
            f"{path} is neither a PyTorch profiler trace nor an nsys export: expected "
            f"{', '.join((*kineto.SUFFIXES[:2], *nsys.SUFFIXES))}"
        )
    return _sound(kineto.read(path, progress, spill), path)


def nsys_ranks(path: Path | Export) -> int:
    """How many ranks an nsys export or report holds: one per process and GPU. Raises TraceError if it cannot be read."""
    return len(nsys.ranks(path))


def is_nsys(path: Path | Remote) -> bool:
    """Whether a file is an nsys export or report. Raises TraceError for one that is empty or damaged."""
    if not path.is_file():
        return False
    return path.suffix in REPORTS or nsys.sniff(_head(path))


def read_whole(path: Path | Remote, *classes: int) -> Events:
    """The events of these classes, all in memory. Raises TraceError as `read` does, and where they are too many for that."""
    events = read(path, spill=Spill())
    if isinstance(events, Events):
        return events
    count = sum(events.count(cls) for cls in classes)
    if count > _MOST_WHOLE:
        raise TraceError(
            f"{path} holds {count:,} launches, operators and ranges, and at most {_MOST_WHOLE:,} of a capture are held in "
            "memory: give a trace of the capture alone, or of fewer sizes"
        )
    return events.take(*classes)


def placed(events: Events | Stored, rank: int, world_size: int) -> Events | Stored:
    """The events as those of this rank of so many, where the file does not say that there are several."""
    head = events if isinstance(events, Events) else events.head
    if head.world_size > 1:
        return events
    head = replace(head, rank=rank, world_size=world_size, counts={**head.counts, "placed": 1})
    if isinstance(events, Events):
        return head
    events.head = head
    return events


_MOST_WHOLE = 1 << 21  # events in memory at once: 190 MB
_MOST_DEVICES = 1 << 20
_MOST_ELEMENTS = 1 << 60


def sound(events: Events, path: object) -> Events:
    """The events without sizes that nothing can have. Raises TraceError for a rank or a world that none has.

    A tensor with a negative or impossible dim counts as not recorded, and so do an impossible device and byte count.
    """
    for what, number in (("rank", abs(events.rank)), ("world size", events.world_size)):
        if number >= _MOST_DEVICES:
            raise TraceError(f"{path} is damaged: {what} {number}, expected less than {_MOST_DEVICES}")
    columns: dict[str, Any] = _sound_columns({"nbytes": events.nbytes, "device": events.device})
    return replace(events, **columns, tensor_sets=[_sound_tensors(t) for t in events.tensor_sets])


def _sound(events: Events | Stored, path: object) -> Events | Stored:
    if isinstance(events, Events):
        return sound(events, path)
    events.head = sound(events.head, path)
    events.clean = _sound_columns
    return events


def _sound_columns(block: Block) -> Block:
    nbytes, device = block["nbytes"], block["device"]
    return {
        **block,
        "nbytes": np.where((nbytes < 0) | (nbytes >= _MOST_ELEMENTS), 0, nbytes),
        "device": np.where((device >= _MOST_DEVICES) | (device < 0), -1, device),
    }


def _sound_tensors(tensors: Tensors) -> Tensors:
    shapes = tuple(s if _is_possible(s) else () for s in tensors.shapes)
    nbytes = tensors.nbytes if 0 <= tensors.nbytes < _MOST_ELEMENTS else 0
    group = tensors.group if 0 <= tensors.group < _MOST_DEVICES else 0
    if (shapes, nbytes, group) == (tensors.shapes, tensors.nbytes, tensors.group):
        return tensors
    return replace(tensors, shapes=shapes, nbytes=nbytes, group=group)


def _is_possible(shape: tuple[int, ...]) -> bool:
    """Whether a tensor can have this shape; one without elements can."""
    return all(n >= 0 for n in shape) and math.prod(max(n, 1) for n in shape) < _MOST_ELEMENTS


def _head(path: Path | Remote) -> bytes:
    """The first bytes of a file, decompressed if it is gzip."""
    with path.open("rb") as file:
        raw = file.read(1 << 16)
    if not raw:
        raise TraceError(f"{path} is empty")
    if not raw.startswith(b"\x1f\x8b"):
        return raw[:64]
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, 64)
    except zlib.error as err:
        raise TraceError(
            f"{path} is a damaged or truncated gzip file ({err}): copy it again or record again"
        ) from err


def remarks(count: Mapping[str, int]) -> list[str]:
    """Sentences on what the reader of a format counted: what was left out or lost, and what the trace holds together."""
    said = _losses(count)
    if "nvtx" not in count:
        return said
    if count.get("strays"):
        said.append(
            f"{count['strays']:,} copies and sets on GPUs on which their process ran no kernel are left out"
        )
    if count.get("whole_graphs"):
        said.append(
            f"{count['whole_graphs']:,} replays of CUDA graphs were traced as wholes, without their kernels: record with "
            "--cuda-graph-trace=node"
        )
    for what, sentence in (
        ("unclosed", "NVTX range(s) were never closed"),
        ("damaged", "row(s) have no sound times"),
    ):
        if count.get(what):
            said.append(f"{count[what]:,} of {count['events']:,} {sentence} and are left out")
    return said


def _losses(count: Mapping[str, int]) -> list[str]:
    """What of the file was lost to damage, and how much of it that is."""
    said = []
    if count.get("damaged") and "unclosed" not in count:
        share = _percent(count["damaged"] / max(1, count["events"]))
        said.append(f"{count['damaged']:,} of {count['events']:,} events are damaged and left out ({share})")
    if count.get("lost_bytes"):
        share = _percent(count["lost_bytes"] / max(1, count["bytes"]))
        said.append(
            f"the JSON is damaged: {count['lost_bytes']:,} of {count['bytes']:,} bytes could not be read ({share})"
        )
    if count.get("packed_damage"):
        share = _percent(count["unread_bytes"] / max(1, count["file_bytes"]))
        lost = f"at least its last {count['unread_bytes']:,} of {count['file_bytes']:,} bytes could not be read ({share})"
        none = f"its {count['file_bytes']:,} bytes could be read, and their end is missing or not sound"
        said.append(f"the compressed file is damaged or cut off: {lost if count['unread_bytes'] else none}")
    if count.get("cut_off"):
        said.append(
            "the file is cut off: what it holds was taken, and what stood behind the cut is not known; record again"
        )
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


__all__ = [
    "Events",
    "Export",
    "Remote",
    "Spill",
    "Stored",
    "exported",
    "is_nsys",
    "located",
    "nsys_ranks",
    "placed",
    "read",
    "read_whole",
    "remarks",
    "trace_in",
]
