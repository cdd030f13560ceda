"""How many rows an index picks where each expert runs on rows of its own: torch records no shape of the list that says which.

The GEMM behind it tells: it multiplies what was picked. Counted as all of the step's rows, each expert's share would make
bytes, and so a lower bound, that a correct measurement beats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from moetrace.formats.events import Events, Tensors
from moetrace.formats.texts import matching
from moetrace.ops import Seen, gemm
from moetrace.ops.elementwise import PICKS
from moetrace.parse.nesting import IntArray
from moetrace.parse.rows import Rows

_INDEX = re.compile(r"aten::index$")


def picked_rows(
    events: Events, rows: Rows, layer: IntArray, role: IntArray, labels: Sequence[str]
) -> tuple[IntArray, list[str]]:
    """(role per row, labels) in which an index for one expert says its rows, as `picks 3`.

    Hidden states are indexed ahead of the expert's first GEMM, routing weights behind its last. Nothing is said where one
    index is followed by several experts: their rows are slices of it.
    """
    labels = list(labels)
    index = np.flatnonzero(matching(events.texts, rows.operator, _INDEX.search) & (rows.step >= 0))
    up, down = (
        np.flatnonzero(np.array([label == name for label in [*labels, ""]])[role])
        for name in ("expert_up", "expert_down")
    )
    if not len(index) or not len(up) or not len(down):
        return role, labels
    cell = rows.step * (int(layer.max()) + 2) + layer + 1
    width = _table(events, rows.tensors[index], _width)
    ahead = up[np.minimum(np.searchsorted(up, index), len(up) - 1)]
    feeds = (ahead > index) & (cell[ahead] == cell[index])
    feeds &= width == _table(events, rows.tensors[ahead], lambda t: gemm.rows(_seen(t))[1])
    states = index[feeds]
    # The expert whose rows each index picked is the one that ends before the next index; one index, one expert.
    owner = np.searchsorted(states, down) - 1
    owned = (owner >= 0) & (cell[states[owner]] == cell[down]) if len(states) else owner >= 0
    alone = np.bincount(owner[owned], minlength=len(states)) == 1
    behind = down[np.maximum(np.searchsorted(down, index) - 1, 0)]
    weighs = (width == 1) & (behind < index) & (cell[behind] == cell[index])
    weighs &= np.isin(behind, down[owned][alone[owner[owned]]])
    picks, ends = (
        np.concatenate([states[alone], index[weighs]]),
        np.concatenate([ahead[feeds][alone], behind[weighs]]),
    )
    role = role.copy()
    known = {label: i for i, label in enumerate(labels)}
    number = _table(events, rows.tensors[ends], lambda t: gemm.rows(_seen(t))[0])
    for n in np.unique(number).tolist():
        role[picks[number == n]] = known.setdefault(f"{PICKS} {n}", len(known))
    return role, list(known)


def _table(events: Events, tensors: IntArray, of: Callable[[Tensors], int]) -> IntArray:
    """What `of` says of each set of tensors, 0 where there is none; asked once per distinct set."""
    codes, inverse = np.unique(tensors, return_inverse=True)
    said = [of(events.tensor_sets[code]) if code >= 0 else 0 for code in codes.tolist()]
    return np.array(said, dtype=np.int64)[inverse.reshape(-1)]


def _width(tensors: Tensors) -> int:
    """Elements of one picked row of floats, 0 for anything else."""
    shape, dtype = next(iter(_seen(tensors).tensors), ((), ""))
    return shape[-1] if len(shape) > 1 and not dtype.startswith(("int", "bool")) else 0


def _seen(tensors: Tensors) -> Seen:
    return Seen("", "", tensors.shapes, tensors.dtypes)
