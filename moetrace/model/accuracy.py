"""Published accuracy of models run with fewer active experts: what a faster n_a costs, where somebody measured it.

Only uniform n_a (the same in every layer, chosen at inference, no retraining). A model that nobody measured has no entry: the
accuracy of one model says little of another's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One published point: mean accuracy in per cent over the source's benchmarks, at `n_a` active experts."""

    model: str
    n_a: int
    percent: float
    source: str


_V2_LITE = "arXiv 2505.03531, Table 10 (mean over its benchmarks)"
_V3 = "arXiv 2505.03531, Table 11 (mean over its benchmarks)"
KNOWN = (
    Accuracy("deepseek-v2-lite", 6, 66.0, _V2_LITE),
    Accuracy("deepseek-v2-lite", 4, 65.2, _V2_LITE),
    Accuracy("deepseek-v2-lite", 2, 60.4, _V2_LITE),
    Accuracy("deepseek-v3", 8, 73.0, _V3),
    Accuracy("deepseek-v3", 6, 72.9, _V3),
    Accuracy("deepseek-v3", 4, 70.6, _V3),
    Accuracy("deepseek-v3", 2, 60.8, _V3),
)


def known_accuracy(model: str | None) -> tuple[Accuracy, ...]:
    """The published points of a model by its catalogue name, highest n_a first; empty if there are none."""
    return tuple(point for point in KNOWN if point.model == model)
