"""Run x Run -> what changed: time of a step by op and layer, largest change first, and whether it may be noise.

Ops are matched by family, kind and layer (an op without a known kind by its kernel's name), never by order, so that other
engines, kernels, shapes and machines can be compared. What ops do at other settings is not corrected for: it is the change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moetrace import markup
from moetrace.diff.gates import METRICS, Gate, check_metrics
from moetrace.diff.intervals import LEAST, difference
from moetrace.diff.metrics import change_of, judged, metrics_of, tpot_of
from moetrace.diff.samples import BETWEEN, IDLE, Key, Samples, collect
from moetrace.errors import RunError, ScenarioError, unknown
from moetrace.given import several
from moetrace.run import Run, check_runs, main_phase
from moetrace.units import seconds

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "moetrace.diff/1"
TABLES = ("families", "ops", "layers", "op_layers")
FEW = 8  # steps below which the text warns
FloatArray = npt.NDArray[np.float64]
_OUTSIDE = (IDLE[0], BETWEEN[0])


@dataclass(frozen=True, slots=True)
class Diff:
    """What two runs differ in: `facts`, JSON-able, of schema ``moetrace.diff/1``."""

    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        step = self.facts["metrics"]["step"]
        return f"<Diff: a step {seconds(step['before_s'])} -> {seconds(step['after_s'])}; .facts, .failed>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the op families, those first whose change is not noise."""
        rows = [
            (
                row["family"],
                seconds(row["before_s"]),
                seconds(row["after_s"]),
                "none" if not row["change_s"] else f"{row['change_s'] * 1e6:+,.1f} us",
                "yes" if row["sure"] else "no",
            )
            for row in self.facts["families"]
        ]
        title = f"Time of a mean {self.facts['phase']} step by family"
        return markup.table(title, ("family", "before", "after", "change", "beyond noise"), rows)

    def to_pandas(self, table: str = "families") -> pd.DataFrame:
        """One table as a DataFrame, a row per family (or op, layer, op of a layer), largest change first; times in seconds.

        Raises RunError if there is no such table: there are `families`, `ops`, `layers` and `op_layers`.
        """
        import pandas as pd

        if table not in TABLES:
            raise RunError(unknown("table", str(table), TABLES))
        return pd.DataFrame(self.facts[table])

    @property
    def failed(self) -> bool:
        """Whether a gate failed."""
        return any(gate["result"] == "failed" for gate in self.facts["gates"])


def diff(
    before: Run,
    after: Run,
    gates: Sequence[str] | str = (),
    confidence: float = 0.95,
    phase: str | None = None,
) -> Diff:
    """What changed from one run to another, in a mean step of `phase` (default: decode where both have any).

    Tables `families`, `ops`, `layers` and `op_layers` have seconds before, after, and their change with an interval; `sure`
    says that 0 is outside of it. The intervals of one table hold all at once with the stated confidence, so noise alone makes
    any row of it sure in 1 - confidence of comparisons at most. Each gate stands for itself at that confidence.
    Raises RunError where the runs have no phase in common or too few steps for a gate, ScenarioError
    for a gate that cannot be read.
    """
    check_runs(before, after)
    wanted = [
        Gate.of(text) for text in several(gates, str, "gate", "expected text such as tpot<+3%", ScenarioError)
    ]
    if not (isinstance(confidence, int | float) and 0 < confidence < 1):
        raise ScenarioError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    name = phase or _common_phase(before, after)
    a, b = collect(before, name), collect(after, name)
    for which, samples in (("before", a), ("after", b)):
        if not samples.steps:
            raise RunError(f"the run {which} has no {name} steps: nothing to compare")
    paired = a.alike(b)
    families = {key[0] for key in (*a.keys, *b.keys)} - set(_OUTSIDE)
    check_metrics(wanted, families)
    tables = {
        "families": _table(a, b, paired, confidence, lambda key: (key[0], None, None)),
        "ops": _table(a, b, paired, confidence, lambda key: (key[0], key[1], None)),
        "layers": _table(a, b, paired, confidence, _by_layer),
        "op_layers": _table(a, b, paired, confidence, lambda key: key),
    }
    for row in tables["ops"]:
        row["kernels_before"] = list(a.kernels.get(row["op"], ()))
        row["kernels_after"] = list(b.kernels.get(row["op"], ()))
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "confidence": confidence,
        "phase": name,
        "paired": paired,
        "runs": {"before": _run_facts(before, a), "after": _run_facts(after, b)},
    }
    facts["differences"] = _differences(facts["runs"])
    facts["tpot_of"] = tpot_of(before, after) if name == "decode" else "steps"
    facts["metrics"] = metrics_of(before, after, a, b, facts["tpot_of"], paired, confidence)
    facts |= tables
    facts["gates"] = [judged(gate, before, after, confidence) for gate in wanted]
    facts["notes"] = _notes(before, after, a, b, paired)
    return Diff(facts)


def _common_phase(before: Run, after: Run) -> str:
    have = [list(dict.fromkeys(s.phase or "unknown" for s in run.meta.steps)) for run in (before, after)]
    both = [phase for phase in have[0] if phase in have[1]]
    if not both:
        said = " and ".join(", ".join(h) or "no steps" for h in have)
        raise RunError(f"the runs have no phase in common ({said}): nothing to compare")
    return main_phase(both) or both[0]


def _by_layer(key: Key) -> tuple[str | None, str | None, int | None]:
    """Layers, and what lies outside of them by name."""
    return (key[0] if key[0] in _OUTSIDE else None, None, key[2])


Group = tuple[str | None, str | None, int | None]


def _table(
    a: Samples, b: Samples, paired: bool, confidence: float, group_of: Callable[[Key], Group]
) -> list[dict[str, Any]]:
    """A row per group of keys: sure ones first, then by size of the change."""
    groups = list(dict.fromkeys(group_of(key) for key in (*a.keys, *b.keys)))
    before, after = _grouped(a, groups, group_of), _grouped(b, groups, group_of)
    change = difference(before[0], after[0], paired)
    # Bonferroni: with 1/K of the chance for each of the K rows that differ at all, all intervals hold at once.
    tested = int(((change.mean != 0) | (change.variance > 0)).sum())
    half = change.half_width((1 - confidence) / 2 / max(1, tested))
    rows = []
    for i, (family, op, layer) in enumerate(groups):
        mean, width = float(change.mean[i]), float(half[i])
        row: dict[str, Any] = {"family": family, "op": op, "layer": layer}
        row |= change_of(float(before[0][:, i].mean()), float(after[0][:, i].mean()), mean, width)
        for side, (_, work) in (("before", before), ("after", after)):
            count, moved, timed = work[:, i].tolist()
            row[f"count_{side}"] = count
            row[f"bytes_{side}"] = moved if timed else None
            row[f"bytes_per_s_{side}"] = moved / timed if timed else None
        rows.append(row)
    rows.sort(key=lambda r: (not r["sure"], -abs(r["change_s"])))
    return rows


def _grouped(
    samples: Samples, groups: Sequence[Group], group_of: Callable[[Key], Group]
) -> tuple[FloatArray, FloatArray]:
    """(seconds by step and group; counts, bytes and seconds of known bytes by group)."""
    place = {group: i for i, group in enumerate(groups)}
    seconds = np.zeros((len(samples.seconds), len(groups)))
    work = np.zeros((3, len(groups)))
    parts = np.vstack([samples.count, samples.nbytes, samples.known_s])
    for column, key in enumerate(samples.keys):
        seconds[:, place[group_of(key)]] += samples.seconds[:, column]
        work[:, place[group_of(key)]] += parts[:, column]
    return seconds, work


def _run_facts(run: Run, samples: Samples) -> dict[str, Any]:
    meta, steps = run.meta, samples.steps
    return {
        "source": meta.source,
        "kind": meta.kind,
        "model": meta.model.name if meta.model else None,
        "layers": len({key[2] for key in samples.keys if key[2] is not None}),
        "hardware": meta.hardware or meta.device or None,
        "engine": meta.engine,
        "gpus": meta.gpus,
        "tp": meta.tp,
        "ep": meta.ep,
        "pp": meta.pp,
        "dp": meta.dp,
        "n_a": _n_a(run),
        "edits": ", ".join(f"{k}={v}" for k, v in meta.facts.get("scenario", {}).items()) or None,
        "batch": _median([s.batch for s in steps]),
        "tokens": _median([s.tokens for s in steps]),
        "kv_tokens": _median([s.kv_tokens for s in steps]),
        "steps": len(steps),
    }


def _n_a(run: Run) -> int | str | None:
    """Experts per token: the model's, unless the run is predicted at another number; text where layers differ."""
    asked = str(run.meta.facts.get("scenario", {}).get("n_a", "native"))
    if asked == "native":
        return run.meta.model.topk if run.meta.model else None
    return int(asked) if asked.isdigit() else asked


def _median(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _differences(runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is known to differ between the runs besides their times."""
    before, after = runs["before"], runs["after"]
    return [
        {"what": what, "before": before[what], "after": after[what]}
        for what in before
        if what != "source" and before[what] != after[what]
    ]


def _notes(before: Run, after: Run, a: Samples, b: Samples, paired: bool) -> list[str]:
    notes = []
    fewest = min(len(a.steps), len(b.steps))
    if fewest < LEAST:
        notes.append("one step in a run: nothing can be said of noise, and no change is called sure")
    elif fewest < FEW:
        notes.append(
            f"few steps ({len(a.steps)} before, {len(b.steps)} after): the intervals take them as alike and independent, which "
            "so few cannot show"
        )
    if paired:
        notes.append(
            "the steps do the same work one by one (batch, tokens and KV tokens): they are compared in pairs"
        )
    if before.meta.kind == after.meta.kind != "measured":
        notes.append(
            f"both runs are {before.meta.kind}: the intervals hold the spread of their steps, not their own error"
        )
        return notes
    for name, run in (("before", before), ("after", after)):
        if run.meta.kind != "measured":
            notes.append(
                f"the run {name} is {run.meta.kind}: the intervals hold the spread of its steps, not its own error"
            )
    return notes


__all__ = ["METRICS", "SCHEMA", "Diff", "diff"]
