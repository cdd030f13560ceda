from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moetrace.diff import diff
from moetrace.diff.gates import Gate
from moetrace.diff.intervals import Mean, difference, t_quantile
from moetrace.diff.samples import MOST, collect
from moetrace.errors import RunError, ScenarioError
from moetrace.replay import Scenario, replay, simulate
from moetrace.report.diff import diff_report
from moetrace.report.facts import report_facts
from moetrace.report.html.diff import render_diff
from moetrace.report.terminal import plain
from moetrace.run import Meta, Run, Step, ops_table
from moetrace.synthesize import Workload
from moetrace.units import seconds
from tests.reports import SCRIPT, facts_of

# family, kind, layer, ns
OPS = (
    ("attention", "attention", 0, 40_000), ("experts", "moe_gate_up", 0, 90_000), ("experts", "moe_down", 0, 45_000),
    ("norm", "norm", 0, 3_000), ("attention", "attention", 1, 41_000), ("experts", "moe_gate_up", 1, 80_000),
    ("experts", "moe_down", 1, 44_000), ("norm", "norm", 1, 3_000), ("dense_gemm", "lm_head", None, 30_000),
    ("other", "other", None, 2_000),
)  # fmt: skip
FAMILIES = sorted({op[0] for op in OPS} - {"other"})


def _run(steps=12, noise=0.02, seed=0, slower=None, kernel="k", tokens=None, ops=OPS, devices=1):
    """A run of decode steps; each op's time varies by `noise`, those of a family in `slower` take that factor longer."""
    random = np.random.default_rng(seed)
    rows, made, now = [], [], 1_000
    for index in range(steps):
        begin = now
        for family, kind, layer, ns in ops:
            factor = (slower or {}).get(family, 1.0) * max(0.1, 1 + noise * random.standard_normal())
            dur = int(ns * factor)
            rows += [
                (d, index, layer, family, kind, f"{kernel}_{kind}", now, dur, 1e6) for d in range(devices)
            ]
            now += dur + 500
        made.append(Step(index, f"decode {index}", "decode", begin, now, 4, tokens, tokens))
        now += 2_000
    names = ("device", "step", "layer", "family", "kind", "kernel", "start_ns", "dur_ns", "weight_bytes")
    columns = {n: pa.array(list(v)) for n, v in zip(names, zip(*rows, strict=True), strict=True)}
    zero = pa.array(np.zeros(len(rows)))
    return Run(
        Meta(kind="measured", source=f"seed {seed}", steps=tuple(made)),
        ops_table({**columns, "flops": zero, "kv_bytes": zero, "act_bytes": zero}),
    )


def test_a_run_and_itself_differ_in_nothing() -> None:
    run = _run()
    facts = diff(run, run, ["tpot<+0%", "experts<+1ns"]).facts
    assert facts["differences"] == []
    for table in ("families", "ops", "layers", "op_layers"):
        assert facts[table] and not any(row["change_s"] or row["sure"] for row in facts[table])
    assert not any(gate["result"] == "failed" for gate in facts["gates"])
    assert "nothing changed" in plain(diff_report(facts, "op-layer", 10))


@settings(max_examples=25)
@given(st.sampled_from(FAMILIES), st.floats(1.3, 3.0), st.integers(0, 1000), st.booleans())
def test_a_slower_family_is_found_and_ranked_first(
    family: str, factor: float, seed: int, paired: bool
) -> None:
    tokens = 4 if paired else None
    before = _run(seed=seed, noise=0.005, tokens=tokens)
    after = _run(seed=seed + 5000, noise=0.005, slower={family: factor}, tokens=tokens)
    facts = diff(before, after).facts
    assert facts["paired"] == paired
    first = facts["families"][0]
    assert (first["family"], first["sure"]) == (family, True)
    added = sum(ns for f, _, _, ns in OPS if f == family) * (factor - 1) / 1e9
    assert (
        first["low_s"] - 1e-9 <= added <= first["high_s"] + 1e-9 or abs(first["change_s"] / added - 1) < 0.05
    )
    assert {row["family"] for row in facts["op_layers"][:1]} == {family}


def test_noise_alone_fires_no_gate_more_often_than_stated() -> None:
    """A gate at no change at all, the hardest case: 400 comparisons at 95 %, failures within binomial reach of 5 %."""
    fired = sum(
        diff(_run(6, 0.05, seed), _run(9, 0.05, 10_000 + seed), ["tpot<+0%"]).failed for seed in range(400)
    )
    assert fired <= stats.binom.ppf(0.9999, 400, 0.05)
    sure = sum(
        any(r["sure"] for r in diff(_run(8, 0.05, s), _run(8, 0.05, 10_000 + s)).facts["op_layers"])
        for s in range(100)
    )
    assert sure <= stats.binom.ppf(0.9999, 100, 0.05)


def test_a_gate_fails_beyond_its_limit_only() -> None:
    before, after = _run(seed=1), _run(seed=2, slower={"experts": 1.5})
    gates = ["tpot<+3%", "tpot<+90%", "experts<+1us", "attention<+1ms", "step<1ns", "step<1s", "idle<+5ms"]
    judged = {g["gate"]: g["result"] for g in diff(before, after, gates).facts["gates"]}
    assert [judged[g] for g in gates] == [
        "failed", "passed", "failed", "passed", "failed", "passed", "passed",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["tpot", "tpot>3%", "tpot<3", "tpot<+x%", "<3%", "tpot<3%%", "TPOT<1ms"])
def test_a_gate_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ScenarioError, match="expected METRIC<LIMIT"):
        Gate.of(text)


def test_what_cannot_be_decided_is_an_error() -> None:
    one = _run(steps=1)
    with pytest.raises(RunError, match="1 steps of the run before"):
        diff(one, _run(), ["tpot<+3%"])
    with pytest.raises(RunError, match=r"0 steps of the run before"):
        diff(_run(), _run(), ["prefill<+3%"])
    with pytest.raises(ScenarioError, match="unknown metric 'expert': did you mean 'experts'"):
        diff(_run(), _run(), ["expert<+3%"])
    with pytest.raises(RunError, match="no phase in common"):
        diff(_run(), _run().with_meta(steps=()))
    with pytest.raises(RunError, match="no prefill steps"):
        diff(_run(), _run(), phase="prefill")
    facts = diff(one, _run(seed=3)).facts
    assert not any(row["sure"] for row in facts["op_layers"])
    assert "no interval" in plain(diff_report(facts, "family", 5, everything=True))


def test_one_step_shows_its_rows_and_is_not_called_noise() -> None:
    one, slow = _run(steps=1, noise=0.0), _run(steps=1, noise=0.0, slower={"experts": 2.0})
    text = plain(diff_report(diff(one, slow).facts, "family", 5))
    assert "within noise" not in text and "experts" in text and "nothing can be said of noise" in text
    few = plain(diff_report(diff(_run(seed=1, noise=0.3), _run(seed=2, noise=0.3)).facts, "family", 5))
    assert "within noise" in few


def test_layers_in_which_the_same_is_read_are_one_line() -> None:
    """As of a prediction, whose layers are alike; where one of them differs it stands by itself."""
    load, predicted = Workload(1, 64, 4), []
    for batch in (1, 16):
        predicted.append(simulate("olmoe-1b-7b", replace(load, batch=batch), "h100-sxm").run)
    found = diff(*predicted)
    assert sum(row["op"] == "moe_down" for row in found.facts["op_layers"]) == 16
    text = plain(diff_report(found.facts, "op-layer", 200, everything=True))
    (line,) = (line for line in text.splitlines() if line.startswith("moe_down"))
    assert line.split()[1:6] == ["each", "of", "layers", "0", "to"] and "15" in line
    assert "differs: batch 1 -> 16" in text and text.count("both runs are predicted") == 1
    assert "the run before is" not in text
    rows = [dict(row) for row in found.facts["op_layers"]]
    for row in rows:
        if row["op"] == "moe_down" and row["layer"] == 3:
            row["after_s"] *= 2
    lines = plain(
        diff_report({**found.facts, "op_layers": rows}, "op-layer", 200, everything=True)
    ).splitlines()
    assert [re.split(r" {2,}", line)[1] for line in lines if line.startswith("moe_down")] == [
        "each of 15 layers, 0 to 15", "layer 3",
    ]  # fmt: skip


def test_steps_of_no_known_phase_are_called_steps() -> None:
    steps = tuple(replace(step, phase=None) for step in _run().meta.steps)
    found = diff(*(_run(seed=n).with_meta(steps=steps) for n in (1, 2)))
    for text in (plain(diff_report(found.facts, "family", 5)), render_diff(found)):
        assert "unknown step" not in text and "step, with the wait before it" in text
        assert "Time per output token" not in text


def test_rows_sum_to_the_time_of_a_token_whatever_the_table() -> None:
    before, after = _run(steps=5), _run(steps=7, seed=4, slower={"norm": 4.0}, devices=2)
    facts = diff(before, after).facts
    for side in ("before_s", "after_s", "change_s"):
        for table in ("families", "ops", "layers", "op_layers"):
            total = sum(row[side] for row in facts[table])
            assert total == pytest.approx(facts["metrics"]["tpot"][side], rel=1e-9)
    assert facts["ops"][0]["bytes_after"] == facts["ops"][0]["bytes_before"]


def test_other_kernels_and_missing_ops_are_matched_by_what_they_do() -> None:
    without = [op for op in OPS if op[1] != "moe_down"]
    facts = diff(_run(kernel="old"), _run(kernel="new", ops=without, seed=6)).facts
    rows = {row["op"]: row for row in facts["ops"]}
    assert rows["moe_gate_up"]["kernels_before"] == ["old_moe_gate_up"]
    assert rows["moe_gate_up"]["kernels_after"] == ["new_moe_gate_up"]
    assert rows["moe_down"]["after_s"] == 0 and rows["moe_down"]["change"] == -1
    assert {"other: old_other", "other: new_other"} <= set(rows)


def test_a_long_run_is_averaged_in_blocks_and_keeps_its_mean() -> None:
    run = _run(steps=MOST + 300, ops=OPS[:2])
    samples = collect(run, "decode")
    assert len(samples.seconds) == (MOST + 300) // 2
    spans = [s.end_ns - s.start_ns for s in run.meta.steps]
    assert diff(run, run).facts["metrics"]["step"]["before_s"] == pytest.approx(np.mean(spans) / 1e9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 400])
@pytest.mark.parametrize("tail", [0.3, 0.05, 0.025, 1e-4, 1e-7])
def test_the_quantiles_are_those_of_students_t(freedom: int, tail: float) -> None:
    assert t_quantile(tail, freedom) == pytest.approx(stats.t.isf(tail, freedom), rel=2e-3)


def test_welchs_interval_is_that_of_scipy() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(10, 1, (5, 1)), random.normal(11, 3, (6, 1))
    ours = difference(a, b, paired=False)
    theirs = stats.ttest_ind(b[:, 0], a[:, 0], equal_var=False)
    assert ours.freedom[0] == pytest.approx(theirs.df)
    assert ours.mean[0] / np.sqrt(ours.variance[0]) == pytest.approx(theirs.statistic)


def test_steps_that_follow_each_other_count_for_less() -> None:
    walk = np.cumsum(np.random.default_rng(1).normal(size=(60, 1)), axis=0)
    apart = np.random.default_rng(1).permutation(walk)
    assert Mean.of(walk).half_width(0.025)[0] > 2 * Mean.of(apart).half_width(0.025)[0]


def test_names_in_the_page_stay_text_and_its_facts_are_the_json() -> None:
    run = _run(kernel=SCRIPT)
    found = diff(run, _run(kernel=SCRIPT, seed=2, slower={"experts": 2.0}), ["tpot<+3%"])
    page = render_diff(found)
    assert SCRIPT not in page and "window.hacked" in page
    assert facts_of(page)["op_layers"] == json.loads(json.dumps(found.facts["op_layers"]))
    assert "https://" not in page.replace("https://ui.perfetto.dev", "")


LOADS = {
    "steady": (Workload(4, 256, 16, served=True), ()),
    "host": (Workload(4, 256, 16, host_s=5e-3), ()),
    "drafted": (Workload(4, 256, 16), ("tokens_per_step=2",)),
}


@pytest.mark.parametrize("load", LOADS)
def test_a_saved_simulation_has_the_tpot_that_simulate_said(load, tmp_path):
    """Its decode step was given as ``tpot`` without a word."""
    workload, sets = LOADS[load]
    found = [simulate("olmoe-1b-7b", workload, hw, Scenario.of(*sets)) for hw in ("h100-sxm", "a100-sxm")]
    saved = [one.run.save(tmp_path / str(i)) for i, one in enumerate(found)]
    said = [one.summary["metrics"]["tpot"] for one in found]
    facts = diff(*saved).facts
    tpot, step = facts["metrics"]["tpot"], facts["metrics"]["step"]
    assert facts["tpot_of"] == "simulation" and tpot["low_s"] is None and not tpot["sure"]
    assert [tpot["before_s"], tpot["after_s"]] == [one["value"] for one in said]
    assert abs(tpot["before_s"] / step["before_s"] - 1) > 0.1
    text = plain(diff_report(facts, "family", 3))
    assert f"tpot as simulated: {seconds(tpot['before_s'])} -> {seconds(tpot['after_s'])}: +" in text
    assert f"its decode step: {seconds(step['before_s'])} -> {seconds(step['after_s'])}: +" in text
    assert "as simulated</p>" in render_diff(diff(*saved))
    answer = report_facts(saved[0], machines=[], short=True)[0]["answers"][0]
    (line,) = [line for line in answer["lines"] if line["label"] == "TPOT"]
    assert line["value"] == seconds(said[0]["value"])
    assert line["note"].startswith(f"{seconds(said[0]['low'])} to {seconds(said[0]['high'])}, as simulated")
    for gate in ("tpot<+3%", "tpot<1s"):
        with pytest.raises(RunError, match="or drafting are not its TPOT: gate on step"):
            diff(*saved, gates=[gate])
    assert diff(*saved, gates=["step<1s"]).facts["gates"][0]["result"] == "passed"


@pytest.mark.parametrize("load", LOADS)
def test_what_is_replayed_of_a_simulation_has_no_tpot_where_its_steps_are_not_that(load):
    workload, sets = LOADS[load]
    run = simulate("olmoe-1b-7b", workload, "h100-sxm", Scenario.of(*sets)).run
    again = replay(run, "a100-sxm")
    phase = again.summary["phases"]["decode"]
    assert phase["step_s"] > 0 and phase["tpot_s"] is None and phase["tokens_per_s"] is None
    facts = diff(run, again.run).facts
    assert facts["tpot_of"] == "none" and "tpot" not in facts["metrics"]
    text = plain(diff_report(facts, "family", 3))
    assert "decode step: " in text and "; tpot is not compared: " in text
    assert "Time per output token" not in render_diff(diff(run, again.run))
    lines = report_facts(again.run, machines=[], short=True)[0]["answers"][0]["lines"]
    assert ("TPOT", "not known") in [(line["label"], line["value"]) for line in lines]


def test_a_batch_that_starts_together_has_its_decode_steps_as_tpot():
    """Also beside one that drafts, with which it is compared as simulated."""
    run = simulate("olmoe-1b-7b", Workload(4, 256, 16), "h100-sxm").run
    again = replay(run, "a100-sxm")
    assert again.summary["phases"]["decode"]["tpot_s"] and again.summary["phases"]["decode"]["tokens_per_s"]
    facts = diff(run, again.run, gates=["tpot<1s"]).facts
    assert facts["tpot_of"] == "steps" and facts["gates"][0]["result"] == "passed"
    assert facts["metrics"]["tpot"]["before_s"] == pytest.approx(run.meta.tpot["expected_s"], rel=0.01)
    drafted = simulate("olmoe-1b-7b", Workload(4, 256, 16), "h100-sxm", Scenario.of("tokens_per_step=2")).run
    assert diff(run, drafted).facts["tpot_of"] == "simulation"
