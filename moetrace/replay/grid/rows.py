"""The two tables of a grid: one row per scenario, and one per scenario and op family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moetrace.errors import MoetraceError
from moetrace.replay.grid.plan import Ask, Plan, Task, plan_of
from moetrace.replay.grid.vector import MEASURED, Answers, Case, answers, is_vectorised
from moetrace.replay.measures import MEASURES
from moetrace.replay.scenario import Scenario
from moetrace.replay.simulation import simulate
from moetrace.run import nullable
from moetrace.synthesize import Workload

_ENDS = ("", "_low", "_high")


def measure_column(name: str, end: str = "") -> str:
    """The column of a measure or of an end of its interval: ``tpot_s``, ``tpot_low_s``, ``throughput_per_s``."""
    return f"{name}{end}_{'s' if MEASURES[name][0] == 's' else 'per_s'}"


def tables(ask: Ask, task: Task) -> tuple[pa.Table, pa.Table]:
    """(scenarios, breakdown) of one task of a grid: plain values in and out, so that it can be asked of another process."""
    plan = plan_of(ask)
    case, columns = plan.cases[task.case], plan.columns(task)
    found = answers(case, columns) if is_vectorised(case) else _one_by_one(case, columns)
    first = task.case * plan.per_case + task.start
    ids = np.arange(first, first + task.stop - task.start)
    return _scenarios(plan, case, columns, found, ids), _breakdown(found, ids)


def _scenarios(
    plan: Plan,
    case: Case,
    columns: Mapping[str, npt.NDArray[Any]],
    found: Answers,
    ids: npt.NDArray[np.int64],
) -> pa.Table:
    size, texts = ids.size, case.scenario.texts()
    out: dict[str, pa.Array] = {
        "scenario": pa.array(ids),
        "model": _same(case.model.name, size),
        "hardware": _same(case.hw.name, size),
        "gpus": pa.array(np.full(size, case.hw.gpus, dtype=np.int32)),
    }
    out |= {name: _same(texts.get(name), size) for name in plan.knobs}
    out |= {name: pa.array(values.astype(np.int32)) for name, values in columns.items()}
    for name in MEASURED:
        for end, values in zip(_ENDS, found.metrics[name], strict=True):
            out[measure_column(name, end)] = _number(values)
    out["output_per_gpu_per_s"] = _number(found.metrics["output_throughput"][0] / case.hw.gpus)
    out["needed_bytes"] = _number(found.needed_bytes)
    out["largest_batch"] = nullable(
        np.nan_to_num(found.largest_batch).astype(np.int64), np.isnan(found.largest_batch), pa.int64()
    )
    out["fits"] = nullable(found.fits > 0, found.fits < 0, pa.bool_())
    out["beyond_fit"] = _texts(found.beyond)
    out["problem"] = _texts(found.problem)
    return pa.table(out)


def _breakdown(found: Answers, ids: npt.NDArray[np.int64]) -> pa.Table:
    families = sorted(found.decode_s)
    good = found.problem == ""
    if not families:
        good = np.zeros(ids.size, dtype=bool)
    code = np.tile(np.arange(len(families), dtype=np.int32), int(good.sum()))
    decode, prefill = (
        np.stack([by_family[name][good] for name in families], axis=1).ravel() if families else np.zeros(0)
        for by_family in (found.decode_s, found.prefill_s)
    )
    return pa.table(
        {
            "scenario": pa.array(np.repeat(ids[good], len(families))),
            "family": pa.DictionaryArray.from_arrays(pa.array(code), pa.array(families, pa.string())),
            "decode_s": pa.array(decode),
            "prefill_s": pa.array(prefill),
        }
    )


def _one_by_one(case: Case, columns: Mapping[str, npt.NDArray[Any]]) -> Answers:
    """What `answers` gives, from one simulation after another."""
    size = len(next(iter(columns.values())))
    out = Answers.empty(size)
    for row in range(size):
        texts = [
            *map(str, case.scenario.settings),
            *(f"{name}={values[row]}" for name, values in columns.items()),
        ]
        try:
            said = simulate(case.model, Workload(1, 1, 1), case.hw, Scenario.of(*texts)).summary
        except MoetraceError as error:
            out.problem[row] = str(error)
            continue
        for name, values in out.metrics.items():
            ends = [said["metrics"][name][part] for part in ("value", "low", "high")]
            values[:, row] = [np.nan if end is None else end for end in ends]
        memory = said["memory"]
        for column, name in ((out.needed_bytes, "needed_bytes"), (out.largest_batch, "largest_batch")):
            column[row] = np.nan if memory[name] is None else memory[name]
        out.fits[row] = -1 if memory["fits"] is None else int(memory["fits"])
        out.beyond[row] = said["beyond_fit"]
        for family in said["families"]:
            for by_family, part in ((out.decode_s, "decode_s"), (out.prefill_s, "prefill_s")):
                by_family.setdefault(family["family"], np.zeros(size))[row] = family[part]
    return out


def _same(text: str | None, size: int) -> pa.Array:
    """A column of one text, dictionary-encoded."""
    if text is None:
        return pa.DictionaryArray.from_arrays(pa.nulls(size, pa.int32()), pa.array([], pa.string()))
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, dtype=np.int32)), pa.array([text]))


def _texts(values: npt.NDArray[np.object_]) -> pa.Array:
    """A column of few texts, null for the empty one."""
    texts, code = np.unique(values.astype(str), return_inverse=True)
    empty = texts[code.reshape(-1)] == ""
    return pa.DictionaryArray.from_arrays(
        pa.array(code.reshape(-1).astype(np.int32), mask=empty), pa.array(texts.tolist(), pa.string())
    )


def _number(values: npt.NDArray[np.float64]) -> pa.Array:
    return nullable(values, ~np.isfinite(values), pa.float64())
