"""The knobs: each is one function from a draft of the run to an edited draft. A new what-if is one function here.

They apply in the order of this list: `machine` (how many devices), `shape` (what the model is), `load` (what it is asked),
`ranks` (how it is shared out), `running` (how it is run). A knob changes ops (what is computed), never durations; what the
changed ops cost is the engine's business. A knob that cannot apply raises ScenarioError with one line.
"""

from __future__ import annotations

from importlib import import_module

from moetrace.replay.knobs.registry import KNOBS, Knob, knob_name, knob_table

for _topic in ("machine", "shape", "load", "ranks", "running"):
    import_module(f"{__name__}.{_topic}")

__all__ = ["KNOBS", "Knob", "knob_name", "knob_table"]
