"""Layers that were not recorded: copies, with an error from how recorded ones differ."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.hardware import combined_error
from moetrace.replay import Scenario, replay
from moetrace.replay.copies import ASSUMED_ERROR, copy_error
from moetrace.replay.editing import edited
from moetrace.run import Run, Step
from tests.unit.replay_runs import H100, build, decode_run

STEP = Step(0, "decode 0", "decode", 0, 10_000, 16, 16, 4096)


def of_layers(*durations: int) -> Run:
    """One norm per layer of these ns."""
    starts = np.cumsum([0, *durations[:-1]]).tolist()
    return build(
        [(0, i, "norm bf16 tokens=16 width=2048", s, d) for i, (s, d) in enumerate(zip(starts, durations, strict=True))],
        [STEP],
    )  # fmt: skip


def errors(run: Run, *sets: str) -> list[float]:
    return [float(e) for e in replay(run, H100, Scenario.of(*sets)).run.numpy("error")]


def test_a_copied_layer_errs_by_the_spread_of_the_recorded_ones() -> None:
    run = of_layers(1000, 1000, 1000, 1100, 1100)
    spread = float(np.expm1(np.quantile(np.abs(np.log([1000, 1000, 1000, 1100, 1100])) - np.log(1000), 0.8)))
    assert spread == pytest.approx(0.1)
    assert errors(run, "layers=7") == pytest.approx([0.0] * 5 + [spread] * 2)


def test_too_few_recorded_layers_leave_an_assumption_that_is_named() -> None:
    found = replay(of_layers(1000, 1100), H100, Scenario.of("layers=4"))
    assert found.run.numpy("error").tolist() == pytest.approx([0.0, 0.0, ASSUMED_ERROR, ASSUMED_ERROR])
    assert any("10 %, assumed, as fewer than 3 layers" in text for text in found.summary["assumptions"])
    decode = found.summary["phases"]["decode"]
    assert decode["low_s"] < decode["step_s"] < decode["high_s"]
    words = found.run.to_pandas(["provenance"])["provenance"].tolist()
    assert words == ["measured"] * 2 + ["measured, on another layer of its kind"] * 2


def test_recorded_layers_stay_exact() -> None:
    run = decode_run(layers=4)
    for sets in ((), ("layers=4",), ("layers=2",)):
        assert set(errors(run, *sets)) == {0.0}
    assert copy_error(edited(run, H100, Scenario.of("layers=2")))[1] is None


def test_kinds_of_layers_have_a_spread_each() -> None:
    """Dense layers differ much and MoE ones not at all: the copies are of MoE layers, and so is their error."""
    experts = "moe_down bf16 tokens=16 hidden=2048 inter=1024 experts=64 topk=8"
    norm = "norm bf16 tokens=16 width=2048"
    rows = [(0, i, norm, 2000 * i, 100 * (i + 1)) for i in range(3)]
    rows += [(0, i, experts, 2000 * i, 1500) for i in range(3, 6)]
    draft = edited(build(rows, [STEP]), H100, Scenario.of("layers=12"))
    found, note = copy_error(draft)
    kinds = {(op.kind, e > 0) for op, e in zip(draft.ops, found.tolist(), strict=True)}
    assert kinds == {("norm", False), ("norm", True), ("moe_down", False)}
    assert note is not None and "78.3 %" in note  # of 100, 200 and 300 ns


def test_an_edited_copy_errs_by_both() -> None:
    run = decode_run()
    frame = replay(run, H100, Scenario.of("layers=3", "n_a=4")).run.to_pandas(["kind", "layer", "error"])
    experts = frame[frame.kind == "moe_gate_up"].groupby("layer").error.first()
    assert experts[2] == pytest.approx(combined_error(experts[0], ASSUMED_ERROR)) and experts[0] > 0
