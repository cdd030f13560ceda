"""The ops of a run on a machine: their costs, what halving each resource would save, gaps and waits for their launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from moetrace import ops
from moetrace.cost import PriceContext, price
from moetrace.hardware import Hardware, Link
from moetrace.op import Costs, Op
from moetrace.parse.nesting import exposed_by
from moetrace.parse.summary import step_and_device
from moetrace.run import LAUNCHED, Run

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Priced:
    """Per row: exposed time and gaps (ns), the ops' costs spread over the rows, and what halving each resource leaves."""

    dur: IntArray
    exposed: IntArray
    gap: IntArray
    launch: IntArray
    index: IntArray
    found: tuple[Op, ...]
    costs: Costs
    certain: FloatArray  # the part of an op's lower bound that no cache can take away: compute and network
    halved: Mapping[str, FloatArray]  # resource -> share of an op's expected time that halving it saves


def priced_rows(run: Run, hardware: Hardware, latency: int | None) -> Priced:
    """The rows of a run, or of a part of it; `latency` as `shortest_latency` gives it for the whole."""
    index, found, costs = price_run(run, hardware)
    group, _ = step_and_device(run)
    start, dur, launch = run.numpy("start_ns"), run.numpy("dur_ns"), run.numpy("launch_ns")
    exposed, gap = exposed_by(group, start, start + dur)
    waits = np.isin(run.numpy("step"), run.meta.facts.get(LAUNCHED, ()))
    waited = np.where(waits, gap, _launch_wait(start, gap, launch, latency or 0))
    uncached = replace(hardware, memory=replace(hardware.memory, bytes_per_s=float("inf")))
    return Priced(
        dur, exposed, gap, waited, index, found, costs,
        price_run(run, uncached)[2].lower_bound_s,
        _at_most_half({name: _saving(run, twice, costs) for name, twice in _twice(hardware).items()}),
    )  # fmt: skip


def _context(run: Run) -> PriceContext:
    """What a law must know of the whole: what a predicted run was priced with, else the model's size and depth."""
    model, stored = run.meta.model, run.meta.facts.get("price_context")
    said = stored if isinstance(stored, Mapping) else {}
    context = PriceContext(**{f.name: said[f.name] for f in fields(PriceContext) if f.name in said})
    if context.model_bytes or model is None:
        return context
    return replace(context, model_bytes=model.weight_bytes(), layers=model.layers)


def price_run(run: Run, hardware: Hardware) -> tuple[IntArray, tuple[Op, ...], Costs]:
    """(index per row, distinct ops, their costs) of a run on a machine."""
    index, found = run.distinct_ops
    return index, found, price(ops.works(found), hardware, context=_context(run))


def shortest_latency(run: Run) -> int | None:
    """The shortest time, in ns, from a launch's call to the start of an op that the device waited for; None: none did."""
    group, _ = step_and_device(run)
    start, dur, launch = run.numpy("start_ns"), run.numpy("dur_ns"), run.numpy("launch_ns")
    known = (launch >= 0) & (exposed_by(group, start, start + dur)[1] > 0)
    return int((start[known] - launch[known]).clip(min=0).min()) if known.any() else None


def _at_most_half(savings: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Savings that come to at most half of an op's time together, as all its resources twice as good would save.

    Where a kernel is the faster of two ways (attention that cuts the KV cache or not), one resource more may take it from
    one way to the other, and the savings one by one would come to up to 52 %.
    """
    total = sum(savings.values(), np.zeros(1))
    share = np.minimum(1.0, np.divide(0.5, total, out=np.ones_like(total), where=total > 0))
    return {name: saved * share for name, saved in savings.items()}


def _twice(hardware: Hardware) -> dict[str, Hardware]:
    """The machine with each resource made twice as good."""
    faster = {
        "memory bandwidth": replace(
            hardware, memory=replace(hardware.memory, bytes_per_s=2 * hardware.memory.bytes_per_s)
        ),
        "compute peak": replace(hardware, peaks={k: 2 * v for k, v in hardware.peaks.items()}),
        "fixed cost per op": replace(
            hardware,
            families={k: f.with_fixed_times(0.5) for k, f in hardware.families.items()},
            wafer=hardware.wafer and hardware.wafer.with_fixed_times(0.5),
        ),
    }
    if hardware.wafer is not None:
        faster["fabric bandwidth"] = replace(
            hardware,
            wafer=replace(hardware.wafer, fabric_bytes_per_s=2 * hardware.wafer.fabric_bytes_per_s),
        )
    if hardware.link is not None:
        far = hardware.link.network_bytes_per_s
        faster["network bandwidth"] = replace(
            hardware, link=Link(2 * hardware.link.bytes_per_s, None if far is None else 2 * far)
        )
    return faster


def _saving(run: Run, hardware: Hardware, costs: Costs) -> FloatArray:
    """Per distinct op: the share of its expected time that the better machine saves."""
    _, _, better = price_run(run, hardware)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(1.0 - better.expected_s / costs.expected_s)


def _launch_wait(start: IntArray, gap: IntArray, launch: IntArray, latency: int) -> IntArray:
    """Part of each gap in which the host had not launched the op: until its launch call, plus the shortest latency
    from call to start that the trace shows; -1 where the launch is not known."""
    waited = np.clip(launch + latency - (start - gap), 0, gap)
    return np.where(launch >= 0, waited, -1)
