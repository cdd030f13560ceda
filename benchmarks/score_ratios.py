"""Scores ratios of the law's answers: one op measured at two sizes on one chip, the one told from the other's measurement.

    python benchmarks/score_ratios.py FOLDER

FOLDER holds the public tables of make_profiles.py. Of MoE modules, GEMMs and attention (bf16, decode sizes, L2 warm as they
were measured) up to 200 random pairs of rows of each shape are drawn. A line says whose coefficients price them (the chip's
own; the other's at its clock; the same with the errors that a profile of another chip states, WIDEN), the family, how many
pairs there are, what 80 % of the times so told are off by (in logarithms), and the share of pairs that three intervals hold:
half of the law's error, both errors together (root of the sum of squares), and the last with at most MOST.

Then MoE modules alone, of one shape and routing with a share of the tokens (as many choices among the same experts, which
stand for a smaller n_a): what share of both errors together holds 80 % of the pairs, `unshared`, and what that holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from score_transfer import NAMES, groups, measured, on_other_version, priced

from moetrace.calibrate.measured import Measured
from moetrace.hardware import load_hardware
from moetrace.op import FloatArray
from moetrace.replay.anchor import ONE_CHIP_MOST as MOST
from moetrace.report.facts.fewer import unshared

TABLES = ("moe_perf", "gemm_perf", "generation_attention_perf")
WIDEN, WIDEN_ATTENTION = 0.27, 0.45  # of hw_profiles/b200.toml
PARTS = (0.75, 0.5, 0.25, 0.125)
_PAIRS = 200


def pairs(rows: Measured, law_s: FloatArray, error: FloatArray, seed: int) -> FloatArray:
    """[3, pairs]: how far the told time is off, and the errors of the law for both rows; all as logarithms."""
    rng = np.random.default_rng(seed)
    shape = np.unique(rows.shape, return_inverse=True)[1]
    off = np.log(rows.seconds / law_s)
    out = [np.zeros((3, 0))]
    for one in range(int(shape.max()) + 1):
        mine = np.flatnonzero((shape == one) & np.isfinite(off))
        if mine.size < 2:
            continue
        a, b = rng.choice(mine, (2, min(_PAIRS, mine.size**2)))
        a, b = a[a != b], b[a != b]
        out.append(np.stack([np.abs(off[a] - off[b]), np.log1p(error[a]), np.log1p(error[b])]))
    return np.concatenate(out, axis=1)


def fewer(
    rows: Measured, law_s: FloatArray, error: FloatArray, routing: pd.Series, part: float
) -> FloatArray:
    """As `pairs`, of MoE modules that differ in their tokens alone, one having `part` of the other's."""
    alike = ("hidden", "inter", "experts", "topk", "local_experts", "gated")
    frame = pd.DataFrame({name: np.nan_to_num(rows.ops.column(name), nan=-1.0) for name in alike})
    frame["routing"] = routing.loc[rows.row].to_numpy()
    frame = frame.assign(
        tokens=rows.ops.column("tokens"), off=np.log(rows.seconds / law_s), error=np.log1p(error)
    )
    keys = [*alike, "routing", "tokens"]
    frame = frame.groupby(keys, as_index=False, observed=True).median()
    both = frame.merge(frame.assign(tokens=frame["tokens"] / part), on=keys, suffixes=("_1", "_2"))
    return np.stack([(both["off_1"] - both["off_2"]).abs(), both["error_1"], both["error_2"]])


def main() -> None:
    folder = Path(sys.argv[1])
    machine = {name: load_hardware(name) for name in NAMES}
    tables = measured(folder, TABLES)
    routing = pd.read_parquet(folder / "moe_perf.parquet", columns=["distribution"])["distribution"]
    found: dict[tuple[str, str], list[FloatArray]] = {}
    tokens: dict[tuple[str, float], list[FloatArray]] = {}
    for key, rows in groups(tables):
        name = key.split("@")[0]
        for source in NAMES:
            own = machine[source].families.get(key)
            if own is None or own.provenance != "fitted":
                continue
            for target in NAMES:
                ways = {"own": own}
                if target != source:
                    there = machine[target].families.get(key)
                    family = own if there is None else on_other_version(own, there)
                    family = family.at_pace(machine[source].pace, machine[target].pace)
                    wider = family.widened(WIDEN_ATTENTION if name == "attention" else WIDEN)
                    ways = {"the other's": family, "widened": wider}
                for whose, family in ways.items():
                    law_s, _, error = priced(rows[target], family, machine[target])
                    some = pairs(rows[target], law_s, error, len(found))
                    found.setdefault((whose, name), []).append(some)
                    for part in PARTS if name == "experts" else ():
                        some = fewer(rows[target], law_s, error, routing, part)
                        tokens.setdefault((whose, part), []).append(some)
    for (whose, name), parts in sorted(found.items()):
        off, one, two = np.concatenate(parts, axis=1)
        both = np.hypot(one, two)
        held = [np.log1p(np.expm1(two) / 2), both, np.minimum(both, MOST)]
        said = "  ".join(f"{100 * float((off <= width).mean()):5.1f} %" for width in held)
        print(f"{whose:12s} {name:12s} {off.size:7,d}  {float(np.quantile(off, 0.8)):.3f}  {said}")
    for (whose, part), parts in sorted(tokens.items()):
        off, one, two = np.concatenate(parts, axis=1)
        both = np.minimum(np.hypot(one, two), MOST)
        needed, share = float(np.quantile(off / both, 0.8)), unshared(part)
        held = 100 * float((off <= share * both).mean())
        print(
            f"{whose:12s} tokens x {part:5.3f} {off.size:7,d}  {needed:.2f} holds 80 %, {share:.2f} {held:.1f} %"
        )


if __name__ == "__main__":
    main()
