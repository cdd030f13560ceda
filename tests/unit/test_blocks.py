"""Block FP8: what engines do not load is said, and timed all the same."""

from __future__ import annotations

import pytest

from moetrace.model import load_model
from moetrace.replay import Scenario, simulate
from moetrace.synthesize import Workload

QWEN3 = load_model("qwen3-235b-a22b")


@pytest.mark.parametrize(
    ("sets", "width"),
    [
        (("tp=8", "dtype=fp8_block"), 192),
        (("tp=8", "ep=8", "dtype=fp8_block"), None),
        (("tp=4", "dp=2", "dtype=fp8_block"), 192),
        (("tp=8", "dtype=fp8"), None),
        (("tp=8",), None),
    ],
)
def test_experts_cut_within_a_block_are_said_to_be_loaded_by_no_engine(
    sets: tuple[str, ...], width: int | None
) -> None:
    done = simulate(QWEN3, Workload(8, 64, 4), "h100-sxm-x8", Scenario.of(*sets))
    said = [text for text in done.summary["assumptions"] if "do not load a checkpoint" in text]
    assert len(said) == (width is not None) and all(f"is {width} wide" in text for text in said)


def test_a_wafer_cuts_nothing() -> None:
    done = simulate(QWEN3, Workload(1, 64, 4), "cs3", Scenario.of("dtype=fp8_block", "ffn=192"))
    assert not any("do not load" in text for text in done.summary["assumptions"])
