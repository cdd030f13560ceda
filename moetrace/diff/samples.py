"""What a run's steps took, step by step: the seconds of each op in each layer, of idle time, and of whole steps.

Every step is a sample. More than `MOST` steps are averaged in blocks of steps that follow each other, so that a long run
takes no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.grouping import distinct_rows
from moetrace.ops import OTHER
from moetrace.parse.nesting import exposed_by
from moetrace.parse.summary import devices_of_steps, known_work, step_and_device
from moetrace.run import Run, Step

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[str, str, int | None]  # family, op, layer
MOST = 512
IDLE: Key = ("idle", "no op runs", None)
BETWEEN: Key = ("between steps", "between steps", None)
_COLUMNS = (
    "step", "device", "layer", "kind", "family", "kernel", "start_ns", "dur_ns", "flops", "weight_bytes", "kv_bytes",
    "act_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Samples:
    """Of the steps of one phase, in order of time.

    `seconds` has a row per step (or block of steps) and a column per key: time that the op adds to the busy time of its
    device, as a mean over devices. The columns of a row sum to the time from the end of the step before to its own end.
    Per mean step: `count` of executions, `nbytes` known to move, `known_s` of the ops that move them.
    """

    steps: tuple[Step, ...]
    keys: tuple[Key, ...]
    seconds: FloatArray
    count: FloatArray
    nbytes: FloatArray
    known_s: FloatArray
    kernels: Mapping[str, tuple[str, ...]]  # op -> kernels or operators with most time

    def columns(self, keys: Sequence[Key]) -> FloatArray:
        """`seconds` with a column for each of these keys, zeros where the run has no such op."""
        place = {key: i for i, key in enumerate(self.keys)}
        out = np.zeros((len(self.seconds), len(keys)))
        for i, key in enumerate(keys):
            if key in place:
                out[:, i] = self.seconds[:, place[key]]
        return out

    def alike(self, other: Samples) -> bool:
        """Whether the steps of both are known to do the same work one by one, so that they can be compared in pairs."""
        mine, theirs = (
            [(s.batch, s.tokens, s.kv_tokens) for s in samples.steps] for samples in (self, other)
        )
        return mine == theirs and all(tokens is not None for _, tokens, _ in mine)


def collect(run: Run, phase: str) -> Samples:
    """The samples of a run's steps of one phase; without such steps all is empty."""
    steps = tuple(
        sorted((s for s in run.meta.steps if (s.phase or "unknown") == phase), key=lambda s: s.start_ns)
    )
    sums = _Sums(run, steps)
    if steps:
        for part in run.parts(_COLUMNS):
            sums.add(part)
    return sums.result()


class _Sums:
    """Sums by key and block, added up part by part; a part holds whole steps. Whole ns, so that they come out exact."""

    def __init__(self, run: Run, steps: tuple[Step, ...]) -> None:
        self._steps = steps
        per_block = max(1, -(-len(steps) // MOST))
        self._blocks = max(1, len(steps) // per_block) if steps else 0
        block = np.minimum(np.arange(len(steps)) // per_block, self._blocks - 1)
        self._size = np.bincount(block, minlength=self._blocks).astype(np.float64)
        self._block_of_step = np.full(max((s.index for s in run.meta.steps), default=-1) + 2, -1, np.int64)
        self._block_of_step[[s.index for s in steps]] = block
        spans = np.array([s.end_ns - s.start_ns for s in steps], dtype=np.float64)
        self._span = np.bincount(block, weights=spans, minlength=self._blocks).astype(np.float64)
        gaps = _before(run, steps)
        self._between = np.bincount(block, weights=gaps, minlength=self._blocks).astype(np.float64)
        self._ns: dict[Key, FloatArray] = {}
        self._work: dict[Key, FloatArray] = {}  # count, bytes, seconds of ops whose bytes are known
        self._kernels: dict[str, dict[str, float]] = {}

    def add(self, part: Run) -> None:
        step = part.numpy("step").astype(np.int64)
        # Step -1 gives the last entry, which is no block.
        block = self._block_of_step[np.minimum(step, len(self._block_of_step) - 1)]
        group, devices = step_and_device(part)
        start, dur = part.numpy("start_ns"), part.numpy("dur_ns")
        number = devices_of_steps(group, len(devices), len(self._block_of_step))
        alone = exposed_by(group, start, start + dur)[0] / number[np.maximum(step, 0)]
        kind, kinds = part.codes("kind")
        family, families = part.codes("family")
        kernel, kernels = part.codes("kernel")
        other = kinds.index(OTHER) if OTHER in kinds else -2
        op = np.where(kind == other, len(kinds) + kernel, kind)
        layer = part.numpy("layer").astype(np.int64)
        at = np.flatnonzero(block >= 0)
        first, which = distinct_rows(family[at] + 1, op[at] + 1, layer[at] + 1)
        work = known_work(part)
        share = 1.0 / number[np.maximum(step[at], 0)]
        cell = which * self._blocks + block[at]
        nanoseconds = np.bincount(cell, weights=alone[at], minlength=len(first) * self._blocks).astype(
            np.float64
        )
        totals = [
            np.bincount(which, weights=v[at] * share, minlength=len(first))
            for v in (np.ones(len(step)), work.nbytes, work.timed_s)
        ]
        names = [*kinds, *(f"{OTHER}: {k}" for k in kernels)]
        for i, row in enumerate(at[first].tolist()):
            where = int(layer[row])
            key = (families[family[row]], names[op[row]], where if where >= 0 else None)
            mine = nanoseconds[i * self._blocks : (i + 1) * self._blocks]
            self._ns[key] = self._ns[key] + mine if key in self._ns else mine
            added = np.array([t[i] for t in totals])
            self._work[key] = self._work[key] + added if key in self._work else added
        self._add_kernels(op[at], kernel[at], alone[at], names, kernels)

    def _add_kernels(
        self, op: IntArray, kernel: IntArray, alone: FloatArray, names: list[str], kernels: list[str]
    ) -> None:
        known = kernel >= 0
        op, kernel, alone = op[known], kernel[known], alone[known]
        first, which = distinct_rows(op, kernel)
        for row, total in zip(first.tolist(), np.bincount(which, weights=alone).tolist(), strict=True):
            mine = self._kernels.setdefault(names[op[row]], {})
            mine[kernels[kernel[row]]] = mine.get(kernels[kernel[row]], 0.0) + total

    def result(self) -> Samples:
        keys = [*self._ns, IDLE, BETWEEN]
        busy = np.sum([np.zeros(self._blocks), *self._ns.values()], axis=0)
        columns: list[FloatArray] = [*self._ns.values(), self._span - busy, self._between]
        steps = max(1, len(self._steps))
        work = np.array([*self._work.values(), np.zeros(3), np.zeros(3)]) / steps
        kernels = {
            op: tuple(sorted(found, key=lambda k: -found[k])[:3]) for op, found in self._kernels.items()
        }
        seconds = np.column_stack(columns) / self._size[:, None] / 1e9
        return Samples(self._steps, tuple(keys), seconds, work[:, 0], work[:, 1], work[:, 2], kernels)


def _before(run: Run, steps: Sequence[Step]) -> FloatArray:
    """Nanoseconds from the end of all earlier steps to the start of each of these; 0 for the first of the run."""
    reach: int | None = None
    gap: dict[int, int] = {}
    for s in sorted(run.meta.steps, key=lambda s: s.start_ns):
        gap[s.index] = 0 if reach is None else max(0, s.start_ns - reach)
        reach = s.end_ns if reach is None else max(reach, s.end_ns)
    return np.array([gap[s.index] for s in steps], dtype=np.float64)
