"""Grids: thousands to millions of scenarios of some models, each answered as `simulate` answers it.

plan (what a grid asks, cut into tasks), vector (many scenarios at once that differ in numbers alone; shape, counted, times,
steps, eager and load are its parts), rows (the two tables), store (a directory of them that an interrupted grid resumes),
choose (limits and the Pareto front), spread (a Dask cluster), recorded (replays of a run).
"""

from __future__ import annotations
