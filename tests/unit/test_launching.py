"""Steps whose ops the host launches one by one: which they are, how long they take and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.attribute import attribute
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.launching import HOST_LAUNCH_FACTOR, HOST_LAUNCH_S, SGLANG_LAUNCH_S
from moetrace.replay.simulation import Simulation
from moetrace.report.facts.whatif import what_ifs
from moetrace.synthesize import Workload
from tests.unit.test_gpu_law import faster

OLMOE, V3 = load_model("olmoe-1b-7b"), load_model("deepseek-v3")
SHORT = Workload(1, 200, 8)


def alone(*sets: str, load: Workload = SHORT, hw: str = "h100-sxm") -> Simulation:
    return simulate(OLMOE, load, hw, Scenario.of(*sets))


def step_s(done: Simulation, at: int = 0, name: str = "step_s") -> float:
    return float(done.summary["steps"][at][name])


def ops_of(done: Simulation, step: int = 0) -> int:
    return int((done.run.numpy("step") == step).sum())


def launched(done: Simulation) -> bool:
    return any("SGLang's host launches steps with prompts" in text for text in done.summary["assumptions"])


def test_a_short_prompt_under_an_sglang_without_prompt_graphs_takes_as_long_as_its_launches() -> None:
    """The last op runs once it has been launched, which is when all have been."""
    done = alone("engine=sglang@0.5.6")
    whole = SGLANG_LAUNCH_S * ops_of(done)
    assert whole < step_s(done) < whole + step_s(alone("engine=sglang@0.5.6", "graph=on"))
    assert launched(done)


def test_decode_steps_come_from_graphs_whatever_prompts_do() -> None:
    one, other = alone("engine=sglang@0.5.6"), alone("engine=sglang@0.5.6", "graph=on")
    assert [step_s(one, i) for i in (1, 2)] == [step_s(other, i) for i in (1, 2)]


def test_a_long_prompt_hides_its_launches() -> None:
    long = replace(SHORT, input_len=100_000)
    one, other = (alone("engine=sglang@0.5.6", *more, load=long) for more in ((), ("graph=on",)))
    assert step_s(one) == pytest.approx(step_s(other), rel=0.01)


@pytest.mark.parametrize(
    ("engine", "eager"),
    [
        ("sglang@0.4.4.post1", True), ("sglang@0.5.9", True), ("sglang@0.5.10", False), ("sglang@0.5.10rc0", False),
        ("sglang@0.6", False), ("sglang@1.0", False), ("sglang@0.5", False), ("sglang@0.4", True),
        ("sglang", False), ("vllm@0.11", False),
        ("any", False), ("trtllm", False),
    ],
)  # fmt: skip
def test_which_versions_launch_prompts_op_by_op(engine: str, eager: bool) -> None:
    assert launched(alone(f"engine={engine}")) is eager


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("engine=sglang",), True),
        (("engine=sglang@0.5.10",), False),
        (("engine=sglang", "graph=on"), False),
        (("engine=vllm",), False),
    ],
)
def test_an_sglang_without_a_version_says_what_is_taken_for_its_prompts(
    sets: tuple[str, ...], said: bool
) -> None:
    """On B200 the TTFT of a short prompt is three times as long before 0.5.10."""
    assert any("as since SGLang 0.5.10" in text for text in alone(*sets).summary["assumptions"]) is said


@pytest.mark.parametrize(
    ("prompt", "sets", "eager"),
    [
        (1024, (), False), (2048, (), False), (2049, (), True), (1024, ("dp=8", "ep=8"), True), (1024, ("pp=8",), True),
        (1024, ("tokens_per_step=2",), True),
    ],
)  # fmt: skip
def test_what_a_new_sglang_holds_in_no_graph(prompt: int, sets: tuple[str, ...], eager: bool) -> None:
    """MLA of more than 2,048 tokens, data-parallel attention, pipelines, drafted tokens."""
    laid = sets if any(text.startswith(("dp", "pp")) for text in sets) else ("tp=8", *sets)
    load = Workload(8, prompt, 64)
    done = simulate(V3, load, "h200-sxm-x8", Scenario.of("serving=continuous", "engine=sglang", *laid))
    assert launched(done) is eager


@pytest.mark.parametrize(("machine", "eager"), [("h100-sxm", False), ("b300", False), ("mi300x", True)])
def test_only_nvidia_s_gpus_have_graphs_for_sglang_s_prompts(machine: str, eager: bool) -> None:
    assert launched(alone("engine=sglang", hw=machine)) is eager


def test_of_a_steady_load_a_prompt_is_launched_while_a_decode_step_runs() -> None:
    load = replace(SHORT, batch=16, output_len=64)
    done = alone("serving=continuous", "engine=sglang@0.5.6", "routing=uniform", load=load)
    static = alone("engine=sglang@0.5.6", "routing=uniform", load=replace(load, batch=1))
    assert step_s(done) == pytest.approx(step_s(static) - step_s(done, 1), rel=1e-6)
    other = alone("serving=continuous", "engine=sglang@0.5.6", "routing=uniform", "graph=on", load=load)
    assert step_s(done) > step_s(other)


def test_as_many_prompts_are_launched_ahead_as_decode_steps_run_before() -> None:
    """Of a prompt in 25 parts the first follows a step that decodes; of more prompts than steps decode not even that does."""
    parts, many = Workload(16, 1600, 64), Workload(64, 200, 3)
    for load, chunk, share in ((parts, 64, 1 / 25), (many, 200, 2 / 64)):
        done, other = (
            alone("serving=continuous", f"engine={name}", "routing=uniform", f"chunk={chunk}", load=load)
            for name in ("sglang@0.5.6", "sglang")
        )
        whole = SGLANG_LAUNCH_S * ops_of(done)
        assert step_s(done) == pytest.approx(whole - share * step_s(other, 1), rel=0.01)


@pytest.mark.parametrize("more", [("pp=4",), ("tp=4", "tokens_per_step=2")])
def test_no_prompt_is_launched_ahead_in_pipelines_and_where_tokens_are_drafted(more: tuple[str, ...]) -> None:
    """SGLang's overlap schedule is off there."""
    load = Workload(16, 200, 64)
    done = alone("serving=continuous", "engine=sglang@0.5.6", *more, load=load, hw="h100-sxm-x4")
    assert step_s(done) > SGLANG_LAUNCH_S * ops_of(done)


def test_the_first_token_waits_for_the_decode_step_before_which_its_prompt_was_launched() -> None:
    """So no prompt takes less than its launches."""
    load = Workload(16, 200, 64)
    done = alone("serving=continuous", "engine=sglang@0.5.6", load=load)
    first, decode, middle = (step_s(done, i) for i in range(3))
    overhead = 0.5e-3
    waited = (middle + overhead) / 2 + decode
    assert done.summary["metrics"]["ttft"]["value"] == pytest.approx(waited + first + overhead)
    assert first + decode > SGLANG_LAUNCH_S * ops_of(done)


@pytest.mark.parametrize(
    ("load", "sets", "hw"),
    [
        (Workload(64, 1000, 64), ("chunk=64",), "h100-sxm"), (Workload(16, 300, 500), (), "h100-sxm"),
        (Workload(256, 20, 2), (), "h100-sxm"), (Workload(256, 1000, 64), ("dp=8", "ep=8"), "h200-sxm-x8"),
        (Workload(64, 300, 2), ("dp=4", "chunk=64"), "h100-sxm-x4"),
        (Workload(64, 1000, 64), ("pp=8", "chunk=64"), "h200-sxm-x8"),
        (Workload(16, 300, 500), ("chunk=64", "tokens_per_step=2.5"), "h100-sxm"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "more", [{"bandwidth": 1.3}, {"peak": 1.3}, {"link": 1.3}, {"bandwidth": 2, "peak": 2}]
)
def test_a_faster_machine_is_no_slower_though_its_host_is_less_ahead(
    load: Workload, sets: tuple[str, ...], hw: str, more: dict[str, float]
) -> None:
    asked = {"bandwidth": 1.0, "peak": 1.0, "link": 1.0} | more
    machine = load_hardware(hw)
    scenario = Scenario.of("serving=continuous", "engine=sglang@0.5.6", *sets)
    one, two = (simulate(OLMOE, load, on, scenario) for on in (machine, faster(machine, **asked)))
    for name in ("ttft", "tpot", "e2e"):
        mine, other = (done.summary["metrics"][name]["value"] for done in (one, two))
        assert other <= mine * (1 + 1e-6), name


def test_both_halves_of_a_prompt_are_launched() -> None:
    """So no link makes it shorter, and what the device waits is not the exchanges' time."""
    asked = ("engine=sglang@0.5.6", "dp=4", "ep=4", "overlap=two_batch")
    load = replace(SHORT, batch=4)
    done, faster_link = (
        simulate(OLMOE, load, on, Scenario.of(*asked))
        for on in (load_hardware("h100-sxm-x4"), faster(load_hardware("h100-sxm-x4"), 1.0, 1.0, 2.0))
    )
    assert step_s(done) == pytest.approx(2 * SGLANG_LAUNCH_S * ops_of(done)) == step_s(faster_link)
    families = {row["family"]: row["prefill_s"] for row in done.summary["families"]}
    assert sum(families.values()) == pytest.approx(step_s(done))
    (one,) = (
        sum(row["prefill_s"] for row in other.summary["families"])
        for other in [simulate(OLMOE, load, "h100-sxm-x4", Scenario.of(*asked, "graph=on"))]
    )
    assert families["idle"] > step_s(done) - 2 * one and families["communication"] < 2 * one
    assert done.run.meta.steps[0].end_ns - done.run.meta.steps[0].start_ns == round(step_s(done) * 1e9)
    low, high = (step_s(done, name=name) for name in ("low_s", "high_s"))
    assert low < step_s(done) / 1.8 and high > 1.8 * step_s(done)


def test_a_drafting_model_is_launched_as_the_model_is() -> None:
    def ttft(*sets: str) -> float:
        drafted = ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=0", *sets)
        return float(alone(*drafted).summary["metrics"]["ttft"]["value"])

    new, old, none = (
        ttft("engine=sglang"),
        ttft("engine=sglang@0.5.6"),
        ttft("engine=sglang@0.5.6", "graph=on"),
    )
    assert new == old
    assert (
        none < old - SGLANG_LAUNCH_S * 28 * 10 / 2
    )  # layers of the drafting model, and ops of each at least


def test_without_any_graph_no_step_is_launched_ahead_and_sglang_s_host_is_its_own() -> None:
    steps = [alone("graph=off", engine, load=SHORT) for engine in ("engine=sglang", "engine=any")]
    for done, pace in zip(steps, (SGLANG_LAUNCH_S, HOST_LAUNCH_S), strict=True):
        assert step_s(done, 1) > pace * ops_of(done, 1)
        (said,) = [
            text for text in done.summary["assumptions"] if text.startswith("the host launches op by op")
        ]
        assert f"{pace * 1e6:.0f} us each" in said
    served = alone(
        "serving=continuous", "graph=off", "engine=sglang", load=replace(SHORT, batch=4, output_len=64)
    )
    assert step_s(served) > SGLANG_LAUNCH_S * ops_of(served)


def test_a_launched_step_is_as_sure_as_the_time_of_a_launch_and_a_long_one_as_its_ops() -> None:
    short, long = (
        alone("engine=sglang@0.5.6", load=replace(SHORT, input_len=n)).summary["steps"][0]
        for n in (100, 100_000)
    )
    assert short["high_s"] == pytest.approx(HOST_LAUNCH_FACTOR * short["step_s"], rel=0.1)
    assert short["low_s"] == pytest.approx(short["step_s"] / HOST_LAUNCH_FACTOR, rel=0.1)
    assert long["high_s"] < 1.5 * long["step_s"]


def test_what_the_device_waits_for_its_host_is_idle_beside_the_op_families() -> None:
    done, other = alone("engine=sglang@0.5.6"), alone("engine=sglang@0.5.6", "graph=on")
    mine, usual = ({row["family"]: row for row in found.summary["families"]} for found in (done, other))
    assert mine["idle"]["prefill_s"] == pytest.approx(step_s(done) - step_s(other), abs=1e-8)
    assert mine["idle"]["decode_s"] == 0 and mine["idle"]["bound"] is None and "idle" not in usual
    for family, row in usual.items():
        assert mine[family]["prefill_s"] == pytest.approx(row["prefill_s"], rel=1e-6)
    off = {row["family"]: row for row in alone("graph=off", "engine=sglang").summary["families"]}
    assert off["idle"]["bound"] == "host" and off["idle"]["decode_share"] > 0.5
    assert sum(row["decode_s"] for row in off.values()) == pytest.approx(
        step_s(alone("graph=off", "engine=sglang"), 1), rel=1e-3
    )


def test_a_saved_simulation_keeps_how_its_prompts_were_launched() -> None:
    load = replace(SHORT, batch=16, output_len=64)
    done = alone("serving=continuous", "engine=sglang@0.5.6", load=load)
    again = replay(done.run, "h100-sxm", Scenario.of())
    assert [s.end_ns - s.start_ns for s in again.run.meta.steps] == [
        s.end_ns - s.start_ns for s in done.run.meta.steps
    ]
    on = replay(done.run, "h100-sxm", Scenario.of("graph=on")).run.meta.steps[0]
    assert on.end_ns - on.start_ns < 1e9 * step_s(done)


def test_what_a_step_waits_for_its_launches_is_told_as_that() -> None:
    """Not as other idle time, of which no fewer launches would save any."""
    done = alone("engine=sglang@0.5.6")
    prompt, decode = attribute(done.run, "h100-sxm").summary["steps"][:2]
    assert prompt["launch_bound_s"] == pytest.approx(
        prompt["idle_s"] - SGLANG_LAUNCH_S
    )  # before its first op
    assert prompt["critical"] == "launch"
    assert decode["launch_bound_s"] == 0
    on = replay(done.run, "h100-sxm", Scenario.of("graph=on"))
    assert attribute(on.run, "h100-sxm").summary["steps"][0]["launch_bound_s"] == 0
    eager = what_ifs(alone("graph=off", "engine=sglang").run, ["h100-sxm"], 1.0, short=True)["machines"][0]
    assert eager["launch_saves"] == pytest.approx(0.5, rel=0.2)


def test_on_a_wafer_no_host_launches() -> None:
    found = simulate(OLMOE, SHORT, "cs3", Scenario.of()).summary
    assert not any("launches" in text or "CUDA" in text for text in found["assumptions"])
    assert any("back to back" in text for text in found["assumptions"])
