"""Shows where the time of Mixture-of-Experts LLM decoding goes, and what would change it.

The verbs of the command line as functions, loaded when first used: ``import moetrace`` itself loads nothing
heavy. A verb wins over the submodule of the same name: ``moetrace.parse`` is the function, and
``from moetrace.parse import ...`` reaches the module.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetrace.attribute import Attribution as Attribution
    from moetrace.attribute import attribute as attribute
    from moetrace.cost import cost as cost
    from moetrace.diff import Diff as Diff
    from moetrace.diff import diff as diff
    from moetrace.errors import MoetraceError as MoetraceError
    from moetrace.hardware import Hardware as Hardware
    from moetrace.hardware import load_hardware as load_hardware
    from moetrace.hardware import profile_names as profile_names
    from moetrace.model import ModelSpec as ModelSpec
    from moetrace.model import load_model as load_model
    from moetrace.model import model_names as model_names
    from moetrace.op import Op as Op
    from moetrace.parse import open_run as load
    from moetrace.parse import parse as parse
    from moetrace.record import record as record
    from moetrace.replay import Prediction as Prediction
    from moetrace.replay import Scenario as Scenario
    from moetrace.replay import knob_table as knob_table
    from moetrace.replay import replay as replay
    from moetrace.replay import scenarios as scenarios
    from moetrace.replay import simulate as simulate
    from moetrace.report.html import make_report as make_report
    from moetrace.report.html import write_report as write_report
    from moetrace.report.perfetto import write_timeline as write_timeline
    from moetrace.report.plot import plot_families as plot_families
    from moetrace.report.plot import plot_steps as plot_steps
    from moetrace.routing import Routing as Routing
    from moetrace.run import Run as Run
    from moetrace.synthesize import Workload as Workload
    from moetrace.synthesize import synthesize as synthesize
    from moetrace.validate import validate as validate

    __version__: str

# public name -> (module, name there)
_PUBLIC: dict[str, tuple[str, str]] = {
    "Attribution": ("moetrace.attribute", "Attribution"),
    "Diff": ("moetrace.diff", "Diff"),
    "Hardware": ("moetrace.hardware", "Hardware"),
    "ModelSpec": ("moetrace.model", "ModelSpec"),
    "MoetraceError": ("moetrace.errors", "MoetraceError"),
    "Op": ("moetrace.op", "Op"),
    "Prediction": ("moetrace.replay", "Prediction"),
    "Routing": ("moetrace.routing", "Routing"),
    "Run": ("moetrace.run", "Run"),
    "Scenario": ("moetrace.replay", "Scenario"),
    "Workload": ("moetrace.synthesize", "Workload"),
    "cost": ("moetrace.cost", "cost"),
    "attribute": ("moetrace.attribute", "attribute"),
    "diff": ("moetrace.diff", "diff"),
    "knob_table": ("moetrace.replay", "knob_table"),
    "load": ("moetrace.parse", "open_run"),
    "load_hardware": ("moetrace.hardware", "load_hardware"),
    "load_model": ("moetrace.model", "load_model"),
    "make_report": ("moetrace.report.html", "make_report"),
    "model_names": ("moetrace.model", "model_names"),
    "parse": ("moetrace.parse", "parse"),
    "plot_families": ("moetrace.report.plot", "plot_families"),
    "plot_steps": ("moetrace.report.plot", "plot_steps"),
    "profile_names": ("moetrace.hardware", "profile_names"),
    "record": ("moetrace.record", "record"),
    "replay": ("moetrace.replay", "replay"),
    "scenarios": ("moetrace.replay", "scenarios"),
    "simulate": ("moetrace.replay", "simulate"),
    "synthesize": ("moetrace.synthesize", "synthesize"),
    "validate": ("moetrace.validate", "validate"),
    "write_report": ("moetrace.report.html", "write_report"),
    "write_timeline": ("moetrace.report.perfetto", "write_timeline"),
}

__all__ = [
    "Attribution",
    "Diff",
    "Hardware",
    "ModelSpec",
    "MoetraceError",
    "Op",
    "Prediction",
    "Routing",
    "Run",
    "Scenario",
    "Workload",
    "__version__",
    "attribute",
    "cost",
    "diff",
    "knob_table",
    "load",
    "load_hardware",
    "load_model",
    "make_report",
    "model_names",
    "parse",
    "plot_families",
    "plot_steps",
    "profile_names",
    "record",
    "replay",
    "scenarios",
    "simulate",
    "synthesize",
    "validate",
    "write_report",
    "write_timeline",
]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moetrace")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'moetrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps the import of a submodule, such as ``moetrace.parse``, from hiding the verb of its name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
