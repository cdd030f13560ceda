"""Attribution and replay are one sum: what a replay predicted, attribution on the same machine explains in whole."""

from __future__ import annotations

import pytest

import moetrace


@pytest.mark.parametrize("sets", [["layers=native"], ["layers=native", "n_a=4", "batch=64"]], ids=" ".join)
@pytest.mark.parametrize("machine", ["h100-sxm", "b200", "mi300x", "cs3"])
def test_a_predicted_run_is_explained_by_the_law_that_made_it(machine, sets, run_dir):
    run, hardware = moetrace.load(run_dir), moetrace.load_hardware(machine)
    for target, scenario in moetrace.scenarios(sets, [hardware], run):
        predicted = moetrace.replay(run, target, scenario).run
        phases = moetrace.attribute(predicted, target).summary["phases"]
        for phase in phases.values():
            assert abs(phase["unexplained_s"]) <= 2e-3 * phase["busy_s"]
            assert phase["expected_s"] == pytest.approx(phase["busy_s"], rel=2e-3)
