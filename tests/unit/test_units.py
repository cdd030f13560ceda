"""Quantities: printing keeps the digits it promises."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.units import count, percent, seconds

SCALE = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def read_back(text: str, unit: str) -> float:
    number, rest = text.replace(",", "").split()
    return float(number) * SCALE.get(rest.removesuffix(unit), 1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0015, "1.5 ms"),
        (2.5e-6, "2.5 us"),
        (3e-9, "3.0 ns"),
        (12, "12.0 s"),
        (3600, "3,600.0 s"),
        (1e-12, "0"),
        (-1e-12, "0"),
        (6e-11, "0.1 ns"),
        (-0.002, "-2.0 ms"),
        (float("nan"), "-"),
        (float("inf"), "-"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


def test_counts_and_shares() -> None:
    assert count(3.35e12, "B/s", 2) == "3.35 TB/s"
    assert count(0, "B") == "0" and count(999, "B", 0) == "999 B" and count(1e15, "FLOP") == "1.0 PFLOP"
    assert count(float("nan"), "B") == "-"
    assert percent(0.6564) == "65.6 %" and percent(1) == "100.0 %" and percent(0.12345, 2) == "12.35 %"
    assert percent(float("nan")) == "-"


def test_a_count_without_unit_ends_with_its_digits() -> None:
    assert count(5) == "5.0"


@given(st.floats(1e-9, 1e9))
def test_printed_seconds_read_back(value: float) -> None:
    text = seconds(value, 6)
    assert read_back(text, "s") == pytest.approx(value, rel=1e-6)


@given(st.floats(1, 1e18))
def test_printed_bytes_read_back(value: float) -> None:
    text = count(value, "B", 6)
    assert read_back(text, "B") == pytest.approx(value, rel=1e-6)
    number = float(text.split()[0].replace(",", ""))
    assert number >= 1 and (number <= 1000 or math.isclose(value, 1e18, rel_tol=1) or text.endswith("PB"))
