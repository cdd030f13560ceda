"""Grids of replays with knobs drawn at random, each row held against the replay of its settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from moetrace.errors import MoetraceError
from moetrace.replay import replay
from moetrace.replay.grid.recorded import Replays
from moetrace.replay.knobs import KNOBS
from tests.drawn_grids import EDITS, alike, one_in, values_of


@st.composite
def replay_sets(draw: st.DrawFn) -> tuple[str, ...]:
    """Up to four knobs of a replay, each with a value or two."""
    names = [name for name in EDITS if not KNOBS[name].not_recorded and name != "placement"]
    chosen = {"context": ["100", "5000"]} if draw(one_in(3)) else {}
    chosen |= {"batch": draw(values_of("batch"))} if draw(st.booleans()) else {}
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        chosen[name] = draw(values_of(name))
    if draw(one_in(3)):
        chosen |= {"gpus": ["1", "4"], "tp": ["4", "2", "1"], "dp": ["1", "2"], "ep": ["1", "2"]}
    while math.prod(map(len, chosen.values())) > 12:
        del max(chosen.values(), key=len)[-1]
    return tuple(f"{name}={','.join(values)}" for name, values in chosen.items())


def check_replays(asked: Replays) -> int:
    """Holds a grid of replays against the replays alone; how many there are. Raises AssertionError where they differ."""
    parts = [asked.tables(task) for task in asked.tasks()]
    rows, breakdown = (pa.concat_tables(part).to_pylist() for part in zip(*parts, strict=True))
    assert [row["scenario"] for row in rows] == list(range(asked.size))
    for row, (hw, scenario) in zip(rows, asked.pairs, strict=True):
        mine = [part for part in breakdown if part["scenario"] == row["scenario"]]
        try:
            prediction = replay(asked.run, hw, scenario)
        except MoetraceError as error:
            assert row["problem"] == str(error) and row["step_s"] is None and not mine
            continue
        for what, one, other in _replay_pairs(row, mine, prediction.summary, prediction.run.meta.gpus):
            assert alike(one, other), (
                f"{what}: {one} in the grid, {other} alone, of {hw.name} {scenario.label}"
            )
    return len(rows)


def _replay_pairs(
    row: Mapping[str, Any], families: Sequence[Mapping[str, Any]], alone: Mapping[str, Any], gpus: int
) -> Iterator[tuple[str, Any, Any]]:
    """(what, value in the grid, value alone) of all that the row of a replay says."""
    phases = alone["phases"]
    phase = "decode" if "decode" in phases else next(iter(phases))
    step, rate = phases[phase], phases[phase]["tokens_per_s"] if phase == "decode" else None
    yield "phase", row["phase"], phase
    for name in ("step_s", "measured_s", "idle_share", "tpot_s"):
        yield name, row[name], step[name]
    for name in ("low_s", "high_s"):
        yield name, row[f"step_{name}"], step[name]
    for name in ("anchored_share", "wafers"):
        yield name, row[name], alone[name]
    for name in ("needed_bytes", "largest_batch", "fits"):
        yield name, row[name], alone["memory"][name]
    for name, value in (("hardware", alone["hardware"]), ("gpus", gpus), ("problem", None)):
        yield name, row[name], value
    yield "in_context", row["in_context"], alone["context"]["within"]
    yield "routing_source", row["routing_source"], alone["distinct"] and alone["distinct"]["source"]
    yield "beyond_fit", row["beyond_fit"] or "", alone["beyond_fit"]
    yield "output", row["output_throughput_per_s"], rate
    yield "a device's output", row["output_per_gpu_per_s"], rate and rate / (alone["wafers"] or gpus)
    yield "a user's speed", row["user_speed_per_s"], step["tpot_s"] and 1 / step["tpot_s"]
    said = {part["family"]: part for part in alone["families"]}
    yield "families", sorted(part["family"] for part in families), sorted(said)
    for part in families:
        for name in ("bound", "step_s"):
            yield f"{name} of {part['family']}", part[name], said[part["family"]][name]
