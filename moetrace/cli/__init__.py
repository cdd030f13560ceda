"""The command line: one file per verb, each holding a click command of the verb's name.

This table is what ``moetrace --help`` shows, so that it need not import the verbs.
"""

from __future__ import annotations

VERBS: dict[str, str] = {
    "record": "Record a MoE decode run: of your own program, of the built-in workload, or of a server.",
    "parse": "Read a trace into a RUN: one row per op, with FLOPs, bytes and layer.",
    "doctor": "Say what a trace can and cannot answer, and how to capture what it lacks.",
    "show": "Take a quick look at a run: the answers, and where the time goes.",
    "report": "Write a report to open in a browser: one file, answers first.",
    "attribute": "Show where the time goes: bound, idle, and what halving each part saves.",
    "diff": "Compare two runs: what changed, by op and layer, and whether it may be noise.",
    "replay": "Predict a run on other hardware and with edited settings.",
    "simulate": "Predict TTFT, TPOT and throughput of a model on a machine, without a trace.",
    "cost": "Predict the time of every op in a table, given by its dims.",
    "validate": "Recompute published figures and show how far off the predictions are.",
    "calibrate": "Fit a machine's coefficients to measured ops, scored on shapes left out.",
    "export": "Write a run's timeline for a viewer such as Perfetto.",
    "profiles": "List the machines that --hw knows, or show one in detail.",
    "models": "List the models that --model knows.",
    "schema": "List the columns of all Parquet files: type, unit, meaning, and what null means.",
    "knobs": "List what --set can change.",
}
