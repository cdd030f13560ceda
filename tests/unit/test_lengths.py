"""Sequences longer than the model is made for are timed, and marked: in a simulation, a replay and both kinds of grid."""

from __future__ import annotations

import pyarrow as pa
import pytest

from moetrace.model import load_model
from moetrace.replay import Scenario, replay, simulate
from moetrace.replay.grid.choose import marked
from moetrace.replay.grid.plan import Ask, plan_of
from moetrace.replay.grid.recorded import replays_of
from moetrace.replay.grid.rows import tables
from moetrace.replay.lengths import all_within
from moetrace.synthesize import Workload
from tests.unit.replay_runs import H100, decode_run

OLMOE = load_model("olmoe-1b-7b")  # made for 4,096 tokens
NOTE = "longer than the {:,} that {} is made for"


@pytest.mark.parametrize(
    ("prompt", "within"), [(4000, True), (4096 - 9, True), (4096 - 8, False), (60_000, False)]
)
def test_a_simulation_says_how_long_its_sequences_get(prompt: int, within: bool) -> None:
    """The last of 10 new tokens is never fed back, so the last step reads the prompt and 9 more."""
    said = simulate(OLMOE, Workload(2, prompt, 10), "h100-sxm").summary
    assert said["context"] == {"longest": prompt + 9, "limit": 4096, "within": within}
    assert any(NOTE.format(4096, OLMOE.name) in text for text in said["assumptions"]) is not within


def test_a_model_whose_config_states_no_limit_is_not_marked() -> None:
    unknown = OLMOE.with_edits(max_context=0)
    said = simulate(unknown, Workload(1, 60_000, 2), "h100-sxm").summary
    assert said["context"] == {"longest": 60_001, "limit": None, "within": None}
    assert not any("made for" in text for text in said["assumptions"])


def test_a_model_that_drafts_has_a_limit_too() -> None:
    drafted = Scenario.of("draft=olmoe-1b-7b", "draft_tokens=2", "acceptance=0.5")
    said = simulate(load_model("qwen3-30b-a3b"), Workload(1, 5000, 10), "h100-sxm", drafted).summary
    assert (said["context"]["limit"], said["context"]["within"]) == (40960, False)
    assert any(
        text.startswith("draft=") and NOTE.format(4096, OLMOE.name) in text for text in said["assumptions"]
    )


def test_a_replay_says_it_of_the_context_that_was_asked_for() -> None:
    run = decode_run(model=OLMOE)
    short, long = (replay(run, H100, Scenario.of(f"context={n}")) for n in (4096, 4097))
    assert (short.summary["context"]["within"], long.summary["context"]["within"]) == (True, False)
    assert long.summary["context"]["longest"] == 4097
    assert any(NOTE.format(4096, OLMOE.name) in note for note in long.run.meta.notes)
    assert not any("made for" in note for note in short.run.meta.notes)


def test_grids_mark_and_count_them() -> None:
    sets = ("batch=1", "input_len=100,5000", "output_len=4")
    ask = Ask(("olmoe-1b-7b", "qwen3-30b-a3b"), ("h100-sxm",), sets, ())
    rows = pa.concat_tables([tables(ask, task)[0] for task in plan_of(ask).tasks()])
    found = {(row["model"], row["input_len"]): row["in_context"] for row in rows.to_pylist()}
    assert [pair for pair, within in found.items() if not within] == [("olmoe-1b-7b", 5000)]
    assert marked([rows]).long == 1
    replays = replays_of(decode_run(model=OLMOE), "run", [H100], ["context=100,5000"])
    rows = pa.concat_tables([replays.tables(task)[0] for task in replays.tasks()])
    assert rows.column("in_context").to_pylist() == [True, False]


def test_of_several_models_one_that_is_not_made_for_it_decides() -> None:
    assert [all_within(said) for said in ([True, True], [True, None], [None, False], [])] == [
        True,
        None,
        False,
        True,
    ]
