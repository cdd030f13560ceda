"""Rows with a measured TPOT of a served model and its parallelism in the form ``TP4 PP1 attnDP1 moeTP2 moeEP2``.

Of InferenceX-type runs: lengths are maxima, uniform in [0.8 L, L], so 0.9 L is simulated, as a steady load. None is shipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, model_of, need, simulated

KINDS = ("AIC",)
MEAN_OF_MAX = 0.9
STEADY = "serving=continuous"
# Precisions that a model's own checkpoint has, by the labels of these tables (gpt-oss's mxfp4 experts go by nvfp4 there).
NATIVE = {
    ("gpt-oss-120b", "nvfp4"),
    ("gpt-oss-20b", "nvfp4"),
    ("deepseek-v3", "fp8_block"),
    ("deepseek-r1", "fp8_block"),
}


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a TPOT."""
    return [scored(figure, _tpot(figure), per=1e-3)]


def _tpot(figure: Figure) -> Estimate:
    if (figure.metric, figure.unit) != ("tpot", "ms"):
        raise RefusalError(f"no prediction is made of {figure.metric} in {figure.unit}")
    gpus, batch, prompt, out = need(figure, "n_gpus", "batch", "input_len", "output_len")
    model = model_of(figure.model)
    sizes = sizes_of(figure)
    if not {"TP", "moeEP"} <= set(sizes):
        raise RefusalError(f"parallelism {figure.parallelism!r} is not stated")
    if sizes.get("PP", 1) > 1 or sizes.get("attnDP", 1) > 1:
        raise RefusalError("pipeline or attention-data parallelism")
    if sizes["TP"] != gpus:
        raise RefusalError(f"TP{sizes['TP']} does not fill {gpus} GPUs")
    sets = [STEADY, *knobs(tp=sizes["TP"], ep=sizes["moeEP"])]
    types = set(re.findall(r"(?:gemm|moe) (\w+)", figure.precision))
    if len(types) != 1:
        raise RefusalError(f"precision {figure.precision!r}: experts and GEMMs differ")
    (dtype,) = types
    sets += [] if (model, dtype) in NATIVE else [f"dtype={dtype}"]
    load = (batch, round(MEAN_OF_MAX * prompt), round(MEAN_OF_MAX * out))
    return simulated(model, machine_of(figure.hw, gpus), load, *sets, metric="tpot")


def sizes_of(figure: Figure) -> dict[str, int]:
    """The sizes that a parallelism names: ``TP8 EP2`` is 8 of TP and 2 of EP."""
    return {name: int(n) for name, n in re.findall(r"([A-Za-z]+)(\d+)", figure.parallelism)}


def knobs(**sizes: int) -> list[str]:
    """The knobs of these sizes; one of 1 is none."""
    return [f"{name}={size}" for name, size in sizes.items() if size > 1]
