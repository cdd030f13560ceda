"""Grids: thousands to millions of scenarios of one model, each answered as `simulate` answers it.

vector (many scenarios that differ in numbers alone, at once), plan (what a grid asks, cut into tasks), rows (the two tables),
store (a directory of them that an interrupted grid resumes), choose (limits and the Pareto front), spread (a Dask cluster).
"""

from __future__ import annotations
