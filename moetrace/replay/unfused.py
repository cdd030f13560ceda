"""Expert GEMMs one by one: what frameworks do without a grouped kernel.

Each distinct expert gathers its rows, runs gate and up as one GEMM, the activation, down, and adds the rows back, five
kernels in place of its share of three grouped ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moetrace import ops as work_of
from moetrace.op import Op
from moetrace.replay.draft import EXPERTS, Draft


def unfused(draft: Draft) -> Draft:
    """The draft with grouped expert ops as rows of single experts' ops, as many as each touches, rows shared evenly."""
    kinds = np.array([op.kind for op in draft.ops])[draft.cell]
    times = np.ones(draft.rows.size, dtype=np.int64)
    parts: dict[int, list[Op]] = {}
    for cell, op in enumerate(draft.ops):
        if op.kind in EXPERTS and op.has("tokens", "hidden", "inter", "experts", "topk"):
            parts[cell] = _single(op)
    count = np.array([len(parts.get(cell, (None,))) for cell in range(len(draft.ops))], dtype=np.int64)
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
    ops = tuple(
        parts[cell][n] if cell in parts else op
        for op, cell, n in zip(split.ops, cells.tolist(), which.tolist(), strict=True)
    )
    origin = tuple(
        None if cell in parts else was for was, cell in zip(split.origin, cells.tolist(), strict=True)
    )
    new = np.array([cell in parts for cell in cells.tolist()], dtype=bool)[split.cell]
    return replace(split, ops=ops, origin=origin, inserted=split.inserted | new).noted(
        "experts=unfused: every distinct expert runs alone, its rows gathered and added back, all experts with as many rows"
    )


def _single(op: Op) -> list[Op]:
    """The ops of the experts that a grouped op touches, in order."""
    work = work_of.work(op)
    experts = max(1, round(work.experts))
    rows = max(1, round(work.rows / experts))
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
    ops = {"moe_gate_up": up, "moe_down": down, "moe_experts": up + down}[op.kind]
    return ops * experts
