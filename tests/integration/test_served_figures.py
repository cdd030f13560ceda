"""What README.md says of served runs is what their table gives with the laws of today.

The table is public and not shipped; it is found as ``shared/figures/served_tpot.csv`` beside the checkout.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from moetrace.validate import entries
from moetrace.validate.entry import PREDICTED, Entry
from moetrace.validate.figure import read
from moetrace.validate.ledger import MARKS
from tests.conftest import REPO

TABLE = Path(__file__).parents[3] / "shared" / "figures" / "served_tpot.csv"


@pytest.fixture(scope="module")
def served() -> list[Entry]:
    if not TABLE.is_file():
        pytest.skip(f"no {TABLE}")
    clean = [figure for figure in read(TABLE) if not any(mark in figure.other_knob for mark in MARKS)]
    return [entry for entry in entries(clean) if entry.verdict == PREDICTED and entry.error is not None]


def test_the_readme_tells_the_errors_of_served_runs(served: list[Entry]) -> None:
    text = " ".join((REPO / "README.md").read_text().split())
    qwen = [e for e in served if "Qwen3-235B" in e.figure.model]
    labelled = [
        e
        for e in served
        if "gpt-oss" in e.figure.model and "dtype=fp8" in (e.estimate.setting if e.estimate else "")
    ]
    gpt = [e for e in served if e not in qwen and e not in labelled]
    told = {
        f"TPOT of {len(served)} served runs on H100 and H200": served,
        f"{len(qwen)} runs of Qwen3-235B (FP8)": qwen,
        f"{len(gpt)} runs of gpt-oss-120b (4-bit)": gpt,
        f"{len(labelled)} runs of gpt-oss-120b labelled FP8": labelled,
    }
    for row, found in told.items():
        assert re.search(rf"{re.escape(row)}[^|]*\| {re.escape(errors(found))} \|", text), (
            row,
            errors(found),
        )
    h100 = [e for e in served if re.match("H100", e.figure.hw)]
    h200 = [e for e in served if e not in h100]
    held = (
        f"held {within(served)} of them: {within(h100)} on H100, which was fitted, and {within(h200)} on H200"
    )
    assert held in text
    page = (REPO / "docs" / "simulate.md").read_text()
    assert (
        f"Of {len(h100)} served runs on H100 the interval held {within(h100)}, of {len(h200)} on H200" in page
    )
    assert f"(transferred) {within(h200)};" in page


def errors(found: list[Entry]) -> str:
    """Mean / median absolute error as the page writes it."""
    off = np.abs([e.error for e in found if e.error is not None])
    return f"{100 * off.mean():.1f} / {100 * np.median(off):.1f} %"


def within(found: list[Entry]) -> str:
    """The share that the 80 % interval held, as the page writes it."""
    return f"{100 * np.mean([bool(e.within) for e in found]):.0f} %"
