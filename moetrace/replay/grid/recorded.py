"""A grid of a recorded run: the run replayed once for each machine and combination of knobs, as rows of the same two tables.

Every scenario is anchored to what was measured, as a replay of its own is; those of a task are priced and laid out together
(`replayed`). Nothing is spread on a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from moetrace.errors import ScenarioError
from moetrace.hardware import Hardware
from moetrace.replay.assumptions import fewer_layers
from moetrace.replay.economics import economics, read_prices
from moetrace.replay.grid.plan import Task
from moetrace.replay.grid.replayed import Replayed, Replayer
from moetrace.replay.scenario import Scenario
from moetrace.replay.sets import SIZES, read_sets, scenarios
from moetrace.run import Run

MOST = 10_000
_FEW = 64  # replays in a task, so that an interrupted grid loses little
_FLOAT, _WORD = pa.float64(), pa.string()
_FIGURES = (
    "step_s", "step_low_s", "step_high_s", "measured_s", "idle_share", "anchored_share", "tpot_s", "user_speed_per_s",
    "output_throughput_per_s", "output_per_gpu_per_s", "tokens_per_joule", "cost_per_million_tokens", "needed_bytes",
)  # fmt: skip
_NO_TPOT = (
    "TPOT and rates are not known: the run is a simulation with prompts, the host's time or drafting between its steps; "
    "simulate the model in a grid"
)
MEASURED = ("tpot", "user_speed", "output_throughput")  # measures that a replay has


@dataclass(frozen=True, slots=True)
class Replays:
    """The plan of a grid of one run: a replay for each pair."""

    run: Run
    source: str
    pairs: tuple[tuple[Hardware, Scenario], ...]
    knobs: tuple[str, ...]
    prices: dict[str, float]
    asked: tuple[tuple[str, ...], ...]
    replayer: Replayer

    @property
    def whole(self) -> frozenset[str]:
        """The knobs whose values are all whole numbers: their columns are."""
        texts = {
            s.name for _, scenario in self.pairs for s in scenario.settings if not isinstance(s.value, int)
        }
        return frozenset(self.knobs) - texts

    @property
    def size(self) -> int:
        """Scenarios in all."""
        return len(self.pairs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of all scenarios."""
        said = () if self.run.meta.step_is_token else (_NO_TPOT,)
        if "layers" in self.knobs:
            return said
        layers = [int(part.numpy("layer").max(initial=-1)) + 1 for part in self.run.parts(("layer",))]
        return (*said, *fewer_layers(max(layers, default=0), self.run.meta.native_layers))

    def tasks(self) -> Iterator[Task]:
        """All scenarios, in tasks of few."""
        for start in range(0, self.size, _FEW):
            yield Task(start, min(start + _FEW, self.size))

    def facts(self) -> dict[str, Any]:
        """What tells this grid from others, JSON-able."""
        parts = repr((self.run.meta, {hw.name: hw for hw, _ in self.pairs}))
        return {
            "source": self.source,
            "asked": [list(texts) for texts in self.asked],
            "scenarios": self.size,
            "profiles": hashlib.sha256(parts.encode()).hexdigest(),
        }

    def tables(self, task: Task) -> tuple[pa.Table, pa.Table]:
        """(scenarios, breakdown) of a task."""
        rows: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = []
        numbers, whole = range(task.start, task.stop), self.whole
        pairs = self.pairs[task.start : task.stop]
        for number, found in zip(numbers, self.replayer.of(pairs), strict=True):
            row, families = self._row(number, found, whole)
            rows.append(row)
            parts += families
        knobs = ((name, pa.int64() if name in whole else _WORD) for name in self.knobs)
        schema = pa.schema([
            ("scenario", pa.int64()), ("model", _WORD), ("hardware", _WORD), ("gpus", pa.int32()), *knobs,
            ("phase", _WORD), *((name, _FLOAT) for name in _FIGURES), ("largest_batch", pa.int64()),
            ("wafers", pa.int64()), ("fits", pa.bool_()), ("in_context", pa.bool_()), ("routing_source", _WORD),
            ("beyond_fit", _WORD), ("problem", _WORD),
        ])  # fmt: skip
        families_of = pa.schema([
            ("scenario", pa.int64()), ("family", _WORD), ("bound", _WORD), ("step_s", _FLOAT),
        ])  # fmt: skip
        return pa.Table.from_pylist(rows, schema), pa.Table.from_pylist(parts, families_of)

    def _row(
        self, number: int, found: Replayed | str, whole: frozenset[str]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The row of one scenario, and those of its op families; the values of knobs in `whole` are numbers."""
        hw, scenario = self.pairs[number]
        model = self.run.meta.model
        row: dict[str, Any] = {
            "scenario": number, "model": model.name if model else None, "hardware": hw.name,
            **{s.name: s.value if s.name in whole else s.text for s in scenario.settings},
        }  # fmt: skip
        if isinstance(found, str):
            return {**row, "problem": found}, []
        step = found.step
        rate, tpot = step["tokens_per_s"], step["tpot_s"]
        money = economics(hw, rate, found.memory["wafers"], self.prices.get(hw.base or hw.name))
        decodes = rate is not None and found.phase == "decode"
        row |= {
            **{name: value for name, value in step.items() if name in _FIGURES},
            "gpus": found.gpus,
            "phase": found.phase,
            "user_speed_per_s": 1 / tpot if tpot else None,
            "output_throughput_per_s": rate if decodes else None,
            "output_per_gpu_per_s": rate / (found.memory["wafers"] or found.gpus)
            if rate and decodes
            else None,
            **{name: money[name] for name in ("tokens_per_joule", "cost_per_million_tokens")},
            **found.memory,
            "in_context": found.in_context,
            "routing_source": found.routing_source,
            "beyond_fit": found.beyond_fit or None,
        }
        return row, [
            {"scenario": number, "family": family, "bound": bound, "step_s": seconds}
            for family, bound, seconds in found.families
        ]


def replays_of(
    run: Run, source: str, machines: Sequence[Hardware], sets: Sequence[str], prices: Sequence[str] = ()
) -> Replays:
    """The plan of every combination of machines and knobs on one run. Raises ScenarioError with one line if it cannot be."""
    pairs = scenarios(sets, machines, run, most=MOST)
    names = dict.fromkeys((*read_sets(sets), *(name for _, scenario in pairs for name in scenario.texts())))
    knobs = tuple(name for name in names if name not in SIZES)
    asked = (tuple(hw.name for hw in machines), tuple(sets), tuple(prices))
    return Replays(run, source, tuple(pairs), knobs, read_prices(prices, machines), asked, Replayer(run))


def check_measures(slo: dict[str, float]) -> None:
    """Raises ScenarioError for a limit on what a replay does not have."""
    for name in slo:
        if name not in MEASURED:
            raise ScenarioError(
                f"--slo {name}: a replay has {', '.join(MEASURED)}; simulate the model for the others"
            )
