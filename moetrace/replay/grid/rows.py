"""The two tables of a grid: one row per scenario, and one per scenario and op family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.replay.grid.plan import Ask, Plan, Task, plan_of
from moetrace.replay.grid.shape import Case, Drafts
from moetrace.replay.grid.vector import ECONOMICS, MEASURED, Answers, Together
from moetrace.replay.measures import MEASURES
from moetrace.run import TEXT, nullable, numbers, text_column

_ENDS = ("", "_low", "_high")
Part = tuple[Case, int, int]
MINOR = 2  # raised with a column of either table: a grid is not finished with other columns than it was begun
BREAKDOWN_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("scenario", pa.int64(), "number of the scenario, as in scenarios"),
    (
        "family",
        TEXT,
        "op family, such as experts, attention, communication; idle: the device waits for the host",
    ),
    ("decode_s", pa.float64(), "seconds of the family's ops in the mean decode step"),
    ("prefill_s", pa.float64(), "seconds of the family's ops in the prefill step"),
)


def measure_column(name: str, end: str = "") -> str:
    """The column of a measure or of an end of its interval: ``tpot_s``, ``tpot_low_s``, ``throughput_per_s``."""
    return f"{name}{end}_{'s' if MEASURES[name][0] == 's' else 'per_s'}"


def _measure_columns(bad: str) -> list[tuple[str, pa.DataType, str]]:
    """The columns of the measures, each with the ends of its interval; `bad` says when any is null."""
    return [
        (
            measure_column(name, end),
            pa.float64(),
            f"{said}{MEASURES[name][1]}; {bad}, or it has no such measure",
        )
        for name in MEASURED
        for end, said in zip(_ENDS, ("", "low end of the 80 % interval of: ", "high end of: "), strict=True)
    ]


def scenario_columns() -> tuple[tuple[str, pa.DataType, str], ...]:
    """(name, type, meaning) of what each row of `scenarios` has, whatever knobs were set."""
    bad = "null: the scenario cannot be, see problem"
    return (
        ("scenario", pa.int64(), "number of the scenario in its grid, from 0"),
        ("model", TEXT, "model that was simulated"),
        ("hardware", TEXT, "machine, by its profile's name"),
        ("gpus", pa.int32(), "devices of the machine"),
        *_measure_columns(bad),
        (
            "output_per_gpu_per_s",
            pa.float64(),
            f"output tokens per second and device, a GPU or a wafer; {bad}",
        ),
        ("tokens_per_joule", pa.float64(), f"output tokens per joule; {bad}, or its power is not known"),
        (
            "cost_per_million_tokens",
            pa.float64(),
            f"of output, at the price of a device; {bad}, or no price was said",
        ),
        (
            "needed_bytes",
            pa.float64(),
            f"memory that weights, cache and buffers need on all devices together; {bad}, or not known",
        ),
        ("largest_batch", pa.int64(), f"largest batch that fits; {bad}, or not known"),
        ("wafers", pa.int64(), f"wafers that hold the model; {bad}, or the machine is none"),
        (
            "fits",
            pa.bool_(),
            f"whether model and cache fit, on a wafer machine one wafer; {bad}, or not known",
        ),
        (
            "in_context",
            pa.bool_(),
            f"whether the model, and one that drafts, is made for sequences as long as the longest here; {bad}, or not known",
        ),
        (
            "queued",
            pa.bool_(),
            f"whether a steady load has more prompts than its steps work through, and TPOT holds a queue's wait; {bad}",
        ),
        (
            "routing_source",
            TEXT,
            f"where the distinct experts come from: uniform formula where no routing is stated; {bad}, or it has no experts",
        ),
        (
            "beyond_fit",
            TEXT,
            "by phase, what the coefficients were not calibrated on; null: nothing",
        ),
        ("problem", TEXT, "why the scenario cannot be; null: it can"),
    )


def tables(ask: Ask, task: Task) -> tuple[pa.Table, pa.Table]:
    """(scenarios, breakdown) of one task of a grid: plain values in and out, so that it can be asked of another process."""
    plan = plan_of(ask)
    parts = list(plan.parts(task))
    out = Answers.empty(task.stop - task.start)
    together = Together(out)
    drafts: dict[tuple[int, int], Drafts] = {}
    at = 0
    for case, start, stop in parts:
        price = plan.prices.get(case.hw.base or case.hw.name)
        if (start, stop) not in drafts:
            drafts[start, stop] = Drafts(plan.columns(start, stop))
        together.add(case, drafts[start, stop], at, price)
        at += stop - start
    together.settle()
    ids = np.arange(task.start, task.stop)
    return _scenarios(plan, parts, out, ids), _breakdown(out, ids)


def _scenarios(plan: Plan, parts: Sequence[Part], found: Answers, ids: npt.NDArray[np.int64]) -> pa.Table:
    sizes = [stop - start for _, start, stop in parts]
    out: dict[str, pa.Array] = {
        "scenario": numbers(ids),
        "model": _text([case.model.name for case, _, _ in parts], sizes),
        "hardware": _text([case.hw.name for case, _, _ in parts], sizes),
        "gpus": numbers(found.gpus, pa.int32()),
    }
    texts = [case.scenario.texts() for case, _, _ in parts]
    out |= {name: _text([said.get(name) for said in texts], sizes) for name in plan.knobs}
    columns = [plan.columns(start, stop) for _, start, stop in parts]
    for name in plan.varied:
        values = np.concatenate([column[name] for column in columns])
        out[name] = numbers(values, pa.int32())
    for name in MEASURED:
        for end, values in zip(_ENDS, found.metrics[name], strict=True):
            out[measure_column(name, end)] = _number(values)
    devices = np.where(np.isnan(found.wafers), np.maximum(found.gpus, 1), found.wafers)
    out["output_per_gpu_per_s"] = _number(found.metrics["output_throughput"][0] / devices)
    for name in ECONOMICS:
        out[name] = _number(found.economics[name])
    out["needed_bytes"] = _number(found.needed_bytes)
    for name, values in (("largest_batch", found.largest_batch), ("wafers", found.wafers)):
        out[name] = nullable(np.nan_to_num(values).astype(np.int64), np.isnan(values), pa.int64())
    flagged = (("fits", found.fits), ("in_context", found.in_context), ("queued", found.queued))
    for name, flags in flagged:
        out[name] = nullable(flags > 0, flags < 0, pa.bool_())
    for name, code in (
        ("routing_source", found.routing),
        ("beyond_fit", found.beyond),
        ("problem", found.problem),
    ):
        out[name] = text_column(np.where(code == 0, -1, code), found.words)
    return pa.table(out)


def _breakdown(found: Answers, ids: npt.NDArray[np.int64]) -> pa.Table:
    families = sorted(found.decode_s)
    decode, prefill = (
        np.stack([by_family[name] for name in families], axis=1) if families else np.zeros((ids.size, 0))
        for by_family in (found.decode_s, found.prefill_s)
    )
    row, code = np.nonzero(np.isfinite(decode))
    return pa.table(
        {
            "scenario": numbers(ids[row]),
            "family": text_column(code, families),
            "decode_s": numbers(decode[row, code]),
            "prefill_s": numbers(prefill[row, code]),
        }
    )


def _text(texts: Sequence[str | None], sizes: Sequence[int]) -> pa.Array:
    """A column of one text for so many rows after another, dictionary-encoded; null for None."""
    words = list(dict.fromkeys(text for text in texts if text is not None))
    place = {word: i for i, word in enumerate(words)}
    code = np.repeat([-1 if text is None else place[text] for text in texts], sizes).astype(np.int32)
    return text_column(code, words)


def _number(values: npt.NDArray[np.float64]) -> pa.Array:
    return nullable(values, ~np.isfinite(values), pa.float64())
