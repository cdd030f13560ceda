"""The page's colours stay apart for readers who see fewer of them (simulation: Machado, Oliveira and Fernandes 2009)."""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

STYLE = resources.files("moetrace.report.html").joinpath("assets", "style.css").read_text()
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip
PARTS = ("memory", "compute", "network", "fixed", "unexplained", "launch")


def colour(name: str, dark: bool) -> np.ndarray:
    pair = re.search(rf"--{name}: light-dark\((#\w+), (#\w+)\)", STYLE)
    assert pair, name
    text = pair[2 if dark else 1]
    return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    xyz = xyz / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("sight", SEEN)
def test_parts_of_a_bar_are_told_apart(sight, dark):
    seen = {}
    for name in PARTS:
        rgb = colour(name, dark)
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen[name] = lab(np.clip(np.asarray(SEEN[sight]) @ linear, 0, 1))
    apart = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in combinations(PARTS, 2)}
    assert min(apart.values()) > 12, min(apart, key=lambda pair: apart[pair])
