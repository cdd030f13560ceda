"""Where routing is not known the other end is told beside: text's, which touches fewer experts than uniform routing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.unknown_routing import replayed_otherwise, simulated_otherwise
from moetrace.report.simulation import simulation_report
from moetrace.report.tables import Table
from moetrace.run import Step
from moetrace.synthesize import Workload
from tests.unit.replay_runs import H100, build, decode_run

QWEN, H100_SXM = load_model("qwen3-30b-a3b"), load_hardware("h100-sxm")
LOAD = Workload(16, 256, 32)


def test_a_static_simulation_has_texts_routing_beside_it() -> None:
    found = simulate(QWEN, LOAD, H100_SXM).summary
    other = simulated_otherwise(found, QWEN, LOAD, H100_SXM, Scenario())
    skewed = simulate(QWEN, LOAD, H100_SXM, Scenario.of("routing=skewed")).summary
    assert other is not None and found["distinct"]["mean_distinct"] == pytest.approx(82.4, abs=0.1)
    # 43.0 to 53.5 were counted on two data sets (arXiv 2511.02237, table 4)
    assert 43.0 < other["mean_distinct"] == skewed["distinct"]["mean_distinct"] < 53.5
    assert {end: other[end] for end in ("value", "low", "high")} == {
        end: skewed["metrics"]["tpot"][end] for end in ("value", "low", "high")
    }
    assert other["high"] < found["metrics"]["tpot"]["low"]  # the interval of the one does not hold the other


@pytest.mark.parametrize("stated", ["routing=uniform", "routing=skewed:0.5", "serving=continuous"])
def test_nothing_is_added_where_routing_is_stated(stated: str) -> None:
    scenario = Scenario.of(stated)
    found = simulate(QWEN, LOAD, H100_SXM, scenario).summary
    assert simulated_otherwise(found, QWEN, LOAD, H100_SXM, scenario) is None


def test_nothing_is_added_without_experts_or_without_decoding() -> None:
    dense = load_model("qwen3-0.6b")
    for model, load in ((dense, LOAD), (QWEN, replace(LOAD, output_len=1))):
        found = simulate(model, load, H100_SXM).summary
        assert simulated_otherwise(found, model, load, H100_SXM, Scenario()) is None


def test_a_replay_of_a_run_without_routing_has_it_unless_it_is_measured() -> None:
    row = (0, 0, "moe_gate_up bf16 tokens=16 hidden=2048 inter=1024 experts=64 topk=8", 0, 1000)
    steps = [Step(0, "decode 0", "decode", 0, 1000, 16, 16, 1600)]
    run, of_cpu = build([row], steps), build([row], steps, device_class="cpu", hardware="cpu")
    found, as_it_was = replay(of_cpu, H100, Scenario()).summary, replay(run, H100, Scenario()).summary
    other = replayed_otherwise(found, of_cpu, H100, Scenario())
    assert other is not None and other["value"] < found["phases"]["decode"]["low_s"]
    assert replayed_otherwise(as_it_was, run, H100, Scenario()) is None


def test_counted_routing_needs_no_other_end() -> None:
    run = decode_run()
    found = replay(run, load_hardware("b200"), Scenario())
    assert replayed_otherwise(found.summary, run, load_hardware("b200"), Scenario()) is None


def test_the_table_names_only_rows_in_which_routing_matters() -> None:
    rows = []
    for batch in (1, 16):
        load = replace(LOAD, batch=batch)
        found = simulate(QWEN, load, H100_SXM).summary
        rows.append({**found, "other_routing": simulated_otherwise(found, QWEN, load, H100_SXM, Scenario())})
    tables = [b for b in simulation_report(rows) if isinstance(b, Table) and b.title.startswith("Routing")]
    assert [[row[0] for row in table.rows] for table in tables] == [["2"]]
    assert not any(
        isinstance(b, Table) and b.title.startswith("Routing") for b in simulation_report([rows[0]])
    )
