"""Every row of a grid is the one simulation of the same settings: of grids drawn at random (`tests/drawn_grids.py`)."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings

from moetrace.replay.grid.plan import Ask
from tests.drawn_grids import check, grids


@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(grids(models=("olmoe-1b-7b", "llama-3.2-1b"), most=4))
def test_each_row_of_a_drawn_grid_is_the_simulation_of_its_settings(ask: Ask) -> None:
    check(ask)


LOAD = ("batch=2,64", "input_len=64", "output_len=1,2")
DRAFT = ("draft=llama-3.2-1b", "draft_tokens=3", "acceptance=0.7")


@pytest.mark.parametrize(
    ("machines", "sets", "rows"),
    [
        (
            ("h100-sxm", "h100-sxm-x4"),
            (*LOAD, "gpus=1,2", "tp=1,2"),
            8,
        ),  # one device of either is one machine
        (("h100-sxm",), (*LOAD, "n_a=4,65,70"), 12),  # each refusal names its own number
        (("h100-sxm",), (*LOAD[:1], "input_len=40000000", "output_len=1,2"), 4),
        (("h100-sxm",), (*LOAD, "context=4"), 4),
        (("h100-sxm",), (*LOAD, "n_e=500"), 4),
        (
            ("h100-sxm",),
            (*LOAD[:2], "output_len=2", "gpus=2", "tp=2,1", "dp=1,2", *DRAFT),
            4,
        ),  # a drafting model works on its group's part of the batch
        (("cs3",), (*LOAD, "fusion=runs,recorded", "kv=fp8"), 8),
    ],
)
def test_what_was_answered_otherwise_once(
    machines: tuple[str, ...], sets: tuple[str, ...], rows: int
) -> None:
    assert check(Ask(("olmoe-1b-7b",), machines, sets)) == rows
