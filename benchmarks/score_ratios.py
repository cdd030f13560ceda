"""Scores ratios of the law's answers: one op measured at two sizes on one chip, the one told from the other's measurement.

    python benchmarks/score_ratios.py FOLDER

FOLDER holds the public tables of make_profiles.py. Of MoE modules, GEMMs and attention (bf16, decode sizes, L2 warm as they
were measured) up to 200 random pairs of rows of each shape are drawn. A line says whose coefficients price them (the chip's
own, or the other's at its clock), the family, how many pairs there are, what 80 % of the times so told are off by (in
logarithms), and the share of pairs that three intervals hold: half of the law's error, both errors together (root of the sum
of squares), and the last with at most MOST.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from score_transfer import NAMES, groups, on_other_version, priced

from moetrace.calibrate.measured import Measured
from moetrace.calibrate.tables import read_measurements
from moetrace.hardware import load_hardware
from moetrace.op import FloatArray
from moetrace.replay.anchor import ONE_CHIP_MOST as MOST

TABLES = ("moe_perf", "gemm_perf", "generation_attention_perf")
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


def main() -> None:
    folder = Path(sys.argv[1])
    machine = {name: load_hardware(name) for name in NAMES}
    tables = {
        name: Measured.join([read_measurements(folder / f"{table}.parquet", name) for table in TABLES])
        for name in NAMES
    }
    found: dict[tuple[str, str], list[FloatArray]] = {}
    for key, rows in groups(tables):
        for source in NAMES:
            own = machine[source].families.get(key)
            if own is None or own.provenance != "fitted":
                continue
            for target in NAMES:
                family = own
                if target != source:
                    there = machine[target].families.get(key)
                    family = own if there is None else on_other_version(own, there)
                    family = family.at_pace(machine[source].pace, machine[target].pace)
                law_s, _, error = priced(rows[target], family, machine[target])
                whose = "own" if source == target else "the other's"
                found.setdefault((whose, key.split("@")[0]), []).append(
                    pairs(rows[target], law_s, error, len(found))
                )
    for (whose, family_name), parts in sorted(found.items()):
        off, one, two = np.concatenate(parts, axis=1)
        both = np.hypot(one, two)
        held = [np.log1p(np.expm1(two) / 2), both, np.minimum(both, MOST)]
        said = "  ".join(f"{100 * float((off <= width).mean()):5.1f} %" for width in held)
        print(f"{whose:12s} {family_name:12s} {off.size:7,d}  {float(np.quantile(off, 0.8)):.3f}  {said}")


if __name__ == "__main__":
    main()
