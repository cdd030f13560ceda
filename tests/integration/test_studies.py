"""What docs/studies.md concludes from its tables (the tables themselves: test_examples.py) holds with the laws of today."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from moetrace.validate.figure import shipped
from moetrace.validate.sources import fewer_active
from tests.conftest import REPO


@pytest.fixture(scope="module")
def gains() -> dict[str, list[tuple[int, float, float]]]:
    """(concurrency, measured and predicted ratio to the native n_a) for the ends of n_a, at every other concurrency."""
    figures = [f for f in shipped() if f.kind == "FM8" and f.batch in {"2", "8", "64", "256", "768"}]
    found: dict[str, list[tuple[int, float, float]]] = {}
    for figure in figures:
        if figure.n_a not in {"5", "2"}:
            continue
        for entry in fewer_active.entries(figure, figures):
            if entry.metric == "throughput_over_native_n_a" and entry.estimate and entry.measured:
                row = (int(figure.batch), entry.measured, entry.estimate.value)
                found.setdefault(figure.n_a, []).append(row)
    return found


def test_the_gain_of_fewer_active_experts_rises_falls_and_recovers(
    gains: dict[str, list[tuple[int, float, float]]],
) -> None:
    """2505.03531, Table 8: the peak is at 8 of these concurrencies, the trough between 64 and 256; 768 is above it again."""
    for rows in gains.values():
        predicted = {at: ratio for at, _, ratio in rows}
        assert max(predicted, key=predicted.__getitem__) == 8
        assert min(predicted, key=predicted.__getitem__) in (64, 256)
        assert predicted[768] > predicted[64] > 1


def test_the_gain_is_within_what_is_asked_of_it(gains: dict[str, list[tuple[int, float, float]]]) -> None:
    rows = [row for found in gains.values() for row in found]
    assert sum(abs(measured - ratio) for _, measured, ratio in rows) / len(rows) < 0.06


def test_the_page_on_hardware_tells_what_the_fit_of_wafers_leaves() -> None:
    """Each row of its table: published and predicted speed of a model left out, and the tokens of a pass that were assumed."""
    fitted = subprocess.run(
        [sys.executable, "benchmarks/fit_wafer_profile.py"],
        cwd=REPO, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO)},
    ).stdout  # fmt: skip
    told = r"measured +(\d+)  spread +(\d+) \( *([+-][\d.]+) %\)  own +\d+ \( *[+-][\d.]+ %\)  (?:x ([\d.]+)|not drafted)"
    said = {
        (f"{int(m[1]):,}", f"{int(m[2]):,} ({float(m[3]):+.0f} %)", m[4] or "no")
        for m in re.finditer(told, fitted)
    }
    page = (REPO / "docs" / "hardware.md").read_text().split("| model left out |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[2:]]
    assert len(rows) == 7
    for name, published, spread, _, drafted in rows:
        assert (
            published.removesuffix(" (approximate)"),
            spread,
            drafted.removesuffix(" tokens per pass"),
        ) in said, name
