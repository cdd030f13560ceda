"""A scenario as a value: made of texts, added to, and the machine and parallelism that it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.errors import ScenarioError
from moetrace.replay.parallel import Parallel
from moetrace.replay.scenario import Scenario, gpus_of, machine_of, parallel_of
from tests.unit.replay_runs import H100, NODE, decode_run


def test_names_may_have_dashes() -> None:
    assert Scenario.of("n-a=4").get("n_a") == 4


def test_one_scenario_is_not_a_sweep() -> None:
    with pytest.raises(ScenarioError, match="n_a has 2 values"):
        Scenario.of("n_a=4,6")


def test_settings_stand_in_the_order_of_the_knobs_whatever_the_order_of_the_texts() -> None:
    scenario = Scenario.of("batch=4", "n_a=2")
    assert scenario == Scenario.of("n_a=2", "batch=4") == Scenario.of("batch=4").adding("n_a", "2")
    assert scenario.label == "n_a=2 batch=4" and scenario.texts() == {"n_a": "2", "batch": "4"}
    assert Scenario().adding("n-a", 4) == Scenario.of("n_a=4")  # type: ignore[arg-type]
    with pytest.raises(ScenarioError, match="unknown knob 'n_aa': did you mean 'n_a'"):
        Scenario().adding("n_aa", "4")
    assert Scenario().label == "as recorded" and Scenario().get("n_a", 8) == 8


def test_a_machine_is_sized_once() -> None:
    assert machine_of(H100, Scenario.of("gpus=4")).name == "h100-sxm-x4"
    assert machine_of(H100, Scenario.of("nodes=2")).gpus == 2 * H100.domain_gpus
    assert machine_of(H100, Scenario()) is H100
    with pytest.raises(ScenarioError, match="gpus=4 and nodes=2: a machine is sized by one of them"):
        machine_of(H100, Scenario.of("gpus=4", "nodes=2"))


def test_a_recording_keeps_its_gpus_on_its_own_machine_alone() -> None:
    run = decode_run().with_meta(gpus=8, tp=8)
    assert (
        gpus_of(H100, run) == 8 and gpus_of(NODE, run) == 8 and gpus_of(replace(H100, name="other"), run) == 1
    )
    assert parallel_of(Scenario(), 8, run) == Parallel(8, 1, 1, 1)
    assert parallel_of(Scenario.of("dp=8", "ep=8"), 8, run) == Parallel(1, 8, 1, 8)
