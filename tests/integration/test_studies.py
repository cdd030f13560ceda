"""What docs/studies.md concludes from its tables (the tables themselves: test_examples.py) holds with the laws of today."""

from __future__ import annotations

import os
import re
import statistics
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
    found, key = {}, ""
    for line in (REPO / "hw_profiles" / f"{machine}.toml").read_text().splitlines():
        if at := re.fullmatch(r'\[fitted\.family\.("?)([^"]+)\1\]', line):
            key = at[2]
        elif line.startswith("held_out = ") and (both := re.search(r"mean ([\d.]+)% median ([\d.]+)%", line)):
            found[key] = float(both[1]), float(both[2])
    return found


H100_KEYS = {
    "dense GEMMs": r"dense_gemm.*@.*",
    "SGLang's block FP8": r"dense_gemm:fp8_block@sglang",
    "attention": r"attention.*@.*",
    "an fp8 cache": r"attention:fp8@trtllm",
    "in bf16": r"attention@trtllm",
    "MLA": r"mla_attention.*@.*",
    "TensorRT-LLM's fp8 cache": r"mla_attention:fp8@trtllm",
    "NCCL": r".*@nccl",
    "all-to-all": r"all_to_all@nccl",
    "in a graph and eager": r"all_reduce@(sglang|trtllm|vllm)",
    "dispatch": r"moe_dispatch",
    "collect": r"moe_collect",
}


def test_the_page_on_hardware_tells_the_held_out_errors_of_the_fits() -> None:
    """Each pair mean / median of its sentence: the median over the keys that it speaks of; and the widening of each profile."""
    page = (REPO / "docs" / "hardware.md").read_text()
    sentence = page.split("* Off by, mean / median of held-out rows on H100")[1].split("On A100:")[0]
    fits = held_out("h100-sxm")
    for words, pattern in H100_KEYS.items():
        both = re.search(rf"\b{words}\s+([\d.]+) / ([\d.]+) %", sentence)
        keys = [fits[key] for key in fits if re.fullmatch(pattern, key)]
        assert both and keys, words
        for told, values in zip(both.groups(), zip(*keys, strict=True), strict=True):
            assert abs(float(told) - statistics.median(values)) < 0.06, (words, told, sorted(values))
    ships = page.split("## What ships")[1].split("\n\n")[1]
    for name in ("h200-sxm", "b200", "mi300x"):
        widen = re.search(r"^widen = ([\d.]+)", (REPO / "hw_profiles" / f"{name}.toml").read_text(), re.M)
        assert widen and f"{100 * float(widen[1]):.0f} %" in ships, name
