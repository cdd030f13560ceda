"""Expert GEMMs one by one: what frameworks do without a grouped kernel.

Each distinct expert gathers its rows, runs gate and up as one GEMM, the activation, down, and adds the rows back, five
kernels in place of its share of three grouped ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moetrace.op import Op
from moetrace.replay.columns import works_of
from moetrace.replay.draft import EXPERTS, Draft, Loop
from moetrace.replay.lanes import largest


def unfused(draft: Draft) -> Draft:
    """The draft with grouped expert ops as loops over the experts that each touches, rows shared evenly."""
    kinds = np.array([op.kind for op in draft.ops])[draft.cell]
    parts: dict[int, tuple[list[Op], Any]] = {}
    for cell, op in enumerate(draft.ops):
        if op.kind in EXPERTS and op.has("tokens", "hidden", "inter", "experts", "topk"):
            parts[cell] = _single(op)
    count = np.array([len(parts[c][0]) if c in parts else 1 for c in range(len(draft.ops))], dtype=np.int64)
    times = count[draft.cell]
    times[(kinds == "moe_act") & bool(parts)] = 0  # it is among the single ops
    old = np.repeat(np.arange(draft.rows.size), times)
    nth = np.arange(old.size) - np.repeat(np.cumsum(times) - times, times)
    wide = replace(draft, rows=draft.rows[old], cell=draft.cell[old], inserted=draft.inserted[old])
    source = wide.cell
    fused = np.isin(source, list(parts))
    split, which = wide.split(np.where(fused, nth, 0))
    cells = np.zeros(len(split.ops), dtype=np.int64)
    cells[split.cell] = source
    ops, origin, loops = list(split.ops), list(split.origin), list[Loop | None]([None] * len(split.ops))
    for i, (cell, n) in enumerate(zip(cells.tolist(), which.tolist(), strict=True)):
        if cell in parts:
            one, experts = parts[cell]
            ops[i], origin[i] = one[n], None
            loops[i] = Loop(experts, len(one)) if n == 0 else None
    new = np.array([cell in parts for cell in cells.tolist()], dtype=bool)[split.cell]
    made = replace(
        split, ops=tuple(ops), origin=tuple(origin), inserted=split.inserted | new, loops=tuple(loops)
    )
    return made.noted(
        "experts=unfused: every distinct expert runs alone, its rows gathered and added back, all experts with as many rows"
    )


def unrolled(draft: Draft) -> Draft:
    """The draft with the rows of its loops as often as they run."""
    if not draft.loops:
        return draft
    length = np.array([loop.rows if loop else 1 for loop in draft.loops], dtype=np.int64)[draft.cell]
    times = np.array([int(loop.times) if loop else 1 for loop in draft.loops], dtype=np.int64)[draft.cell]
    here = np.arange(draft.rows.size)
    # Of each loop or row.
    begin = here[here >= np.maximum.accumulate(np.concatenate([[0], (here + length)[:-1]]))]
    size = length[begin] * times[begin]
    which = np.repeat(np.arange(begin.size), size)
    nth = np.arange(which.size) - np.repeat(np.cumsum(size) - size, size)
    pick = begin[which] + nth % length[begin][which]
    return replace(
        draft, rows=draft.rows[pick], cell=draft.cell[pick], inserted=draft.inserted[pick], loops=()
    )


def _single(op: Op) -> tuple[list[Op], Any]:
    """(the ops of one expert that a grouped op touches, in order; how many it touches)."""
    works, axis = works_of(op)
    touched, together = (
        values[0].item() if axis is None else axis.space.lanes(axis, values)
        for values in (works["experts"], works["rows"])
    )
    experts = largest(1, round(touched))
    rows = largest(1, round(together / experts))
    hidden, inter = int(op["hidden"]), int(op["inter"])
    act = op.act_dtype
    up = [
        Op.of("elementwise", act, elements=rows * hidden),
        Op.of("expert_up", op.dtype, m=rows, n=2 * inter, k=hidden),
        Op.of("expert_act", act, elements=rows * inter, reads=2),
    ]
    down = [
        Op.of("expert_down", op.dtype, m=rows, n=hidden, k=inter),
        Op.of("elementwise", act, elements=rows * hidden, reads=2),
    ]
    return {"moe_gate_up": up, "moe_down": down, "moe_experts": up + down}[op.kind], experts
