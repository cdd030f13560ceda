"""All that a report says of one run, as one JSON-able dict: what the page, the terminal and a program read alike.

distinct_ops (roofline), waterfall, routing, whatif (other machines, fewer experts), cluster, answers (to a reader's questions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import moetrace
from moetrace.attribute import Attribution, attribute
from moetrace.attribute.groups import Columns
from moetrace.hardware import Hardware, load_hardware, machines_of
from moetrace.ranks import Ranks
from moetrace.report.facts.answers import answers
from moetrace.report.facts.cluster import cluster
from moetrace.report.facts.routing import routing_facts
from moetrace.report.facts.waterfall import waterfalls
from moetrace.report.facts.whatif import default_machines, what_ifs
from moetrace.report.tables import of
from moetrace.run import Run
from moetrace.run import main_phase as of_run

SCHEMA = "moetrace.report/1"


def report_facts(
    run: Run,
    hardware: Hardware | str | None = None,
    machines: Sequence[Hardware | str] | Hardware | str | None = None,
    short: bool = False,
) -> tuple[dict[str, Any], Attribution]:
    """(facts of schema ``moetrace.report/1``, the attribution that they rest on).

    Held against `hardware`, by default the machine that it ran on; predicted on `machines` (default: its own, H100 and CS-3; an
    empty list: on none).
    With `short` only what the answers need is predicted. Raises ProfileError as `attribute` does.
    """
    machines = None if machines is None else machines_of(machines)
    held = attribute(run, hardware)
    machine = load_hardware(held.hardware if hardware is None else hardware)
    name = main_phase(held.summary["phases"])
    here = held.summary["phases"].get(name, {})
    waits = min(1.0, of(here.get("launch_bound_s"), here.get("idle_s")) or 0.0)
    what_if = what_ifs(run, default_machines(run) if machines is None else machines, waits, short)
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "moetrace": moetrace.__version__,
        "main_phase": name,
        "attribution": held.summary,
        "weights": expert_weights(run, held),
        "waterfall": waterfalls(run, held),
        "routing": routing_facts(run),
        "what_if": what_if,
        "ranks": dict(run.facts) if isinstance(run, Ranks) else None,
        "cluster": [] if short or machines == [] else cluster(run),
        "machine": {
            "name": machine.name,
            "title": machine.title,
            "law": machine.law,
            "peaks": dict(machine.peaks),
            "bytes_per_s": machine.memory.bytes_per_s,
            "sources": dict(machine.sources),
        },
    }
    return {**facts, "answers": answers(facts)}, held


def main_phase(phases: Sequence[str] | Any) -> str:
    """The phase that a report is about: decode where there is any."""
    return of_run(phases) or "unknown"


def expert_weights(run: Run, held: Attribution) -> dict[str, Any]:
    """By phase: bytes of expert weights that must be read in a mean step, all bytes, and the share of one in the other."""
    steps = held.summary["steps"]
    size = max((int(s["index"]) for s in steps), default=-1) + 1
    mine, whole = np.zeros(size), np.zeros(size)
    for part, table in zip(run.parts(), held.parts(), strict=True):
        c = Columns.of(part, table)
        family, names = part.codes("family")
        experts = family == (names.index("experts") if "experts" in names else -2)
        mine += c.total(c.step, part.numpy("weight_bytes", 0.0) * experts, size)
        whole += c.total(c.step, c.work.nbytes, size)
    out: dict[str, Any] = {}
    for phase in held.summary["phases"]:
        here = [int(s["index"]) for s in steps if (s["phase"] or "unknown") == phase]
        weights, moved = (float(by_step[here].mean()) for by_step in (mine, whole))
        out[phase] = {"expert_bytes": weights, "bytes": moved, "share": weights / moved if moved else None}
    return out


__all__ = ["SCHEMA", "expert_weights", "main_phase", "report_facts"]
