"""Figures for notebooks, drawn with matplotlib (`pip install 'moetrace[plot]'`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetrace.attribute import Attribution, check_attribution
from moetrace.errors import MoetraceError
from moetrace.run import Run, check_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, as in the report.
_PARTS = (
    ("memory_s", "memory", "#0072b2"), ("compute_s", "compute", "#e69f00"), ("network_s", "network", "#009e73"),
    ("fixed_s", "fixed cost", "#d98ab6"), ("unexplained_s", "not explained", "#646d79"),
)  # fmt: skip
_PHASES = {
    "prefill": "#e69f00",
    "decode": "#0072b2",
    "mixed": "#009e73",
    "verify": "#d98ab6",
    "draft": "#56b4e9",
}


def plot_steps(run: Run) -> Figure:
    """The time of each step in ms, coloured by its phase."""
    check_runs(run)
    figure, axes = _figure()
    for phase in dict.fromkeys(s.phase or "unknown" for s in run.meta.steps):
        mine = [s for s in run.meta.steps if (s.phase or "unknown") == phase]
        spans = [(s.end_ns - s.start_ns) / 1e6 for s in mine]
        axes.bar([s.index for s in mine], spans, label=phase, color=_PHASES.get(phase, "#646d79"))
    axes.set(xlabel="step", ylabel="time (ms)", title="Time of each step")
    if run.meta.steps:
        axes.legend()
    return figure


def plot_families(attribution: Attribution, phase: str = "decode") -> Figure:
    """The time of each op family in a mean step of a phase in ms, by what bounds it. Raises MoetraceError without the phase."""
    check_attribution(attribution)
    phases = attribution.summary["phases"]
    if phase not in list(phases):
        raise MoetraceError(f"the run has no {phase} steps: there are {', '.join(phases) or 'none'}")
    rows = phases[phase]["families"][::-1]
    figure, axes = _figure()
    names, left = [str(row["family"]) for row in rows], [0.0] * len(rows)
    for part, label, colour in _PARTS:
        width = [1e3 * row[part] / phases[phase]["steps"] for row in rows]
        if any(width):
            axes.barh(names, width, left=left, label=label, color=colour)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set(xlabel=f"time in a mean {phase} step (ms)", title=f"Held against {attribution.hardware}")
    axes.legend()
    return figure


def _figure() -> tuple[Figure, Axes]:
    """A figure that no window and no backend holds on to."""
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MoetraceError("plots need matplotlib: pip install 'moetrace[plot]'") from err
    figure = Figure(figsize=(8, 4), layout="constrained")
    return figure, figure.add_subplot()
