"""How far NVTX ranges reach: how many kernels have a launch that was recorded, and how many of these lie in a range."""

from __future__ import annotations

import numpy as np

from moetrace.formats.events import OPERATOR, RANGE, Events
from moetrace.formats.nsys_reader import WHOLE_GRAPH
from moetrace.formats.texts import matching
from moetrace.parse.nesting import Ranges, lookup
from moetrace.parse.rows import Rows


class Reach:
    """Counts kernels, for a format whose ranges do not come from the profiler that recorded the kernels."""

    def __init__(self, events: Events) -> None:
        self._asked = "nvtx" in events.counts
        self._kernels = self._launched = self._covered = 0

    def saw(self, rows: Rows, events: Events) -> None:
        """Takes rows into account, with the host's events around their launches."""
        if not self._asked or rows.on_cpu:
            return
        kernels = ~rows.copied & ~matching(events.texts, rows.kernel, WHOLE_GRAPH.__eq__)
        launched = kernels & (rows.host_lane >= 0)
        ranges = np.flatnonzero(np.isin(events.cls, (RANGE, OPERATOR)))
        start = events.start[ranges]
        around = Ranges(events.lane[ranges], start, start + events.dur[ranges])
        found = lookup(ranges, around.covering(rows.host_lane[launched], rows.host_time[launched]))
        self._kernels += int(kernels.sum())
        self._launched += int(launched.sum())
        self._covered += int((found >= 0).sum())

    def counts(self) -> dict[str, int]:
        """The counts; nothing where they were not asked for."""
        if not self._asked:
            return {}
        return {
            "kernels": self._kernels, "kernels_launched": self._launched, "kernels_in_ranges": self._covered,
        }  # fmt: skip

    def remarks(self) -> list[str]:
        """A sentence on them."""
        if not self._kernels:
            return []
        return [
            f"{self._covered:,} of {self._kernels:,} kernels lie in an NVTX range, by their launch; the launch of "
            f"{self._launched:,} was recorded"
        ]
