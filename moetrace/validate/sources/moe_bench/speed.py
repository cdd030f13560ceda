"""The speeds that a statement of MoE-Inference-Bench is made of: one simulation with the figure's machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moetrace.model import ModelSpec
from moetrace.validate.entry import Estimate
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of, ratio, simulated

LARGE = (64, 128)
LENGTH = 2048
# Of 5, 10, 20, 30, 36, 45 and 60 ms the one with which MIB-0007 (n_a 1 to 32 at large batches) comes nearest to the middle of
# what is printed. MIB-0008 to 0011 and 0016 were in view then, no other row.
HOST_S = 30e-3
Ratios = list[Estimate]


@dataclass(frozen=True)
class Hosted(Figure):
    """A figure whose steps hold that much time of the host."""

    host_s: float = HOST_S


def speed(
    figure: Figure,
    model: str | ModelSpec,
    *sets: str,
    batch: int = 16,
    length: int = LENGTH,
    metric: str = "throughput",
) -> Estimate:
    """A measure of a static batch on the machine of a figure, its GPUs sharing tensors where nothing else is said."""
    gpus = figure.whole("n_gpus") or next((int(s[3:]) for s in sets if s.startswith(("tp=", "pp="))), 1)
    split = [] if gpus == 1 or any(s.startswith(("tp=", "pp=")) for s in sets) else [f"tp={gpus}"]
    host_s = figure.host_s if isinstance(figure, Hosted) else 0.0
    load = (batch, length, length)
    return simulated(model, machine_of(figure.hw, gpus), load, *split, *sets, metric=metric, host_s=host_s)


def batches(figure: Figure) -> tuple[int, ...]:
    """The batches that a row names, else large ones."""
    return tuple(map(int, figure.batch.split(";"))) if re.fullmatch(r"[\d;]+", figure.batch) else LARGE


def fall(one: Estimate, other: Estimate) -> Estimate:
    """How much less `one` is than `other`, per cent."""
    less = ratio(one, other, percent=True)
    return Estimate(-less.value, None, None, less.hardware, less.setting)
