"""Launches: which call made the device do an op, and what of these calls cannot be trusted."""

from __future__ import annotations

import re

import numpy as np

from moetrace.formats.events import DEVICE_CLASSES, LAUNCH, Events
from moetrace.formats.texts import matching
from moetrace.parse.nesting import IntArray, last_before, lookup, outermost, sort_ranges


def launches_of(events: Events) -> IntArray:
    """Launches with an id, without calls that lie in another of the same id on their thread (runtime and driver)."""
    found = events.where(LAUNCH)
    found = found[events.correlation[found] >= 0]
    ids, code = np.unique(events.correlation[found], return_inverse=True)
    if len(ids) == len(found):
        return found
    lanes, lane = np.unique(events.lane[found], return_inverse=True)
    key, start = code * len(lanes) + lane, events.start[found]
    end = start + events.dur[found]
    order = sort_ranges(key, start, end)
    return found[order][outermost(key[order], start[order], end[order])]


def launch_of(ids: IntArray, start: IntArray, asked: IntArray, moment: IntArray) -> IntArray:
    """Index of the launch of each id: the last that began before the kernel, else (clocks apart) the first; -1 for none."""
    order = np.lexsort((start, ids))
    linked = lookup(order, last_before(ids[order], start[order], asked, moment))
    return np.where(linked >= 0, linked, first_match(ids, asked))


def replays(call: str) -> bool:
    """Whether a call launches a graph."""
    return "GraphLaunch" in call


_DEVICE_CALL = re.compile(r"(cuda|hip|cu(?=[A-Z]))\w*(Launch|Memcpy|Memset)")


def doubts(events: Events) -> list[str]:
    """Sentences on launches that cannot be trusted: those of no kernel at all, and those that share a correlation id."""
    if not np.isin(events.cls, DEVICE_CLASSES).any():
        return blind(device_calls(events))
    return shared(*shared_ids(events))


def device_calls(events: Events) -> int:
    """Number of calls that should have made a device work."""
    return int(matching(events.texts, events.name[events.where(LAUNCH)], _DEVICE_CALL.match).sum())


def shared_ids(events: Events) -> tuple[int, int]:
    """(correlation ids that several launches have, ops on the device with such an id)."""
    launches, device = launches_of(events), events.where(*DEVICE_CLASSES)
    ids, count = np.unique(events.correlation[launches], return_counts=True)
    twice = ids[count > 1]
    return len(twice), int(np.isin(events.correlation[device], twice).sum())


def blind(calls: int) -> list[str]:
    return [_BLIND.format(calls)] if calls else []


def shared(ids: int, kernels: int) -> list[str]:
    return [_TWICE.format(ids, kernels)] if kernels else []


_BLIND = (
    "{:,} CUDA or HIP launches and copies but no kernels: a GPU's run of which only the host was recorded; what follows is "
    "the time of the host's operators, not of the GPU (record with activities CPU and CUDA)"
)
_TWICE = (
    "{:,} correlation id(s) belong to several launches: their {:,} op(s) are taken as launched by the last before them, so "
    "steps and launch waits may be wrong (files of several ranks put together?)"
)


def first_match(keys: IntArray, asked: IntArray) -> IntArray:
    """Index of the first key equal to each value asked for; -1 for none."""
    if not len(keys):
        return np.full(len(asked), -1, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    at = np.clip(np.searchsorted(keys[order], asked), 0, len(keys) - 1)
    return np.where(keys[order][at] == asked, order[at], -1)
