"""What is known of a run besides its ops: its steps and metadata, and how they stand in run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from moetrace.errors import RunError
from moetrace.model import ModelSpec
from moetrace.run.columns import GENERATING, RUN_VERSION, main_phase

OWN_EXPERTS = "own_experts"  # among a run's facts
LAUNCHED = "launched"  # among a prediction's facts: its steps whose ops wait for the host, which launches them one by one
TPOT = "tpot"  # among a simulation's facts; null once it is replayed, where a decode step is not that


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the engine. Times in ns; None where the trace does not say.

    `tokens` is the number of tokens that requests had computed, `kv_tokens` the KV tokens that full attention reads, summed
    over sequences. `padded_tokens` is the number that was computed where it is larger: a graph replayed for more tokens.
    """

    index: int
    name: str
    phase: str | None
    start_ns: int
    end_ns: int
    batch: int | None = None
    tokens: int | None = None
    kv_tokens: int | None = None
    padded_tokens: int | None = None


def main_steps(steps: Sequence[Step]) -> list[Step]:
    """The steps that a run is about: the decode steps, else the verifying ones, else all."""
    main = main_phase(step.phase or "unknown" for step in steps)
    return [step for step in steps if step.phase == main or main not in GENERATING]


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a run besides its ops."""

    kind: str  # measured, predicted or synthesized
    source: str  # the trace's file name
    steps: tuple[Step, ...] = ()
    model: ModelSpec | None = None
    model_source: str = "none"  # given, recorded, inferred (and from what), or none
    native_layers: int | None = None  # the real model's depth, where fewer were recorded
    device: str = ""  # the profiler's name for the device
    device_class: str = "gpu"  # gpu, cpu or wafer
    hardware: str | None = None  # the profile that the device matches
    gpus: int = 1
    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1
    engine: str | None = None
    routing: str = "none"  # provenance of distinct-expert counts
    notes: tuple[str, ...] = ()  # warnings and assumptions, one sentence each
    # Counts of the reader: events, damaged, outside steps.
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_experts(self) -> bool:
        """Whether distinct experts are counted on the experts of each op's own rank, of `ep` that share them out."""
        return self.ep > 1 and self.facts.get(OWN_EXPERTS) is True

    @property
    def step_is_token(self) -> bool:
        """Whether a decode step is what a token costs each sequence (`step_is_token`)."""
        return step_is_token(self.facts)

    @property
    def tpot(self) -> Mapping[str, float] | None:
        """A simulation's TPOT (`expected_s`, `low_s`, `high_s`, and whether it is `of_steps` alone); None where not known."""
        return self.facts.get(TPOT)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict that from_dict reads back."""
        return {**asdict(self), "model": self.model.to_dict() if self.model else None, "version": RUN_VERSION}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Meta:
        """The metadata that `to_dict` wrote. Raises RunError or ModelError naming what is not as it should be."""
        values = _checked(cls, raw, "")
        values["steps"] = tuple(
            Step(**_checked(Step, step, f"steps[{i}].")) for i, step in enumerate(values.get("steps", ()))
        )
        values["model"] = ModelSpec.from_dict(raw["model"]) if raw.get("model") else None
        values["notes"] = tuple(values.get("notes", ()))
        _check_facts(values.get("facts", {}))
        return cls(**values)


_NONE = type(None)
# What JSON must hold for a field, by the field's annotation: types, and their name in an error.
_JSON: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "str | None": ((str, _NONE), "a text or null"),
    "int": ((int,), "a whole number"),
    "int | None": ((int, _NONE), "a whole number or null"),
    "tuple[Step, ...]": ((list,), "a list of steps"),
    "tuple[str, ...]": ((list,), "a list of texts"),
    "ModelSpec | None": ((dict, _NONE), "a model or null"),
    "Mapping[str, Any]": ((dict,), "an object"),
}


def step_is_token(facts: Mapping[str, Any]) -> bool:
    """Whether a decode step is what a token costs each sequence, by a run's facts: not in a simulation of a steady load, whose
    prompts come between, of drafted tokens, or with a host's time beside the device's."""
    found = facts.get(TPOT, {"of_steps": "beside" not in facts.get("workload", {})})
    return bool(found and found["of_steps"])


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Raises RunError where what a simulation states of its load is not as it was written."""
    tpot, load = facts.get(TPOT), facts.get("workload", {})
    if not isinstance(load, dict):
        raise RunError("facts.workload: expected an object")
    share, launched = load.get("after_decode", 1.0), facts.get(LAUNCHED, [])
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise RunError(f"facts.workload.after_decode is {share!r}: expected a number from 0 to 1")
    for name in ("apart", "drafted"):
        if not isinstance(load.get(name, False), bool):
            raise RunError(f"facts.workload.{name} is {load[name]!r}: expected true or false")
    if not isinstance(launched, list) or any(type(step) is not int for step in launched):
        raise RunError(f"facts.{LAUNCHED}: expected a list of steps by their index")
    if tpot is None:
        return
    numbers = isinstance(tpot, dict) and [tpot.get(name) for name in ("expected_s", "low_s", "high_s")]
    if (
        not numbers
        or not all(type(n) in (int, float) for n in numbers)
        or not isinstance(tpot.get("of_steps"), bool)
    ):
        raise RunError(f"facts.{TPOT}: expected an object of expected_s, low_s, high_s and of_steps, or null")


def _checked(cls: type[Meta] | type[Step], raw: Any, where: str) -> dict[str, Any]:
    """The values that are fields of the class; an unknown key is of a later version. Raises RunError by name of the field."""
    if not isinstance(raw, dict):
        raise RunError(f"{where.rstrip('.') or 'it'} is not an object")
    found: dict[str, Any] = {}
    for f in fields(cls):
        if f.name not in raw:
            if f.default is MISSING and f.default_factory is MISSING:
                raise RunError(f"it lacks {where}{f.name}")
            continue
        value, (types, what) = raw[f.name], _JSON[str(f.type)]
        texts = f.type != "tuple[str, ...]" or all(isinstance(v, str) for v in value or ())
        if not isinstance(value, types) or isinstance(value, bool) or not texts:
            raise RunError(f"{where}{f.name} is {str(value)[:40]!r}, expected {what}")
        found[f.name] = value
    return found
