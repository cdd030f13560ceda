"""What docs/studies.md concludes from its tables (the tables themselves: test_examples.py) holds with the laws of today,
and what docs/accuracy.md and docs/hardware.md tell of the profiles."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys

import pytest

from moetrace.hardware import load_hardware
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
        assert predicted[768] > min(predicted.values()) > 1


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


def held_out(machine: str) -> dict[str, tuple[float, float]]:
    """Mean and median held-out error, per cent, of each fitted key of a profile."""
    fits = {key: family.fit for key, family in load_hardware(machine).families.items()}
    return {
        key: (100 * fit.mean, 100 * fit.median)
        for key, fit in fits.items()
        if fit and fit.mean and fit.median
    }


# By row of the page: the keys that its error is the median of, and the one that it calls the worst.
H100_ROWS = {
    "dense GEMMs": (r"dense_gemm.*@.*", "dense_gemm:fp8_block@sglang"),
    "attention, decode": (r"attention.*@.*", "attention:fp8@sglang_triton"),
    "MLA, decode": (r"mla_attention.*@.*", "mla_attention:fp8@trtllm"),
    "NCCL's collectives, one node": (r".*@nccl", "all_to_all@nccl"),
    "engines' own all-reduce, in a graph and eager": (
        r"all_reduce@(sglang|trtllm|vllm)",
        "all_reduce@sglang",
    ),
}
PAIR = re.compile(r"([\d.]+) / ([\d.]+) %")


def test_the_page_on_accuracy_tells_the_held_out_errors_of_the_fits() -> None:
    """Each row of families: the median over the keys that it speaks of, and of them the worst."""
    page, fits = (REPO / "docs" / "accuracy.md").read_text(), held_out("h100-sxm")
    page = page.split("## By family")[1].split("| A100 |")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line
    ]
    found = {row[0]: row for row in rows}
    for name, (pattern, worst) in H100_ROWS.items():
        keys = {key: fits[key] for key in fits if re.fullmatch(pattern, key)}
        assert max(keys, key=lambda key: keys[key][0]) == worst, name
        median = [statistics.median(values) for values in zip(*keys.values(), strict=True)]
        for cell, values in ((found[name][1], median), (found[name][2], fits[worst])):
            told = PAIR.search(cell)
            assert told, (name, cell)
            for number, value in zip(told.groups(), values, strict=True):
                assert abs(float(number) - value) < 0.06, (name, cell, values)
    exchanges = [float(n) for pair in PAIR.findall(found["DeepEP dispatch; combine"][1]) for n in pair]
    assert exchanges == pytest.approx([*fits["moe_dispatch@deepep"], *fits["moe_collect@deepep"]])


def test_the_page_on_hardware_tells_the_widening_of_each_profile() -> None:
    page = (REPO / "docs" / "hardware.md").read_text()
    ships = page.split("## What ships")[1].split("\n\n")[1]
    for name in ("h200-sxm", "b200", "mi300x"):
        widen = re.search(r"^widen = ([\d.]+)", (REPO / "hw_profiles" / f"{name}.toml").read_text(), re.M)
        assert widen and f"{100 * float(widen[1]):.0f} %" in ships, name
