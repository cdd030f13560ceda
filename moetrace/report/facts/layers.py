"""Time by layer and op family: what each layer of a mean step is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from moetrace.attribute import Attribution
from moetrace.attribute.groups import Columns
from moetrace.run import Run


def layer_families(run: Run, held: Attribution) -> dict[str, Any]:
    """By phase: `families`, and `rows` (layer, or None for what is in no layer; seconds of each family in a mean step)."""
    c = Columns.of(run, held.table)
    layer, layers = c.codes("layer")
    family, families = c.codes("family")
    cell = np.where(layer >= 0, layer, len(layers)) * len(families) + family
    out: dict[str, Any] = {}
    for phase, facts in held.summary["phases"].items():
        here = c.only([s["index"] for s in held.summary["steps"] if (s["phase"] or "unknown") == phase])
        sums = here.total(cell, c.exposed, (len(layers) + 1) * len(families)) / int(facts["steps"])
        grid = sums.reshape(-1, len(families))
        order = np.argsort(-grid.sum(axis=0), kind="stable")
        names = [*layers, None]
        out[phase] = {
            "families": [families[i] for i in order.tolist()],
            "rows": [
                {"layer": names[i], "seconds": grid[i][order].tolist()}
                for i in range(len(names))
                if grid[i].sum() > 0
            ],
        }
    return out
