"""The run on more devices of one kind: tensor parallel alone, and with the experts shared out over the same ranks."""

from __future__ import annotations

from typing import Any

from moetrace.errors import MoetraceError
from moetrace.hardware import load_hardware
from moetrace.replay import Scenario, replay
from moetrace.report.facts.whatif import SCALE_BASE, is_cut, machine_row, sampled
from moetrace.run import Run

RANKS = (1, 2, 4, 8)


def cluster(run: Run) -> list[dict[str, Any]]:
    """A row for each number of devices and way to share the work; none for a run of several devices.

    The device is the run's own where that is a GPU with nodes, else an H100. What cannot be predicted is left out.
    """
    if run.meta.gpus > 1 or not len(run.meta.steps):
        return []
    part, depth = sampled(run), ("layers=native",) if is_cut(run) else ()
    own = run.meta.hardware if run.meta.device_class == "gpu" else None
    experts = bool(run.meta.model and run.meta.model.experts)
    rows = []
    for ranks in RANKS:
        for ep in (1, ranks) if experts and ranks > 1 else (1,):
            settings = [f"tp={ranks}"] * (ranks > 1) + [f"ep={ep}"] * (ep > 1)
            try:
                hw = load_hardware((own or SCALE_BASE) + (f"-x{ranks}" if ranks > 1 else ""))
                found = machine_row(replay(part, hw, Scenario.of(*depth, *settings)), hw, 0.0)
            except MoetraceError:  # a device without a link has no nodes; heads may not divide
                continue
            rate = found["tokens_per_s"]
            rows.append({**found, "ranks": ranks, "ep": ep, "per_device": rate / ranks if rate else None})
    return rows if len(rows) > 1 else []
