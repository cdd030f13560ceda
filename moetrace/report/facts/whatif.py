"""Predictions that a report shows: the run on other machines, and fewer active experts, with the interval of their ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.attribute import attribute
from moetrace.errors import MoetraceError, ScenarioError
from moetrace.hardware import Hardware, load_hardware
from moetrace.model.accuracy import known_accuracy
from moetrace.replay import Prediction, Scenario, replay, scenarios
from moetrace.run import Run, codes_of

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
    steps = [s for s in run.meta.steps if s.phase == "decode"] or list(run.meta.steps)
    routed = set(run.routing.steps) if run.routing is not None else set()
    steps = [s for s in steps if s.index in routed] or steps
    steps.sort(key=lambda s: s.start_ns)
    places = np.unique(np.linspace(0, len(steps) - 1, min(SAMPLE, len(steps))).round().astype(int))
    kept = [steps[i] for i in places.tolist()]
    chosen = pc.is_in(run.column("step"), value_set=pa.array([s.index for s in kept], pa.int32()))
    cut = Run(run.meta, run.table().filter(chosen), run.routing, run.path)
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
            check_ranks(part)
            base = replay(part, hw, _scenario(depth, hw, run))
            rows.append(machine_row(base, hw, waits))
            if fewer is not None:
                values = (native, fewer) if short else tuple(range(native, 0, -1))
                curves += _curve(part, hw, (*depth, *_parallel(hw, run)), values)
        except MoetraceError as err:
            rows.append({"hardware": str(getattr(name, "name", name)), "error": str(err)})
    return {
        "steps": len(part.meta.steps),
        "of_steps": len([s for s in run.meta.steps if s.phase == "decode"]) or len(run.meta.steps),
        "phase": "decode" if part.meta.steps and part.meta.steps[0].phase == "decode" else "all",
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


def check_ranks(run: Run) -> None:
    """Raises ScenarioError where several devices share a rank: replay takes what one rank did as one device's work."""
    ranks, devices = (np.unique(run.numpy(name)).size for name in ("rank", "device"))
    if devices > ranks:
        raise ScenarioError(
            f"{devices} devices were recorded as {ranks} rank(s), which replay cannot tell apart: record a trace for each rank"
        )


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

    `memory_saves` and `launch_saves` are the shares of the step that twice the bandwidth and half the launch cost would save. A
    predicted run has no launch times: its idle time is the recording's, and so is the part of it that waits for launches.
    """
    facts, held = base.summary, attribute(base.run, hw).summary
    phase = "decode" if "decode" in facts["phases"] else next(iter(facts["phases"]))
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
        "launch_saves": saves.get("fixed cost per op", 0.0) + waits * saves.get("other idle time", 0.0),
        "distinct": facts["distinct"],
        "memory": facts["memory"],
        "wafers": facts["wafers"],
        "assumptions": facts["assumptions"],
    }


def _curve(run: Run, hw: Hardware, settings: tuple[str, ...], values: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of one machine: each n_a, and on a wafer each placement of experts; `ratio` is to the native n_a there."""
    found: list[tuple[Scenario, Prediction]] = []
    asked = [*settings, f"n_a={','.join(map(str, values))}"]
    found = [(scenario, replay(run, hw, scenario)) for machine, scenario in scenarios(asked, [hw], run)]
    base = {
        str(s.get("placement", "")): p for s, p in found if s.get("n_a") is not None and _n_a(s) == values[0]
    }
    out = []
    for scenario, prediction in found:
        placement = str(scenario.get("placement", ""))
        facts = prediction.summary
        phase = facts["phases"].get("decode") or next(iter(facts["phases"].values()))
        low, high = ratio_interval(base[placement], prediction)
        out.append(
            {
                "hardware": hw.name,
                "placement": placement or None,
                "n_a": _n_a(scenario),
                "step_s": phase["step_s"],
                "low_s": phase["low_s"],
                "high_s": phase["high_s"],
                "ratio": _step_s(prediction) / _step_s(base[placement]),
                "ratio_low": low,
                "ratio_high": high,
                "distinct": (facts["distinct"] or {}).get("mean_distinct"),
                "anchored": facts["anchored"],
            }
        )
    return out


def _n_a(scenario: Scenario) -> int:
    return int(scenario.texts()["n_a"])


def _step_s(prediction: Prediction) -> float:
    phases: Mapping[str, Any] = prediction.summary["phases"]
    return float((phases.get("decode") or next(iter(phases.values())))["step_s"])


def ratio_interval(base: Prediction, other: Prediction) -> tuple[float, float]:
    """Low and high end of other / base, if a family's law errs alike in both and families err apart from one another.

    Each family's times are scaled by a factor within its 80 % error, alike in both predictions, and the ratio's extremes over
    all such factors are taken. What is not an op's time (idle) stays as it is. Routing is taken as it was predicted.
    """
    here, there = _by_family(base), _by_family(other)
    names = sorted(set(here) | set(there))
    if not names:
        return 1.0, 1.0
    was, now = (np.array([side.get(n, (0.0, 0.0))[0] for n in names]) for side in (here, there))
    error = np.array([max(here.get(n, (0.0, 0.0))[1], there.get(n, (0.0, 0.0))[1]) for n in names])
    rest_was = max(0.0, _step_s(base) - float(was.sum()))
    rest_now = max(0.0, _step_s(other) - float(now.sum()))
    ends = []
    for sign in (-1.0, 1.0):
        ratio = _step_s(other) / _step_s(base)
        for _ in range(20):  # linear over linear: alternating between ratio and corner ends at the extreme
            up = sign * (now - ratio * was) > 0
            factor = np.where(up, 1 + error, 1 / (1 + error))
            ratio = float((now @ factor + rest_now) / (was @ factor + rest_was))
        ends.append(ratio)
    return ends[0], ends[1]


def _by_family(prediction: Prediction) -> dict[str, tuple[float, float]]:
    """Family -> (seconds of a mean step, error of its ops weighed by their time)."""
    run = prediction.run
    code, names = codes_of(run.column("family"))
    decode = [s.index for s in run.meta.steps if s.phase == "decode"] or [s.index for s in run.meta.steps]
    inside = np.isin(run.numpy("step"), decode) & (code >= 0)
    dur = run.numpy("dur_ns") / 1e9
    error = np.nan_to_num(run.numpy("error", np.nan))
    seconds = np.bincount(code[inside], weights=dur[inside], minlength=len(names))
    weighed = np.bincount(code[inside], weights=(dur * error)[inside], minlength=len(names))
    ranks = max(1, len(np.unique(run.numpy("rank")[inside])))
    return {
        names[i]: (float(seconds[i]) / len(decode) / ranks, float(weighed[i] / seconds[i]))
        for i in np.flatnonzero(seconds > 0).tolist()
    }


__all__ = [
    "SCALE_BASE",
    "check_ranks",
    "default_machines",
    "is_cut",
    "machine_row",
    "ratio_interval",
    "sampled",
    "what_ifs",
]
