"""What --set asks for: values of knobs, and which scenarios they make on which machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetrace.errors import ScenarioError
from moetrace.replay.grammar import NATIVE
from moetrace.replay.sets import read_sets, scenarios
from moetrace.run import Run
from tests.unit.replay_runs import H100, NODE, decode_run

WAFER = replace(H100, name="wafer", law="wafer")


@pytest.fixture(scope="module")
def run() -> Run:
    return decode_run()


def labels(sets: list[str], hardware: list, run: Run) -> list[str]:
    return [f"{hw.name}: {s.label}" for hw, s in scenarios(sets, hardware, run)]


def test_a_comma_separates_scenarios_and_a_colon_layers() -> None:
    values = read_sets(["n_a=8,6:6:4,native,6x3:4x2"])["n_a"]
    assert [s.value for s in values] == [8, (6, 6, 4), NATIVE, (6, 6, 6, 4, 4)]
    assert [s.text for s in values] == ["8", "6:6:4", "native", "6x3:4x2"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["n_a"], "expected NAME=VALUE"),
        (["n_aa=4"], "unknown knob 'n_aa': did you mean 'n_a'?"),
        (["n_a=4", "n_a=6"], "n_a is given twice"),
        (["n_a=4", "n-a=4"], "n_a is given twice"),
        (["n_a=4,4"], "a value is given twice"),
        (["n_a=4,04"], "n_a=04: a number does not begin with 0"),
        (["input_len=1,024"], "a comma stands between scenarios, not between thousands"),
        (["n_a="], "a value is missing"),
        (["n_a=4,"], "a value is missing"),
        (["n_a=0"], "expected a whole number from 1"),
        (["n_a=-2"], "expected a whole number"),
        (["n_a=4.5"], "expected a whole number"),
        (["n_a=٤"], "expected a whole number"),
        (["n_a=9999999999999999999"], "expected a whole number"),
        (["n_a=6x999999999"], "more than 4096 layers"),
        (["n_a=6:"], "expected a whole number"),
        (["n_a=6x"], "expected a whole number"),
        (["batch=8:8"], "one value for the run, not one per layer"),
        (["batch=native"], "expected a whole number"),
        (["dtype=float9"], "unknown value of dtype 'float9'"),
        (["engine=vlm@0.19.0"], "unknown value of engine 'vlm': did you mean 'vllm'? there are any"),
        (
            ["engine=vllm@latest"],
            "engine=vllm@latest: expected an engine and its version, such as sglang@0.4.4",
        ),
        (["engine=any@0.19"], "expected an engine and its version"),
        (["engine=sglang@"], "expected an engine and its version"),
        (["placement=left"], "unknown value of placement 'left': there are own, spread"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(sets: list[str], words: str) -> None:
    with pytest.raises(ScenarioError) as error:
        read_sets(sets)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_swept_knobs_give_their_product(run: Run) -> None:
    assert labels(["batch=1,16", "n_a=8,4"], [H100], run) == [
        "h100-sxm: n_a=8 batch=1",
        "h100-sxm: n_a=8 batch=16",
        "h100-sxm: n_a=4 batch=1",
        "h100-sxm: n_a=4 batch=16",
    ]


def test_no_knob_is_one_scenario_as_recorded(run: Run) -> None:
    assert labels([], [H100], run) == ["h100-sxm: as recorded"]


def test_parallelism_goes_to_the_machines_that_it_fills(run: Run) -> None:
    pairs = scenarios(["tp=8"], [H100, NODE], run)
    assert [(hw.name, s.label) for hw, s in pairs] == [("h100-sxm", "as recorded"), ("node-x8", "tp=8")]
    assert "tp and ep and pp and dp do not apply" in pairs[0][1].notes[0]
    assert labels(["ep=8"], [NODE], run) == ["node-x8: ep=8"]
    assert labels(["tp=8", "ep=1,8"], [NODE], run) == ["node-x8: tp=8 ep=1", "node-x8: tp=8 ep=8"]


def test_each_of_several_nodes_takes_its_own_tp(run: Run) -> None:
    four = replace(NODE, name="node-x4", gpus=4)
    assert labels(["tp=4,8"], [four, NODE], run) == ["node-x4: tp=4", "node-x8: tp=8"]


def test_each_of_several_nodes_takes_the_pairs_of_tp_and_ep_that_are_its_own(run: Run) -> None:
    four = replace(NODE, name="node-x4", gpus=4)
    assert labels(["tp=8,4", "ep=8,4"], [NODE, four], run) == [
        "node-x8: tp=8 ep=8",
        "node-x8: tp=8 ep=4",
        "node-x4: tp=4 ep=4",
    ]
    with pytest.raises(ScenarioError, match=r"ep=3 matches no machine: .* ep divide tp x dp"):
        scenarios(["tp=8,4", "ep=4,3"], [NODE, four], run)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([], "node-x8 has 8 GPUs: add --set tp=8 or --set ep=8"),
        (["n_a=4"], "node-x8 has 8 GPUs: add --set tp=8"),
        (["tp=4"], "node-x8 has 8 GPU(s), which tp=4 does not fill"),
        (["tp=2,8"], "tp=2 matches no machine"),
        (["ep=3"], "ep=3 does not divide tp=8"),
        (["ep=16"], "ep=16 does not divide tp=8"),
    ],
)
def test_parallelism_that_does_not_fill_the_node_is_one_line(sets: list[str], words: str, run: Run) -> None:
    with pytest.raises(ScenarioError) as error:
        scenarios(sets, [NODE], run)
    assert words in str(error.value)


def test_tp_on_lone_devices_only_matches_no_machine(run: Run) -> None:
    with pytest.raises(ScenarioError, match=r"tp=8 matches no machine: .*h100-sxm has 1"):
        scenarios(["tp=8"], [H100], run)
    assert labels(["tp=1"], [H100], run) == ["h100-sxm: as recorded"]


def test_a_wafer_shows_both_placements_when_n_a_is_set(run: Run) -> None:
    assert labels(["n_a=4"], [WAFER, H100], run) == [
        "wafer: n_a=4 placement=spread",
        "wafer: n_a=4 placement=own",
        "h100-sxm: n_a=4",
    ]
    assert labels(["batch=4"], [WAFER], run) == ["wafer: batch=4"]
    assert labels(["n_a=4", "placement=own"], [WAFER, H100], run) == [
        "wafer: n_a=4 placement=own",
        "h100-sxm: n_a=4",
    ]


def test_what_is_of_gpus_is_left_out_of_a_wafer_beside_them(run: Run) -> None:
    found = scenarios(["engine=sglang,vllm", "graph=on"], [WAFER, H100], run)
    assert [(hw.name, s.label) for hw, s in found] == [
        ("wafer", "as recorded"),
        ("h100-sxm", "engine=sglang graph=on"),
        ("h100-sxm", "engine=vllm graph=on"),
    ]
    assert found[0][1].notes == ("wafer is not a GPU: graph and engine do not apply to it",)
    with pytest.raises(ScenarioError, match="engine=sglang matches no machine"):
        scenarios(["engine=sglang"], [WAFER], run)


def test_placement_without_a_wafer_says_so(run: Run) -> None:
    with pytest.raises(ScenarioError, match="no wafer was named"):
        scenarios(["placement=own"], [H100], run)


def test_a_grid_has_a_limit(run: Run) -> None:
    many = ",".join(str(i) for i in range(1, 1000))
    with pytest.raises(ScenarioError, match="at most 512 at once"):
        scenarios([f"batch={many}"], [H100], run)


def test_a_number_of_gpus_is_for_gpus(run: Run) -> None:
    for machines in (["cs3"], ["cpu", "cs3"]):
        with pytest.raises(
            ScenarioError, match="gpus=4 says how many GPUs a machine has, and no GPU was named"
        ):
            scenarios(["gpus=4", "tp=4"], machines, run)
    (wafer, one), (node, _) = scenarios(["gpus=4", "tp=4"], ["cs3", "h100-sxm"], run)
    assert (wafer.name, node.name) == ("cs3", "h100-sxm-x4")
    assert one.notes[0] == "cs3 is not a GPU: gpus does not apply to it"
