"""Predictions that a report shows: the run on other machines, and at other n_a (fewer.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.attribute import attribute
from moetrace.errors import MoetraceError
from moetrace.hardware import Hardware, load_hardware
from moetrace.model.accuracy import known_accuracy
from moetrace.replay import Prediction, Scenario, replay
from moetrace.report.facts.fewer import curve
from moetrace.run import GENERATING, Run, main_phase, main_steps

SCALE_BASE = "h100-sxm"  # stands for a GPU where the run's own machine is none
SAMPLE = 9  # steps that stand for all in predictions


def default_machines(run: Run) -> list[str]:
    """The run's own machine first where a measurement anchors it, then H100 (as many as the run had) and CS-3."""
    gpus = max(1, run.meta.gpus)
    other = SCALE_BASE if gpus == 1 else f"{SCALE_BASE}-x{gpus}"
    return list(dict.fromkeys([*([run.meta.hardware] if run.meta.hardware else []), other, "cs3"]))


def sampled(run: Run) -> Run:
    """The run cut to a few of its decode steps (of all steps if none is), evenly spaced in time.

    Where routing was recorded for some of them only, those are taken: at another n_a they are counted as they are at this one.
    """
    steps = main_steps(run.meta.steps)
    routed = set(run.routing.steps) if run.routing is not None else set()
    steps = [s for s in steps if s.index in routed] or steps
    steps.sort(key=lambda s: s.start_ns)
    places = np.unique(np.linspace(0, len(steps) - 1, min(SAMPLE, len(steps))).round().astype(int))
    kept = [steps[i] for i in places.tolist()]
    chosen = pa.array([s.index for s in kept], pa.int32())
    tables = [part.table().filter(pc.is_in(part.column("step"), value_set=chosen)) for part in run.parts()]
    cut = Run(run.meta, pa.concat_tables(tables), run.routing, run.path)
    return cut.with_meta(steps=tuple(kept))


def what_ifs(
    run: Run, machines: Sequence[Hardware | str], waits: float = 0.0, short: bool = False
) -> dict[str, Any]:
    """`machines`, a row each (or one with `error`); `n_a`, a row per machine, placement and n_a, with `accuracy` points.

    Predictions stand on the steps of `sampled`, at the model's real depth where fewer were recorded. `waits` is the share of
    the recording's idle time in which the host had not launched yet. With `short` only the native n_a and a quarter less are
    predicted.
    """
    part = sampled(run)
    depth = ("layers=native",) if is_cut(run) else ()
    native = _topk(run)
    fewer = max(1, 3 * native // 4) if native > 1 else None
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for name in machines:
        try:
            hw = load_hardware(name)
            base = replay(part, hw, _scenario(depth, hw, run))
            rows.append(machine_row(base, hw, waits))
            if fewer is not None:
                values = (native, fewer) if short else tuple(range(native, 0, -1))
                curves += curve(part, hw, (*depth, *_parallel(hw, run)), values)
        except MoetraceError as err:
            rows.append({"hardware": str(getattr(name, "name", name)), "error": str(err)})
    return {
        "steps": len(part.meta.steps),
        "of_steps": len(main_steps(run.meta.steps)),
        "phase": phase if part.meta.steps and (phase := part.meta.steps[0].phase) in GENERATING else "all",
        "depth": run.meta.native_layers if depth else None,
        "batch": _batch(part),
        "native_n_a": native or None,
        "fewer_n_a": fewer,
        "machines": rows,
        "n_a": curves,
        "accuracy": [
            {"n_a": p.n_a, "percent": p.percent, "source": p.source}
            for p in known_accuracy(run.meta.model.name if run.meta.model else None)
        ],
    }


def is_cut(run: Run) -> bool:
    """Whether fewer layers were recorded than the model has."""
    layers = run.numpy("layer")
    return bool(run.meta.native_layers and 0 <= layers.max(initial=-1) < run.meta.native_layers - 1)


def _topk(run: Run) -> int:
    """The native n_a, 0 for a model without experts or one that is not known."""
    model = run.meta.model
    return int(model.topk) if model is not None and model.experts else 0


def _batch(run: Run) -> float | None:
    known = [s.batch for s in run.meta.steps if s.batch]
    return float(np.median(known)) if known else None


def _parallel(hw: Hardware, run: Run) -> tuple[str, ...]:
    """tp fills a machine of several devices, unless the run has its parallelism already."""
    return (f"tp={hw.gpus}",) if hw.gpus > 1 and run.meta.gpus == 1 else ()


def _scenario(depth: tuple[str, ...], hw: Hardware, run: Run) -> Scenario:
    return Scenario.of(*depth, *_parallel(hw, run))


def machine_row(base: Prediction, hw: Hardware, waits: float) -> dict[str, Any]:
    """One machine: the prediction's summary for a decode step, and where its time goes by what bounds it.

    `memory_saves` and `launch_saves` are the shares of the step that twice the bandwidth and half the launch cost would save.
    The idle time of a recording's prediction is the recording's, and so is the part of it that waits for launches; where no
    recording says, all of it does in steps that the host launches.
    """
    facts, held = base.summary, attribute(base.run, hw).summary
    phase = main_phase(facts["phases"]) or "unknown"
    here = held["phases"].get(phase, held)
    saves = {h["what"]: float(h["saves_share"]) for h in here["halving"]}
    return {
        "hardware": hw.name,
        "title": hw.title,
        "law": hw.law,
        "gpus": hw.gpus,
        "label": facts["label"],
        **{k: facts["phases"][phase][k] for k in ("step_s", "low_s", "high_s", "idle_share", "tokens_per_s")},
        "anchored": facts["anchored"],
        "anchored_share": facts["anchored_share"],
        "families": facts["families"],
        "parts": {
            name: here[f"{name}_s"]
            for name in ("memory", "compute", "network", "fixed", "unexplained", "idle")
        },
        "memory_saves": saves.get("memory bandwidth", 0.0),
        "launch_saves": saves.get("fixed cost per op", 0.0)
        + saves.get("launch waits", 0.0)
        + waits * saves.get("other idle time", 0.0),
        "distinct": facts["distinct"],
        "memory": facts["memory"],
        "wafers": facts["wafers"],
        "assumptions": facts["assumptions"],
    }


__all__ = [
    "SCALE_BASE",
    "default_machines",
    "is_cut",
    "machine_row",
    "sampled",
    "what_ifs",
]
