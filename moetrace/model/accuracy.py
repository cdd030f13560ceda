"""Published accuracy of models run with fewer active or fewer experts: what a faster edit costs, where somebody measured it.

Chosen at inference, no retraining. A model or an edit that nobody measured has no entry: the accuracy of one says little of
another's.
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


# (model, knob, value as --set writes it): per cent, source. n_e without regard to use, and by activation count.
_KEPT = "arXiv 2505.03531, Table 2 (mean over its benchmarks; experts chosen {})"
_PARTS = f"{_V3}; a schedule by parts of the depth"
EDITED: dict[tuple[str, str, str], tuple[float, str]] = {
    ("deepseek-v3", "n_a", "6/8/8"): (73.3, _PARTS),
    ("deepseek-v3", "n_a", "8/6/6"): (73.1, _PARTS),
    ("deepseek-v3", "n_a", "8/4/4"): (72.3, _PARTS),
    ("deepseek-v3", "n_a", "6/4/4"): (71.4, _PARTS),
    ("deepseek-v2-lite", "n_e", "48"): (60.7, _KEPT.format("at random")),
    ("deepseek-v2-lite", "n_e", "32"): (37.7, _KEPT.format("at random")),
    ("deepseek-v2-lite", "n_e", "16"): (37.4, _KEPT.format("at random")),
    ("deepseek-v2-lite", "n_e", "48@popular"): (62.1, _KEPT.format("by activation count")),
    ("deepseek-v2-lite", "n_e", "32@popular"): (56.3, _KEPT.format("by activation count")),
    ("deepseek-v2-lite", "n_e", "16@popular"): (39.6, _KEPT.format("by activation count")),
}


def edited_accuracy(model: str | None, knob: str, value: str) -> dict[str, float | str] | None:
    """Published accuracy of one edit: ``percent``, that of the model as it is (``native``), ``knob``, ``value``, ``source``."""
    points = known_accuracy(model)
    found = EDITED.get((model or "", knob, value.removesuffix("@random")))
    if found is None and knob == "n_a":
        found = next(((p.percent, p.source) for p in points if str(p.n_a) == value), None)
    if found is None or not points or (knob == "n_a" and value == str(points[0].n_a)):
        return None  # not measured, or the model as it is
    return {
        "percent": found[0],
        "native": points[0].percent,
        "knob": knob,
        "value": value,
        "source": found[1],
    }
