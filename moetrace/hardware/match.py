"""The `[match]` table of a profile: which device, as a profiler describes it, is this machine."""

from __future__ import annotations

import re

from moetrace.hardware.files import Reader, profile_names, read_profile


def match_device(name: str, memory_bytes: int | None, multiprocessors: int | None) -> str | None:
    """The shipped profile of a device as a profiler describes it, or None.

    A name must match; memory and number of multiprocessors must not contradict. Without a name (ROCm leaves it empty)
    both of the others must be there and agree.
    """
    fits = []
    for profile in profile_names():
        match = read_profile(profile)[1].get("match")
        if match is None or (name and not re.search(match["name"], name)):
            continue
        low, high = match["memory_bytes"]
        known = memory_bytes is not None and multiprocessors is not None
        agrees = (memory_bytes is None or low <= memory_bytes <= high) and (
            multiprocessors is None or multiprocessors == match["multiprocessors"]
        )
        if agrees and (name or known):
            fits.append(profile)
    return fits[0] if len(fits) == 1 else None


def check_match(reader: Reader, match: object) -> None:
    """Raises ProfileError if a `[match]` table is not what `match_device` reads."""
    match = reader.keys(match, "match", {"name", "memory_bytes", "multiprocessors"})
    reader.number(match, "match", "multiprocessors", 1, 1e5, whole=True)
    span = match["memory_bytes"]
    if (
        not isinstance(span, list)
        or len(span) != 2
        or not all(isinstance(v, int) for v in span)
        or span[0] >= span[1]
    ):
        raise reader.error("match.memory_bytes", span, "[low, high] in bytes")
    try:
        re.compile(reader.text(match, "match", "name"))
    except re.error as error:
        raise reader.error("match.name", match["name"], f"a regular expression ({error})") from error
