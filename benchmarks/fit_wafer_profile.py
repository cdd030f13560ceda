"""Fits the wafer law's free coefficients to the published points that ship with moetrace, and scores it leave-one-model-out.

    python benchmarks/fit_wafer_profile.py

Three coefficients, none per model: t0_s and hop_s (latency of a reduction, and what each core along a side adds) on
WaferLLM's decode speeds on WSE-2, by its number of cores; eta_flops (share of the dense peak that the cores of a matrix reach
on one token) on the CS-3 speeds of models published before the service drafted tokens (Llama 3.1 8B and 70B, August 2024).
Speeds of later rows hold a factor that is not the law's: tokens per pass, taken as one number for all models whose pass takes
longer than SPECULATED_ABOVE_S without it (moetrace/validate/sources/wafer.py says why), fitted as a median.

Two more, shift_s and eta_mesh (a step of a product of many tokens over the whole mesh, and the share of the dense peak within
it), on WaferLLM's prefill on WSE-2, each model's predicted from the other's too.

A model is scored on the median of its dated rows that are not marked approximate, else of the approximate ones; a row that says
it drafted tokens apart; Llama 3.1 and 3.3 70B are one model. When a model is left out, so are all its rows, those of WSE-2 too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from scipy.optimize import least_squares

from moetrace import Scenario, Workload, load_hardware, load_model, simulate
from moetrace import ops as work_of
from moetrace.hardware import Hardware
from moetrace.machines.seen import ranges
from moetrace.op import Op, OpColumns
from moetrace.synthesize import synthesize
from moetrace.validate.figure import Figure, shipped
from moetrace.validate.simulating import model_of
from moetrace.validate.sources.wafer import (
    DECODE_AT,
    LENGTHS,
    SPECULATED_ABOVE_S,
    is_late,
    part_of,
    side_of,
)

START = (0.9e-6, 0.8e-9, 0.4)
ONE = {"llama-3.3-70b": "llama-3.1-70b", "llama-3-8b": "llama-3.1-8b"}


def with_coefficients(hw: Hardware, t0_s: float, hop_s: float, eta: float) -> Hardware:
    """The profile with these for every family that reduces over its cores; local ops keep their time."""
    families = {
        key: replace(f, value=MappingProxyType({**f.value, "t0_s": t0_s, "eta_flops": eta}))
        if f["t0_s"] > 5e-7
        else f
        for key, f in hw.families.items()
    }
    assert hw.wafer is not None
    return replace(hw, families=families, wafer=replace(hw.wafer, hop_s=hop_s))


def step_s(figure: Figure, p: Sequence[float], placement: str = "spread") -> float:
    """Seconds of one pass of the figure's model on its machine."""
    if figure.kind == "WLM4":
        base, lengths, placement = load_hardware("wse2"), DECODE_AT, "whole"
        base = part_of(base, side_of(figure) or 0)
    else:
        base, lengths = load_hardware("cs3"), LENGTHS
    hw = with_coefficients(base, *p)
    found = simulate(
        load_model(model_of(figure.model)), Workload(1, *lengths), hw, Scenario.of(f"placement={placement}")
    )
    return float(found.summary["metrics"]["tpot"]["value"])


def fit(points: Sequence[Figure]) -> np.ndarray:
    """(t0_s, hop_s, eta) on log error; each machine's points weigh the same."""
    wse2 = [f for f in points if f.kind == "WLM4"]
    cs3 = [f for f in points if f.kind == "CS3"]
    weight = np.array([1 / np.sqrt(len(wse2))] * len(wse2) + [1 / np.sqrt(max(1, len(cs3)))] * len(cs3))

    def residual(x: np.ndarray) -> np.ndarray:
        p = np.exp(x - 1.0) * START
        return weight * np.array([np.log(step_s(f, p) * (f.measured or 1.0)) for f in (*wse2, *cs3)])

    # Times are whole ns: no finer step.
    found = least_squares(residual, np.ones(3), diff_step=0.02, max_nfev=6)
    return np.asarray(np.exp(found.x - 1.0) * START)


def prefill_s(figure: Figure, shift_s: float, eta_mesh: float) -> float:
    """Seconds of one prefill of WaferLLM on WSE-2."""
    base, side = load_hardware("wse2"), side_of(figure)
    assert base.wafer is not None and side is not None
    hw = part_of(replace(base, wafer=replace(base.wafer, shift_s=shift_s, eta_mesh=eta_mesh)), side)
    load = Workload(1, int(figure.input_len), 1)
    found = simulate(load_model(model_of(figure.model)), load, hw, Scenario.of("placement=whole"))
    return float(found.summary["metrics"]["ttft"]["value"])


def show_prefill(figures: Sequence[Figure]) -> None:
    """Prints shift_s and eta_mesh of each model and of both, and how far off either leaves every row."""
    took = np.array([int(f.input_len) / (f.measured or 1.0) for f in figures])
    # The time is linear in shift_s and in 1 / eta_mesh.
    plain = np.array([prefill_s(f, 0.0, 1.0) for f in figures])
    shift = np.array([prefill_s(f, 1e-6, 1.0) for f in figures]) - plain
    slow = np.array([prefill_s(f, 0.0, 0.5) for f in figures]) - plain
    models = np.array([f.model for f in figures])
    for name in (*sorted(set(models.tolist())), "both"):
        rows = (models == name) | (name == "both")

        def residual(x: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
            return np.log((plain + x[0] * shift + x[1] * slow)[rows] / took[rows])

        x = least_squares(residual, np.ones(2)).x
        off = took / (plain + x[0] * shift + x[1] * slow) - 1
        told = ", ".join(f"{m} {100 * e:+.1f} %" for m, e in zip(models, off, strict=True))
        print(f"prefill, {name}: shift_s {x[0] * 1e-6:.3g}, eta_mesh {1 / (1 + x[1]):.3g}: {told}")


def show_seen(figures: Sequence[Figure]) -> None:
    """Prints the least and the most of each size in the decode steps that the fit saw, as a profile states them (`seen`)."""
    found: dict[str, set[Op]] = {}
    for figure in figures:
        lengths = DECODE_AT if figure.kind == "WLM4" else LENGTHS
        run = synthesize(load_model(model_of(figure.model)), Workload(1, *lengths))
        code, texts = run.codes("op")
        decodes = np.array([step.phase == "decode" for step in run.meta.steps])[run.numpy("step").astype(int)]
        for text in {texts[i] for i in code[decodes].tolist()}:
            op = Op.parse(text)
            found.setdefault(work_of.family(op.kind), set()).add(op)
    for family in ("dense_gemm", "attention"):
        print(f"seen, {family}: {ranges(OpColumns.of(sorted(found[family], key=str)))}")


def name_of(figure: Figure) -> str:
    model = model_of(figure.model)
    return ONE.get(model, model)


def scored_speed(rows: Sequence[Figure]) -> float:
    """The median of the rows that are not approximate, else of the approximate ones."""
    exact = [f for f in rows if "approx" not in f.other_knob]
    return statistics.median(f.measured or 0.0 for f in exact or rows)


def main() -> None:
    figures = shipped()
    wse2 = [f for f in figures if f.kind == "WLM4" and f.hw == "WSE-2" and side_of(f)]
    speeds = [f for f in figures if f.kind == "CS3" and f.metric == "output_speed_per_user"]
    plain = [f for f in speeds if not is_late(f)]
    p = fit([*wse2, *plain])
    print(f"all points: t0_s {p[0]:.3g}, hop_s {p[1]:.3g}, eta_flops {p[2]:.3g}")
    show_seen([*wse2, *plain])
    show_prefill([f for f in figures if f.kind == "WLM3" and f.hw == "WSE-2"])
    models = sorted({name_of(f) for f in speeds})
    placements = ("spread", "own")
    for left in models:
        kept = [f for f in (*wse2, *plain) if name_of(f) != left]
        q = fit(kept) if len(kept) < len(wse2) + len(plain) else p
        one = next(f for f in speeds if name_of(f) == left)
        alone = [1 / step_s(one, q, how) for how in placements]
        ratios = []
        for other in models:
            rows = [f for f in speeds if name_of(f) == other and is_late(f)]
            if other == left or not rows:
                continue
            pass_s = step_s(rows[0], q)
            if pass_s > SPECULATED_ABOVE_S:
                ratios.append(scored_speed(rows) * pass_s)
        per_pass = statistics.median(ratios)
        for late in (False, True):
            rows = [f for f in speeds if name_of(f) == left and is_late(f) == late]
            if not rows:
                continue
            drafted = late and 1 / alone[0] > SPECULATED_ABOVE_S
            guess = [speed * (per_pass if drafted else 1.0) for speed in alone]
            measured = scored_speed(rows)
            off = [f"{value:6.0f} ({100 * (value / measured - 1):+5.1f} %)" for value in guess]
            how = f"x {per_pass:.2f} tokens per pass" if drafted else "not drafted"
            when = "late" if late else "2024-08"
            print(f"{left:<16} {when:<8} measured {measured:6.0f}  spread {off[0]}  own {off[1]}  {how}")


if __name__ == "__main__":
    main()
