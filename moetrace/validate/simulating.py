"""Simulations for figures: names as sources print them to moetrace's, and each simulation run once."""

from __future__ import annotations

import re
from dataclasses import replace

from moetrace.hardware import Hardware, load_hardware
from moetrace.model import ModelSpec, load_model, model_names
from moetrace.replay import Scenario, simulate
from moetrace.replay.measures import metrics
from moetrace.synthesize import Workload
from moetrace.validate.entry import Estimate, RefusalError
from moetrace.validate.figure import Figure

Metrics = dict[str, tuple[float | None, float | None, float | None]]
# How sources name a machine (a pattern at the start of its name) -> profile; the first that fits.
MACHINES = (
    (r"A800-80G-PCIe", "a800-pcie"),
    (r"H200", "h200-sxm"),
    (r"H100 PCIe", "h100-pcie"),
    (r"H100 NVL", "h100-nvl"),
    (r"H100(-|$)", "h100-sxm"),
    (r"H800", "h800-sxm"),
    (r"GB200", "gb200"),
    (r"B200", "b200"),
    (r"G?B300", "b300"),
    (r"H20(-(?!3e)|$)", "h20"),  # H20-3e has other memory
    (r"A100 80GB PCIe", "a800-pcie"),  # the same chip and memory; its link to others is narrower
    (r"A100-(SXM|80GB)", "a100-sxm"),
    (r"MI300X", "mi300x"),
    (r"MI325X", "mi325x"),
    (r"L40S", "l40s"),
    (r"WSE-2|Cerebras CS-2", "wse2"),
    (r"WSE-3|Cerebras CS-3", "cs3"),
)
# Names that are not the catalogue's but for capitals.
MODELS = {
    "deepseek-v3/r1": "deepseek-v3",
    "llama3-8b": "llama-3-8b",
    "llama2-13b": "llama-2-13b",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "qwen3-235b-a22b-fp8": "qwen3-235b-a22b",
    "qwen3-235b-a22b-instruct-2507": "qwen3-235b-a22b",
    "minimax-m2.5": "minimax-m2",  # the same but for its weights
    "mixtral-8x7b variant": "mixtral-8x7b",
    "mixtral-8x7b etc.": "mixtral-8x7b",
}


def model_of(name: str) -> str:
    """The catalogue's name of a model. Raises RefusalError."""
    plain = name.lower()
    last = plain.rpartition("/")[2]  # behind who publishes it, as on a hub
    plain = MODELS.get(plain) or MODELS.get(last) or last.removesuffix("-instruct")
    if plain not in model_names():
        raise RefusalError(f"model {name!r} is not in the catalogue" if name else "the model is not stated")
    return plain


def machine_of(name: str, gpus: int = 1) -> Hardware:
    """The profile of a machine with so many GPUs. Raises RefusalError."""
    found = next((profile for pattern, profile in MACHINES if re.match(pattern, name)), None)
    if found is None:
        raise RefusalError(f"there is no profile of {name!r}" if name else "the machine is not stated")
    base = load_hardware(found)
    return base if gpus == 1 else replace(base, name=f"{found}-x{gpus}", base=found, gpus=gpus)


def need(figure: Figure, *names: str) -> list[int]:
    """The columns of a figure as whole numbers. Raises RefusalError that names those not stated."""
    values = [figure.whole(name) for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    said = [f"{name} {text!r}" for name in missing if (text := str(getattr(figure, name)).strip())]
    if missing and len(said) == len(missing):
        raise RefusalError(f"{', '.join(said)}: expected a whole number")
    if missing:
        raise RefusalError(f"not stated: {', '.join(missing)}")
    return [value for value in values if value is not None]


def simulated(
    model: str | ModelSpec,
    hw: Hardware,
    load: tuple[int, int, int],
    *sets: str,
    metric: str = "throughput",
    said: str = "",
    host_s: float = 0.0,
) -> Estimate:
    """A measure of (batch, input tokens, output tokens) with the knobs `sets`; `said` is added to the setting.

    `host_s` is added to each step of a static batch, without simulating again. Raises RefusalError.
    """
    measures = _summary(model, hw, load, sets)[0]
    value, low, high = (_with_host(measures, load, host_s) if host_s else measures)[metric]
    if value is None:
        raise RefusalError(f"{metric} is not defined for {load[2]} output tokens")
    named = model if isinstance(model, str) else model.name
    words = f"--model {named} --hw {hw.name} --batch {load[0]} --input-len {load[1]} --output-len {load[2]}"
    edits = "".join(f" --set {text}" for text in sets)
    return Estimate(value, low, high, hw.name, f"{words}{edits}{'; ' if said else ''}{said}")


def _with_host(measures: Metrics, load: tuple[int, int, int], host_s: float) -> Metrics:
    """The measures of a static batch with so much more of the host in each of its steps."""
    times = [
        ((first or 0.0) + host_s, (whole or 0.0) - (first or 0.0) + (load[2] - 1) * host_s)
        for first, whole in zip(measures["ttft"], measures["e2e"], strict=True)
    ]
    found = metrics(times, Workload(*load))
    return {name: (m["value"], m["low"], m["high"]) for name, m in found.items()}


_DONE: dict[tuple[str | ModelSpec, str, tuple[int, int, int], tuple[str, ...]], tuple[Metrics, bool]] = {}


def fits(model: str | ModelSpec, hw: Hardware, load: tuple[int, int, int], *sets: str) -> bool:
    """Whether weights and KV cache fit the machine; what does not is an empty cell of the sources' tables."""
    return _summary(model, hw, load, sets)[1]


def _summary(
    model: str | ModelSpec, hw: Hardware, load: tuple[int, int, int], sets: tuple[str, ...]
) -> tuple[Metrics, bool]:
    """The measures of a simulation and whether it fits; each is run once for each machine's name."""
    key = (model, hw.name, load, sets)
    if key not in _DONE:
        spec = load_model(model) if isinstance(model, str) else model
        summary = simulate(spec, Workload(*load), hw, Scenario.of(*sets)).summary
        measures = {name: (m["value"], m["low"], m["high"]) for name, m in summary["metrics"].items()}
        _DONE[key] = measures, bool(summary["memory"]["fits"])
    return _DONE[key]


def ratio(one: Estimate, other: Estimate, percent: bool = False) -> Estimate:
    """one / other; in per cent more if asked. Their errors are one machine's and nearly cancel: no interval is worked out."""
    value = one.value / other.value
    value = 100 * (value - 1) if percent else value
    return Estimate(value, None, None, one.hardware, f"({one.setting}) / ({other.setting})")
