"""Fewer active experts: the step at each n_a on a machine, against the native one, with the interval of their ratio.

Two things make a ratio uncertain: the law, and that with fewer experts other hidden states reach the later layers, whose
tokens then choose other experts than were recorded (rerouting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from moetrace.hardware import Hardware
from moetrace.replay import Prediction, Scenario, replay, scenarios
from moetrace.replay.anchor import ONE_CHIP_MOST
from moetrace.run import Run, codes_of, main_phase, main_steps

_Z80 = 1.2816  # standard deviations that 80 % of a normal variable lie within, either side


def curve(run: Run, hw: Hardware, settings: tuple[str, ...], values: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of one machine: each n_a, and on a wafer each placement of experts; `values` begins with the native n_a.

    `ratio` is the step's time over that at the native n_a there; `ratio_low` and `ratio_high` hold what the law may be off
    (`ratio_interval`) and what rerouting may change at once. `rerouted_low` and `rerouted_high` are the latter, as factors
    on the step's time; None where no routing was recorded: then routing rests on a formula at both n_a.
    """
    asked = [*settings, f"n_a={','.join(map(str, values))}"]
    found = {_key(s): replay(run, hw, s) for _, s in scenarios(asked, [hw], run)}
    drawn = _drawn_anew(run, hw, asked, values[0])
    out = []
    for (placement, n_a), prediction in found.items():
        base = found[placement, values[0]]
        facts = prediction.summary
        phase = facts["phases"][main_phase(facts["phases"])]
        ratio = _step_s(prediction) / _step_s(base)
        low, high = ratio_interval(base, prediction, n_a / values[0])
        rerouted = None
        if drawn and n_a != values[0]:
            other = _step_s(drawn[placement, n_a]) / _step_s(drawn[placement, values[0]]) / ratio
            chance = _by_chance(run, prediction, n_a)
            rerouted = min(1.0, other) * (1 - chance), max(1.0, other) * (1 + chance)
            low, high = low * rerouted[0], high * rerouted[1]
        out.append(
            {
                "hardware": hw.name,
                "placement": placement or None,
                "n_a": n_a,
                "step_s": phase["step_s"],
                "low_s": phase["low_s"],
                "high_s": phase["high_s"],
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "rerouted_low": rerouted[0] if rerouted else None,
                "rerouted_high": rerouted[1] if rerouted else None,
                "distinct": (facts["distinct"] or {}).get("mean_distinct"),
                "anchored": facts["anchored"],
            }
        )
    return out


def _key(scenario: Scenario) -> tuple[str, int]:
    return str(scenario.get("placement", "")), int(scenario.texts()["n_a"])


def _drawn_anew(
    run: Run, hw: Hardware, asked: Sequence[str], native: int
) -> dict[tuple[str, int], Prediction]:
    """The same scenarios with every token's choices drawn from each expert's recorded popularity, at the native n_a too.

    Empty where as many choices were not recorded. What such a draw loses is how tokens of one step resemble each other; how
    much of that stays once other hidden states reach a layer is not known, so the truth is taken to lie between the two.
    """
    if run.routing is None or native > run.routing.topk:
        return {}
    again = [*asked, "routing=popularity"]
    return {_key(s): replay(run, hw, s) for _, s in scenarios(again, [hw], run)}


def _by_chance(run: Run, prediction: Prediction, n_a: int) -> float:
    """By what share chance may change the step, to 80 %, were the choices after the first MoE layer drawn anew.

    Layers and steps are drawn apart from one another, so that their sum varies less than each. A step's time is taken to change
    by no more than in proportion to what the experts take of it.
    """
    routing = run.routing
    decode = {s.index for s in run.meta.steps}
    if routing is None:
        return 0.0
    counts = {at: tokens for at, tokens in routing.token_counts().items() if at[0] in decode}
    touched = []
    for (_, layer), tokens in counts.items():
        q = routing.popularity(layer, n_a if routing.ordered else None)
        q = q if routing.ordered else q * (n_a / routing.topk)
        touched.append(1.0 - np.power(1.0 - np.minimum(q, 1.0), tokens))
    code, families = codes_of(prediction.run.column("family"))
    experts = code == (families.index("experts") if "experts" in families else -2)
    layers = len(np.unique(prediction.run.numpy("layer")[experts]))
    if not touched or layers < 2:
        return 0.0
    variance = float(np.mean([np.sum(t * (1.0 - t)) for t in touched]))
    mean = float(np.mean([np.sum(t) for t in touched]))
    drawn = (layers - 1) / layers / mean * np.sqrt(variance / ((layers - 1) * len(run.meta.steps)))
    return float(_Z80 * drawn * _by_family(prediction).get("experts", (0.0, 0.0))[0] / _step_s(prediction))


def _step_s(prediction: Prediction) -> float:
    phases: Mapping[str, Any] = prediction.summary["phases"]
    return float(phases[main_phase(phases) or ""]["step_s"])


def unshared(fewer: float) -> float:
    """The share of the law's error that the answers at two n_a do not have in common, `fewer` one over the other.

    x / (x + 0.48), x = |ln fewer|. Of MoE modules measured on an H100 or an A100, of the same shape and routing, with 3/4, 1/2,
    1/4 and 1/8 of the tokens (no two shapes of the tables differ in n_a alone; as many choices among the same experts stand for
    it), 80 % of the ratios are off by 0.37, 0.58, 0.77 and 0.86 of both errors together (benchmarks/score_ratios.py).
    """
    x = abs(log(fewer))
    return x / (x + 0.48)


def ratio_interval(base: Prediction, other: Prediction, fewer: float) -> tuple[float, float]:
    """Low and high end of other / base, whose n_a is `fewer` times that of base. Families err apart from one another.

    What a family's law gets wrong in both alike scales its times by one factor within its 80 % error: that moves the ratio by
    how much more the family is of one step than of the other. What it gets wrong in one of them alone is `unshared` of both
    errors together (root of squares, at most `ONE_CHIP_MOST`), in families whose time changes. The two, and families, add up
    as independent: the root of the sum of squares. What is not an op's time (idle) stays. Routing is taken as predicted.
    """
    here, there = _by_family(base), _by_family(other)
    names = sorted(set(here) | set(there))
    if not names:
        return 1.0, 1.0
    was, now = (np.array([side.get(n, (0.0, 0.0))[0] for n in names]) for side in (here, there))
    errors = np.log1p([[side.get(n, (0.0, 0.0))[1] for n in names] for side in (here, there)])
    only_one = (was == 0) | (now == 0)
    alone = np.minimum(np.hypot(*errors), ONE_CHIP_MOST) * np.where(only_one, 1.0, unshared(fewer))
    alone = np.where(np.isclose(was, now, rtol=1e-6), 0.0, alone)
    alike = np.where(only_one, 0.0, errors.min(axis=0))
    step_was, step_now = _step_s(base), _step_s(other)
    shares = was / step_was, now / step_now
    off = np.hypot(alike * np.abs(shares[1] - shares[0]), alone * np.where(now > 0, shares[1], shares[0]))
    by, ratio = float(np.exp(np.sqrt(np.sum(off**2)))), step_now / step_was
    return ratio / by, ratio * by


def _by_family(prediction: Prediction) -> dict[str, tuple[float, float]]:
    """Family -> (seconds of a mean step, error of its ops weighed by their time)."""
    run = prediction.run
    code, names = codes_of(run.column("family"))
    decode = [s.index for s in main_steps(run.meta.steps)]
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


__all__ = ["curve", "ratio_interval", "unshared"]
