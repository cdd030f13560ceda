"""The ranks of one run as one Run: the RUNs that lie in a directory side by side, read as one table by one clock.

What `moetrace parse DIR -o` wrote: ``rank-0``, ``rank-1``, ... and ``ranks.json``. A step of it is one step of all ranks,
matched by number; `start_ns` and `launch_ns` are by the first rank's clock, `device` is the rank. Nothing is stored twice:
parts of whole steps are put together when they are read. Left out, and said: ranks with another number of steps than the first.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.errors import RunError
from moetrace.files import RANKS_SUMMARY
from moetrace.op import Op
from moetrace.ops.communication import TOGETHER, matched_name
from moetrace.ranks.together import meta_of, numbers, shifts, summary_of, together, work
from moetrace.routing import Routing
from moetrace.run import Meta, Run, Step

FOLDER = "rank-{}"
TABLE = "ranks.parquet"
_ROWS = 500_000  # of one part, about, over all ranks
IntArray = npt.NDArray[np.int64]


class Ranks(Run):
    """The ranks of one run; `ranks` are their numbers, `facts` the summary that the ranks were compared to."""

    def __init__(
        self, meta: Meta, path: Path | None, runs: Mapping[int, Run], facts: Mapping[str, Any]
    ) -> None:
        super().__init__(meta, path=path)
        self.ranks = tuple(sorted(runs))
        self.facts = facts
        self._runs = {rank: runs[rank] for rank in self.ranks}
        self._strides = {c["collective"]: int(c["stride"]) for c in facts.get("collectives", ())}
        self._clocks = {r["rank"]: r.get("clock") for r in facts["ranks"]}
        self._shifts = shifts(self._runs, self._clocks)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ranks:
        """The ranks in a directory. Raises RunError with one line if they are not all there."""
        root = Path(path)
        file = root / RANKS_SUMMARY
        try:
            facts = summary_of(file.read_bytes(), file)
        except OSError as err:
            raise RunError(
                f"{file} cannot be read ({err.strerror}): parse the traces again with --force"
            ) from err
        return cls.of(
            {rank: Run.load(root / FOLDER.format(rank)) for rank in numbers(facts)}, facts, root.name, root
        )

    @classmethod
    def of(
        cls, runs: Mapping[int, Run], facts: Mapping[str, Any], name: str, path: Path | None = None
    ) -> Ranks:
        """The runs of ranks, by number, as one called `name`, without those of another number of steps than the first's."""
        first = next(iter(runs.values())).meta
        kept = {rank: run for rank, run in runs.items() if len(run.meta.steps) == len(first.steps)}
        meta = meta_of(kept, facts, sorted(set(runs) - set(kept)), name)
        ranks = cls(meta, path, kept, facts)
        return cls(replace(meta, steps=tuple(ranks._all_steps())), path, kept, facts)

    def with_meta(self, **changes: Any) -> Run:
        return Ranks(replace(self.meta, **changes), self.path, self._runs, self.facts)

    # -- reading -------------------------------------------------------------------------------------------------
    def column(self, name: str) -> pa.ChunkedArray:
        return self.table([name]).column(name)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        return pa.concat_tables([part.table() for part in self.parts(columns)]).unify_dictionaries()

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Run]:
        """The run in parts of whole steps of all ranks; rows outside of steps come first."""
        for low, high in self._cuts():
            tables = [self._rows(rank, columns, low, high) for rank in self.ranks]
            yield Run(self.meta, pa.concat_tables(tables).unify_dictionaries(), self.routing, self.path)

    @property
    def num_rows(self) -> int:
        return sum(run.num_rows for run in self._runs.values())

    @cached_property
    def _merged(self) -> Routing | None:
        told = [run.routing for run in self._runs.values()]
        return together([r for r in told if r is not None])

    @property
    def routing(self) -> Routing | None:
        """Recorded routing: that of all ranks where they tell it alike, else their sum; None if a rank has none."""
        return self._merged if self.has_routing else None

    @property
    def has_routing(self) -> bool:
        return all(run.has_routing for run in self._runs.values())

    def _cuts(self) -> list[tuple[int, int]]:
        """Steps from and to (places; the first part has the rows of no step) of parts of about `_ROWS` rows."""
        count = len(self.meta.steps)
        per_part = max(1, count * _ROWS // max(1, self.num_rows))
        edges = [*range(0, count, per_part), count] if count else [0, 0]
        return [(low if i else -1, high) for i, (low, high) in enumerate(itertools.pairwise(edges))]

    def _rows(self, rank: int, columns: Sequence[str] | None, low: int, high: int) -> pa.Table:
        """A rank's rows of some steps, by the first rank's clock."""
        run = self._runs[rank]
        wanted = list(columns) if columns else None
        need = list(dict.fromkeys([*wanted, "step"])) if wanted else None  # a step has one shift
        whole = low < 0 and high >= len(self.meta.steps)
        table = run.table(need) if whole else _between(run, need, self._places[rank], low, high)
        at = {name: table.column(name) for name in table.column_names}
        moved = self._moved(rank, at["step"]) if {"start_ns", "launch_ns"} & set(at) else None
        for name in ("start_ns", "launch_ns"):
            if name in at and moved is not None:
                null = pc.is_null(at[name]).to_numpy()
                moment = pc.fill_null(at[name], 0).to_numpy() - moved
                at[name] = pa.chunked_array([pa.array(moment, pa.int64(), mask=null)])
        if "step" in at:
            at["step"] = _taken(self._numbers[rank], at["step"])
        if "device" in at:
            at["device"] = pa.chunked_array([pa.array(np.full(table.num_rows, rank), pa.int32())])
        if "op" in at and any(stride > 1 for stride in self._strides.values()):
            at["op"] = self._with_strides(at["op"])
        names = wanted or table.column_names
        return pa.table(
            {name: at[name] for name in names}, schema=pa.schema([table.schema.field(n) for n in names])
        )

    def _moved(self, rank: int, step: pa.ChunkedArray) -> IntArray:
        """What to take off the moments of each row, ns: one shift per step, so that what was recorded within it stays to the
        ns; rows of no step go with the first one."""
        steps = self._runs[rank].meta.steps
        start = np.array([s.start_ns for s in steps], dtype=np.int64)
        shift = np.zeros(int(self._places[rank].max(initial=-1)) + 2, dtype=np.int64)
        if len(steps):
            shift[:] = (start - self.aligned(rank, start))[0]
            shift[self._places[rank]] = start - self.aligned(rank, start)
        own = pc.fill_null(step, -1).to_numpy()
        return np.asarray(shift[np.minimum(own, len(shift) - 1)])

    def aligned(self, rank: int, moment: IntArray) -> IntArray:
        """Moments of a rank's clock, ns, by the first rank's."""
        clock, shift = self._clocks[rank], self._shifts[rank]
        if clock is None:
            return np.asarray(moment - shift)
        if not clock["drift"]:
            return np.asarray(moment - round(float(clock["offset_ns"])) - shift)
        away = moment - int(clock["at_ns"]) - float(clock["offset_ns"])
        return np.asarray(
            int(clock["at_ns"]) + np.rint(away / (1.0 + float(clock["drift"]))).astype(np.int64) - shift
        )

    def _with_strides(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Ops with the distance between the ranks of their groups, where the comparison found one that no trace stated."""
        encoded = column.unify_dictionaries().combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        texts = [self._strided(text) for text in encoded.dictionary.to_pylist()]
        return pa.chunked_array(
            [pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.string()))]
        )

    def _strided(self, text: str) -> str:
        if text.partition(" ")[0] not in TOGETHER:
            return text
        op = Op.parse(text)
        stride = self._strides.get(matched_name(op), 1)
        return str(op.with_dims(stride=stride)) if stride > 1 else text

    # -- steps ---------------------------------------------------------------------------------------------------
    @cached_property
    def _places(self) -> dict[int, IntArray]:
        """By rank: the number of each step in the rank's own table, in order of places."""
        return {
            rank: np.array([s.index for s in run.meta.steps], np.int64) for rank, run in self._runs.items()
        }

    @cached_property
    def _numbers(self) -> dict[int, IntArray]:
        """By rank: the number here of each step of the rank's own table."""
        out = {}
        here = self._places[self.ranks[0]]
        for rank, own in self._places.items():
            out[rank] = np.full(int(own.max(initial=-1)) + 1, -1, np.int64)
            out[rank][own] = here
        return out

    def _all_steps(self) -> Iterator[Step]:
        """The steps of all ranks together, each from the first begin to the last end."""
        runs = list(self._runs.items())
        own = [
            np.array([(s.start_ns, s.end_ns) for s in run.meta.steps], np.int64).reshape(-1, 2)
            for _, run in runs
        ]
        starts = np.stack(
            [self.aligned(rank, times[:, 0]) for (rank, _), times in zip(runs, own, strict=True)]
        )
        ends = starts + np.stack([times[:, 1] - times[:, 0] for times in own])
        for i, step in enumerate(runs[0][1].meta.steps):
            alike = [run.meta.steps[i] for _, run in runs]
            batch, tokens, kv = (
                work([getattr(s, n) for s in alike], self.meta) for n in ("batch", "tokens", "kv_tokens")
            )
            begin, end = int(starts[:, i].min()), int(ends[:, i].max())
            yield replace(step, start_ns=begin, end_ns=end, batch=batch, tokens=tokens, kv_tokens=kv)


def _taken(numbers: IntArray, column: pa.ChunkedArray) -> pa.ChunkedArray:
    null = pc.is_null(column).to_numpy()
    own = pc.fill_null(column, 0).to_numpy()
    fits = ~null & (own < len(numbers))
    new = np.where(fits, numbers[np.where(fits, own, 0)] if len(numbers) else -1, -1)
    return pa.chunked_array([pa.array(new, pa.int32(), mask=new < 0)])


def _between(run: Run, columns: list[str] | None, places: IntArray, low: int, high: int) -> pa.Table:
    """A rank's rows of the steps from `low` to `high`; below 0: with those of no step."""
    wanted = pa.array(places[max(0, low) : high], pa.int32())
    tables = []
    for part in run.parts(columns):
        table = part.table(columns)
        step = table.column("step")
        keep = pc.is_in(step, wanted)
        if low < 0:
            keep = pc.or_(keep, pc.is_null(step))
        if pc.any(keep).as_py():
            tables.append(table.filter(keep))
    return pa.concat_tables(tables).unify_dictionaries() if tables else run.table(columns).slice(0, 0)
