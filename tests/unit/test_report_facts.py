from __future__ import annotations

import json
import re

import numpy as np
import pytest

import moetrace
from moetrace.attribute import attribute
from moetrace.model import load_model
from moetrace.parse import parse
from moetrace.replay import Scenario, replay
from moetrace.replay.anchor import ONE_CHIP_MOST
from moetrace.report.facts import report_facts
from moetrace.report.facts.answers import answers
from moetrace.report.facts.distinct_ops import distinct_ops
from moetrace.report.facts.fewer import ratio_interval, unshared
from moetrace.report.facts.layers import layer_families
from moetrace.report.facts.routing import chance_skew, routing_facts
from moetrace.report.facts.waterfall import waterfalls
from moetrace.report.facts.whatif import sampled, what_ifs
from moetrace.routing import RoutingBuilder
from tests.conftest import REPO
from tests.made import decode_trace, in_parts, write
from tests.reports import tiled


@pytest.fixture(scope="module")
def run(run_dir):
    return moetrace.load(run_dir)


@pytest.fixture(scope="module")
def held(run):
    return attribute(run)


@pytest.fixture(scope="module")
def facts(run):
    return report_facts(run)[0]


# -- waterfall -----------------------------------------------------------------------------------------------------
def test_a_waterfall_sums_from_the_span_to_the_lower_bound(run, held):
    for phase, fall in waterfalls(run, held).items():
        steps = [s for s in held.summary["steps"] if s["phase"] == phase]
        assert fall["span_s"] == pytest.approx(np.mean([s["span_s"] for s in steps]))
        assert fall["lower_bound_s"] == pytest.approx(np.mean([s["lower_bound_s"] for s in steps]))
        dropped = sum(d["seconds"] for d in fall["drops"])
        assert fall["span_s"] - dropped == pytest.approx(fall["lower_bound_s"])
        assert fall["most_s"] >= max(fall["span_s"], fall["lower_bound_s"])


def test_devices_that_wait_for_the_busiest_one_are_imbalance(tmp_path):
    events = decode_trace()
    slow = []
    for e in events:
        if e["cat"] == "kernel":
            args = {**e["args"], "device": 1, "stream": 9}
            slow.append({**e, "dur": e["dur"] / 2, "tid": 9, "args": args})
    both = moetrace.parse(write(tmp_path / "t.json", [*events, *slow]), hardware="h100-sxm")
    one = moetrace.parse(write(tmp_path / "o.json", events), hardware="h100-sxm")
    drops = [
        {d["name"]: d["seconds"] for d in waterfalls(r, attribute(r))["decode"]["drops"]} for r in (one, both)
    ]
    assert drops[0]["imbalance"] == 0 < drops[1]["imbalance"]
    facts, _ = report_facts(both, machines=["h100-sxm"])
    assert (
        "2 devices were recorded as 1 rank" in facts["what_if"]["machines"][0]["error"]
        and facts["cluster"] == []
    )
    busy = sum(e["dur"] for e in events if e["cat"] == "kernel") / 2 / 1e6
    assert drops[1]["imbalance"] == pytest.approx(busy / 4, rel=0.01)  # mean of all and half of it is 3/4


# -- distinct ops, layers ------------------------------------------------------------------------------------------
def test_distinct_ops_hold_all_the_time_of_the_steps(run, held):
    found = distinct_ops(run, held)
    columns, frame = found["columns"], held.table.to_pandas()
    frame = frame[frame.step.notna()]
    assert columns["count"].sum() == len(frame)
    assert columns["total_s"].sum() == pytest.approx(frame.dur_ns.sum() / 1e9)
    assert list(columns["total_s"]) == sorted(columns["total_s"], reverse=True)
    op, phase = found["texts"]["op"][columns["op"][0]], found["texts"]["phase"][columns["phase"][0]]
    same = frame[(frame.op == op) & (frame.phase == phase)]
    assert columns["median_s"][0] == pytest.approx(same.dur_ns.median() / 1e9)
    assert columns["expected_s"][0] == same.expected_s.iloc[0]
    assert found["texts"]["kernel"][columns["kernel"][0]] in set(same.kernel)


def test_layers_and_families_share_out_the_busy_time(run, held):
    for phase, grid in layer_families(run, held).items():
        facts = held.summary["phases"][phase]
        total = sum(sum(row["seconds"]) for row in grid["rows"])
        assert total == pytest.approx(sum(f["busy_s"] for f in facts["families"]) / facts["steps"])
        by_layer = {row["layer"]: sum(row["seconds"]) for row in grid["rows"]}
        for row in facts["layers"]:
            assert by_layer[row["layer"]] == pytest.approx(row["busy_s"] / facts["steps"])


# -- routing -------------------------------------------------------------------------------------------------------
def test_routing_facts_agree_with_the_recording(run, facts):
    routing, said = run.routing, facts["routing"]
    decode = [s.index for s in run.meta.steps if s.phase == "decode"]
    skew = routing.load_skew()
    for row in said["layers"]:
        mine = [skew[s, row["layer"]] for s in decode]
        assert (row["skew"], row["skew_low"], row["skew_high"]) == (np.mean(mine), min(mine), max(mine))
    for row, layer in zip(said["load"]["rows"], routing.layers, strict=True):
        assert row == pytest.approx(routing.popularity(layer, steps=decode) * 64 / 8, abs=1e-3)
        assert np.mean(row) == pytest.approx(1.0, abs=1e-3)
    assert [r["ranks"] for r in said["ranks"]] == [2, 4, 8, 16, 32, 64]
    distinct = routing.distinct()
    assert said["measured"][0]["mean"] == np.mean([v for (s, _), v in distinct.items() if s in decode])


def test_chance_skew_is_what_uniform_routing_shows():
    rng = np.random.default_rng(7)
    for experts, topk, tokens in ((64, 8, 16), (16, 2, 100), (8, 2, 32)):
        shown = []
        for _ in range(400):
            ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :topk]
            hits = np.bincount(ids.ravel(), minlength=experts)
            shown.append(hits.max() / hits.mean())
        assert chance_skew(experts, topk, tokens) == pytest.approx(np.mean(shown), rel=0.05)
    assert chance_skew(4, 4, 10) == 1.0
    assert np.isnan(chance_skew(4, 2, 0))


def test_a_large_heat_map_is_folded_and_keeps_its_mean(run):
    builder = RoutingBuilder(512)
    rng = np.random.default_rng(1)
    for layer in range(100):
        builder.add(0, layer, np.argsort(rng.random((8, 512)), axis=1)[:, :8])
    wide = moetrace.Run(run.meta, run.table(), builder.build())
    load = routing_facts(wide)["load"]
    assert load["fold"] == 2 and len(load["rows"]) == 100 and len(load["rows"][0]) == load["width"] == 256
    assert np.mean(load["rows"]) == pytest.approx(1.0, abs=0.01)


def test_a_run_without_routing_says_so(run):
    bare = moetrace.Run(run.meta, run.table())
    facts, _ = report_facts(bare, short=True)
    assert facts["routing"] is None
    answer = {a["id"]: a for a in facts["answers"]}
    assert answer["skew"]["short"] == "not recorded"
    assert "routing" in [line["label"] for line in answer["covered"]["lines"]]


# -- what if -------------------------------------------------------------------------------------------------------
def test_predictions_of_the_report_are_those_of_replay(run, facts):
    rows = {
        (r["hardware"], r["n_a"]): r for r in facts["what_if"]["n_a"] if r["placement"] in (None, "spread")
    }
    for machine in ("h100-sxm", "cs3"):
        extra = ("placement=spread",) if machine == "cs3" else ()
        there = replay(run, machine, Scenario.of("layers=native", "n_a=6", *extra)).summary["phases"][
            "decode"
        ]
        assert rows[machine, 6]["step_s"] == there["step_s"]
        assert (rows[machine, 6]["low_s"], rows[machine, 6]["high_s"]) == (there["low_s"], there["high_s"])


def test_a_ratio_lies_in_its_interval_and_is_exact_against_itself(facts):
    for row in facts["what_if"]["n_a"]:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        if row["n_a"] == 8:
            assert row["ratio_low"] == row["ratio_high"] == pytest.approx(1.0)


def test_a_ratio_interval_holds_what_one_family_errs_by_alike_or_at_one_n_a_alone(run):
    base, other = (replay(run, "h100-sxm", Scenario.of(f"n_a={n}")) for n in (8, 4))
    low, high = ratio_interval(base, other, 4 / 8)
    frames = [p.run.to_pandas(["step", "family", "dur_ns", "error"]) for p in (base, other)]
    decode = [s.index for s in run.meta.steps if s.phase == "decode"]
    frames = [f[f.step.isin(decode)] for f in frames]
    for family in set(frames[0].family):
        mine = [f[f.family == family] for f in frames]
        alike = min(float(f.error.min()) for f in mine)
        for sign in (-1, 1):
            added = [float(f.dur_ns.sum()) * ((1 + alike) ** sign - 1) for f in mine]
            sums = [float(f.dur_ns.sum()) + more for f, more in zip(frames, added, strict=True)]
            assert low - 1e-3 <= sums[1] / sums[0] <= high + 1e-3
    is_expert = frames[1].family == "experts"
    experts, rest = (frames[1].dur_ns[there].sum() for there in (is_expert, ~is_expert))
    errors = [
        np.average(f.error[f.family == "experts"], weights=f.dur_ns[f.family == "experts"]) for f in frames
    ]
    alone = np.exp(unshared(0.5) * np.hypot(*np.log1p(errors)))
    was = float(frames[0].dur_ns.sum())
    for ratio in ((rest + experts * alone) / was, (rest + experts / alone) / was):
        assert low - 2e-3 <= ratio <= high + 2e-3


def test_a_measured_step_leaves_the_error_of_what_was_edited(run):
    """On the recording's own chip the native step is exact; the range is that of the edit and no narrower."""
    base, other = (replay(run, "cpu", Scenario.of(f"n_a={n}")) for n in (8, 4))
    low, high = ratio_interval(base, other, 4 / 8)
    frame = other.run.to_pandas(["step", "family", "dur_ns", "error"])
    frame = frame[frame.step.isin([s.index for s in run.meta.steps if s.phase == "decode"])]
    experts = frame[frame.family == "experts"]
    error = np.log1p(np.average(experts.error, weights=experts.dur_ns))
    step = other.summary["phases"]["decode"]["step_s"] / base.summary["phases"]["decode"]["step_s"]
    share = experts.dur_ns.sum() / 1e9 / len(set(frame.step)) / other.summary["phases"]["decode"]["step_s"]
    by = unshared(0.5) * min(error, ONE_CHIP_MOST) * share
    assert error > 0 and low <= step * np.exp(-by) < step < step * np.exp(by) <= high


def test_what_two_n_a_do_not_share_of_an_error_grows_with_their_distance():
    found = [unshared(fewer) for fewer in (1.0, 7 / 8, 0.75, 0.5, 0.25, 0.125)]
    assert found[0] == 0 and found == sorted(found) and found[-1] < 1
    assert unshared(0.5) == pytest.approx(unshared(2.0))
    for share, scored in zip(found[2:], (0.37, 0.57, 0.76, 0.85), strict=True):
        assert share == pytest.approx(scored, abs=0.05)


def test_the_range_of_a_ratio_holds_other_choices_of_experts(run, facts):
    """Drawn anew from popularity at both n_a, and, with no routing recorded, neither claimed nor counted."""
    steps = {
        (n, routing): replay(run, "h100-sxm", Scenario.of("layers=native", f"n_a={n}", f"routing={routing}"))
        for n in (8, 4)
        for routing in ("recorded", "popularity")
    }
    for routing in ("recorded", "popularity"):
        now, was = (steps[n, routing].summary["phases"]["decode"]["step_s"] for n in (4, 8))
        row = next(r for r in facts["what_if"]["n_a"] if r["hardware"] == "h100-sxm" and r["n_a"] == 4)
        assert row["ratio_low"] < now / was < row["ratio_high"]
        assert row["ratio"] * row["rerouted_low"] < now / was < row["ratio"] * row["rerouted_high"]
    bare = what_ifs(moetrace.Run(run.meta, run.table()), ["h100-sxm"], short=True)["n_a"]
    assert {r["rerouted_low"] for r in bare} == {None}
    predicted = (replay(run, "h100-sxm", Scenario.of("layers=native", f"n_a={n}")) for n in (8, 6))
    law = ratio_interval(*predicted, 6 / 8)
    row = next(r for r in facts["what_if"]["n_a"] if r["hardware"] == "h100-sxm" and r["n_a"] == 6)
    assert row["ratio_low"] < law[0] <= law[1] < row["ratio_high"]


def test_long_runs_are_predicted_from_a_few_steps_spread_over_them(run):
    long = tiled(run, 200)
    routed = [s.index for s in sampled(long).meta.steps]
    assert routed == [
        s for s in run.routing.steps if s in {x.index for x in run.meta.steps if x.phase == "decode"}
    ]
    long = moetrace.Run(long.meta, long.table())
    part = sampled(long)
    index = [s.index for s in part.meta.steps]
    decode = sorted(s.index for s in long.meta.steps if s.phase == "decode")
    assert len(index) == 9 and index[0] == decode[0] and index[-1] == decode[-1]
    assert set(part.to_pandas(["step"]).step) == set(index)


def test_a_machine_that_cannot_be_predicted_is_named_and_the_rest_stands(run):
    found = what_ifs(run, ["h100-sxm", "h100-sxm-x8", "nonsense"], short=True)
    rows = {m["hardware"]: m for m in found["machines"]}
    assert "error" not in rows["h100-sxm"] and "error" not in rows["h100-sxm-x8"]
    assert "nonsense" in rows["nonsense"]["error"]
    assert {r["n_a"] for r in found["n_a"]} == {8, 6}


def test_published_accuracy_stands_beside_the_gain():
    here = moetrace.parse(REPO / "traces" / "kineto" / "deepseek-v2-lite-l2-b16-cpu")
    facts, _ = report_facts(here, machines=["h100-sxm"], short=True)
    assert {p["n_a"]: p["percent"] for p in facts["what_if"]["accuracy"]} == {6: 66.0, 4: 65.2, 2: 60.4}
    lines = next(a for a in facts["answers"] if a["id"] == "n_a")["lines"]
    assert lines[-1]["value"] == "-0.8 points" and "2505.03531" in lines[-1]["note"]


def test_the_cluster_view_is_what_replay_says_of_nodes(run, facts):
    rows = {(r["ranks"], r["ep"]): r for r in facts["cluster"]}
    assert list(rows) == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4), (8, 1), (8, 8)]
    there = replay(run, "h100-sxm-x8", Scenario.of("layers=native", "tp=8", "ep=8")).summary
    assert rows[8, 8]["step_s"] == there["phases"]["decode"]["step_s"]
    assert rows[8, 8]["distinct"] == there["distinct"]
    assert rows[8, 1]["per_device"] == rows[8, 1]["tokens_per_s"] / 8
    assert rows[1, 1]["parts"]["network"] == 0 < rows[2, 1]["parts"]["network"]


def test_waits_for_launches_stay_where_the_recording_s_idle_time_does(tmp_path):
    """Replayed on another machine of the class, a run that waits for its host waits there too: fewer launches help."""
    late = [
        {**e, "ts": e["ts"] + 40 * i} if e["cat"] != "user_annotation" else {**e, "dur": 1e5}
        for i, e in enumerate(decode_trace(steps=1))
    ]
    trace = write(tmp_path / "t.json", late)
    run = moetrace.parse(trace, hardware="h100-sxm", model="qwen3-30b-a3b", kv_len=100)
    facts, held = report_facts(run, machines=["h100-sxm", "a100-sxm"], short=True)
    there = facts["what_if"]["machines"][1]
    assert held.summary["phases"]["decode"]["launch_bound_s"] > 0
    assert there["launch_saves"] > there["memory_saves"]
    answer = next(a for a in facts["answers"] if a["id"] == "helps")
    assert answer["short"] == "fewer launches (h100-sxm, a100-sxm)"


# -- answers -------------------------------------------------------------------------------------------------------
def test_every_question_is_answered_with_its_evidence_and_its_doubt(facts):
    found = {a["id"]: a for a in facts["answers"]}
    assert list(found) == ["time", "experts", "skew", "n_a", "helps", "covered"]
    assert all(a["short"] and a["sure"] and a["section"] for a in found.values())
    decode = facts["attribution"]["phases"]["decode"]
    experts = next(f for f in decode["families"] if f["family"] == "experts")
    assert found["experts"]["short"].startswith(f"{100 * experts['share']:.1f} % of the time, ")
    worst = max(facts["routing"]["layers"], key=lambda r: r["skew"])
    assert found["skew"]["short"] == f"layer {worst['layer']}: {worst['skew']:.2f} x"
    for machine in ("h100-sxm", "cs3"):
        assert machine in found["n_a"]["short"]
        assert any(machine in line["label"] and " to " in line["note"] for line in found["n_a"]["lines"])
    assert "bandwidth" in found["helps"]["short"] and "fewer launches (cs3)" in found["helps"]["short"]
    assert {"not named", "not explained", "layers"} <= {line["label"] for line in found["covered"]["lines"]}


def test_facts_are_json_and_say_their_schema(facts):
    assert facts["schema"] == "moetrace.report/1"
    assert json.loads(json.dumps(facts))["main_phase"] == "decode"


def test_a_run_without_a_model_or_routing_still_has_answers(tmp_path):
    bare = moetrace.parse(write(tmp_path / "t.json", decode_trace()), hardware="h100-sxm")
    facts, _ = report_facts(bare)
    said = {a["id"]: a["short"] for a in facts["answers"]}
    assert re.search(r"\d", said["time"]) and said["covered"] and said["helps"] == "not known"
    experts = next(a for a in facts["answers"] if a["id"] == "experts")
    assert [line["value"] for line in experts["lines"]][1:] == ["not known"]
    errors = [m for m in facts["what_if"]["machines"] if "error" in m]
    assert [m["hardware"] for m in errors] == ["cs3"]  # the wafer must know the model's size
    assert said["skew"] == "not recorded" and said["n_a"] == "not known"
    fewer = next(a for a in facts["answers"] if a["id"] == "n_a")
    assert "--model" in fewer["sure"]
    dark = next(line for line in facts["answers"][-1]["lines"] if line["label"] == "not explained")
    assert "work not known" in dark["note"]


def test_a_skew_that_chance_would_show_is_called_that(facts):
    rows = facts["routing"]["layers"]
    for chance, beyond in ((1.01, False), (9.0, True)):
        routing = {**facts["routing"], "layers": [{**r, "chance": chance} for r in rows]}
        skew = next(a for a in answers({**facts, "routing": routing}) if a["id"] == "skew")
        assert ("no layer is skewed beyond it" in skew["sure"]) is beyond


def test_answers_do_not_depend_on_the_parts_in_which_a_run_comes(tmp_path):
    path = write(tmp_path / "t.json", decode_trace(layers=3, steps=12))
    whole = parse(path, model=load_model("olmoe-1b-7b").with_edits(layers=3), kv_len=100)
    parts = in_parts(whole, 4 * whole.num_rows // 12)
    one, other = (report_facts(run, "h100-sxm", ["h100-sxm"], short=True)[0] for run in (whole, parts))
    for name in ("weights", "waterfall", "answers"):
        assert json.dumps(one[name]) == json.dumps(other[name])
    assert one["what_if"]["machines"][0]["step_s"] == pytest.approx(other["what_if"]["machines"][0]["step_s"])
