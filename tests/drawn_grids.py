"""Grids drawn at random, each row held against the one simulation of the same settings.

    python -m tests.drawn_grids [DRAWS] [--seed N]

draws thousands of them, of all models, machines and knobs; the test draws a few of small models.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from moetrace.errors import MoetraceError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import scenarios, simulate
from moetrace.replay.economics import read_prices
from moetrace.replay.grid.plan import Ask, plan_of
from moetrace.replay.grid.rows import measure_column, tables
from moetrace.replay.knobs import KNOBS
from moetrace.replay.load import read_load
from moetrace.synthesize import synthesize

CLOSE = 1e-9
SMALL = ("olmoe-1b-7b", "gpt-oss-20b", "llama-3.2-1b", "deepseek-v2-lite")
MACHINES = ("h100-sxm", "h100-sxm-x4", "h200-sxm-x8", "a100-sxm", "b200", "cs3", "cpu", "l40s")
# Values that most models and machines take, and values that some do not.
_USUAL: Mapping[str, tuple[str, ...]] = {
    "batch": ("1", "2", "3", "7", "16", "33", "64", "300"),
    "input_len": ("1", "64", "300", "2048", "9000"),
    "output_len": ("1", "2", "3", "17", "512"),
    "n_a": ("1", "2", "4", "native", "8/4"),
    "fusion": ("recorded", "runs"),
    "layers": ("1", "5", "16", "40", "native"),
    "n_e": ("16", "32", "60@random"),
    "prune_inter": ("0", "12.5", "50"),
    "ffn": ("512", "1024"),
    "prune_intra": ("0", "25", "50"),
    "dtype": ("bf16", "fp8", "int4", "mxfp4"),
    "act": ("bf16", "fp8"),
    "kv": ("bf16", "fp8"),
    "serving": ("static", "continuous"),
    "host": ("0ms", "5ms"),
    "chunk": ("64", "512", "8192"),
    "overlap": ("none", "two_batch"),
    "routing": ("uniform", "balanced", "power_law:1.2", "skewed", "skewed:0.5"),
    "engine": ("any", "vllm", "sglang", "trtllm", "vllm@0.19.0", "sglang@0.4.4", "sglang@0.5.10"),
    "experts": ("fused", "unfused"),
    "graph": ("on", "off"),
    "pad": ("engine", "routed", "none"),
    "placement": ("spread", "own", "whole"),
    "tokens_per_step": ("1", "2.5"),
    "draft": ("qwen3-0.6b", "llama-3.2-1b"),
    "draft_tokens": ("1", "3"),
    "acceptance": ("0", "0.7", "1"),
}
_ODD: Mapping[str, tuple[str, ...]] = {
    "batch": ("4096", "1000000"),
    "input_len": ("70000", "40000000"),
    "n_a": ("9", "200", "4x13:2x13", "6:6"),
    "n_e": ("1", "7", "500", "64@popular"),
    "prune_inter": ("99",),
    "ffn": ("1", "1000"),
    "context": ("100",),
    "routing": ("popularity", "recorded"),
    "eplb": ("3", "4"),
    "nodes": ("1", "2"),
    "gpus": ("2", "16"),
    "tp": ("3", "16"),
    "ep": ("2", "64"),
    "dp": ("2", "4"),
    "pp": ("2", "4"),
}
_LOAD = ("batch", "input_len", "output_len")
_DRAFTING = ("draft", "draft_tokens", "acceptance")
EDITS = tuple(name for name in _USUAL if name not in (*_LOAD, *_DRAFTING, "tokens_per_step"))
_SHARED = tuple(
    {"gpus": g, "tp": tp, "pp": pp, "dp": g // tp // pp}
    for g in (1, 2, 4, 8) for tp in (1, 2, 4, 8) for pp in (1, 2, 4) if g % (tp * pp) == 0
)  # fmt: skip


def one_in(n: int) -> st.SearchStrategy[bool]:
    return st.integers(1, n).map(lambda drawn: drawn == n)


@st.composite
def values_of(draw: st.DrawFn, name: str) -> list[str]:
    """A value of a knob or two."""
    odd = name in _ODD and (name not in _USUAL or draw(one_in(12)))
    some = st.sampled_from((_ODD if odd else _USUAL)[name])
    return draw(st.lists(some, min_size=1, max_size=1 if name in _DRAFTING else 2, unique=True))


@st.composite
def _layout(draw: st.DrawFn) -> dict[str, list[str]]:
    """How a model is shared out over devices, a layout or two."""
    out: dict[str, list[str]] = {}
    for one in draw(st.lists(st.sampled_from(_SHARED), min_size=1, max_size=2)):
        ep = draw(st.sampled_from([n for n in (1, 2, 4, 8) if one["tp"] * one["dp"] % n == 0]))
        for name, value in {**one, "ep": ep}.items():
            out.setdefault(name, []).append(str(value))
    return {name: list(dict.fromkeys(values)) for name, values in out.items()}


@st.composite
def grids(
    draw: st.DrawFn, models: Sequence[str] = SMALL, machines: Sequence[str] = MACHINES, most: int = 24
) -> Ask:
    """A grid of one model or two, one machine or two, a load and up to five other knobs, of about `most` scenarios."""
    assert {*_USUAL, *_ODD} == set(KNOBS), "a knob that is not drawn"
    names = draw(st.lists(st.sampled_from(EDITS), max_size=4, unique=True))
    names += _DRAFTING if draw(one_in(8)) else ["tokens_per_step"] if draw(one_in(12)) else []
    chosen = {name: draw(values_of(name)) for name in (*_LOAD, *names)}
    if draw(st.booleans()):
        chosen |= draw(_layout())
        if len(chosen["ep"]) == 1 and chosen["ep"] != ["1"] and draw(one_in(4)):
            chosen |= {"eplb": ["8"], "routing": draw(values_of("routing"))}
    if draw(one_in(10)):
        odd = draw(st.sampled_from(sorted(_ODD)))
        chosen[odd] = draw(values_of(odd))
    model = draw(st.lists(st.sampled_from(models), min_size=1, max_size=2, unique=True))
    machine = draw(st.lists(st.sampled_from(machines), min_size=1, max_size=2, unique=True))
    while math.prod(map(len, (model, machine, *chosen.values()))) > most:
        longest = max((*chosen.values(), machine, model), key=len)
        del longest[-1]  # some list has two or more, for the product is above one
    sets = tuple(f"{name}={','.join(values)}" for name, values in chosen.items())
    return Ask(tuple(model), tuple(machine), sets, ("2.5",) if draw(st.booleans()) else ())


def alone(ask: Ask) -> Iterator[tuple[dict[str, Any], Mapping[str, Any] | str]]:
    """(what tells a scenario, the summary of its one simulation or why it cannot be), as `moetrace simulate` has them."""
    hardware = [load_hardware(name) for name in ask.machines]
    prices = read_prices(ask.prices, hardware)
    for name in ask.models:
        model = load_model(name)
        load, rest = read_load(ask.sets)
        for machine, scenario in scenarios(rest, hardware, synthesize(model, load), most=10_000):
            said = {"batch": load.batch, "input_len": load.input_len, "output_len": load.output_len}
            told = {**said, **scenario.texts(), "model": model.name, "hardware": machine.name}
            hourly = prices.get(machine.base or machine.name)
            try:
                yield told, simulate(model, load, machine, scenario, price_per_hour=hourly).summary
            except MoetraceError as error:
                yield told, str(error)


def check(ask: Ask) -> int:
    """Holds a grid against its scenarios alone; how many there are. Raises AssertionError where they differ."""
    try:
        expected = list(alone(ask))
    except MoetraceError as error:
        try:
            plan_of(ask)
        except MoetraceError as other:
            assert str(other) == str(error)
            return 0
        raise AssertionError(f"the grid takes what simulate refuses: {error}") from error
    plan = plan_of(ask)
    parts = [tables(ask, task) for task in plan.tasks()]
    rows, breakdown = (
        pa.concat_tables(part, promote_options="permissive").to_pylist() for part in zip(*parts, strict=True)
    )
    families: dict[int, dict[str, tuple[float, float]]] = {row["scenario"]: {} for row in rows}
    for part in breakdown:
        families[part["scenario"]][part["family"]] = part["decode_s"], part["prefill_s"]
    told = ("model", "hardware", *(name for name in KNOBS if name in rows[0] and name != "gpus"))
    found = {tuple(str(row[name]) for name in told if row[name] is not None): row for row in rows}
    assert len(found) == len(rows) == len(expected), "not a row for each scenario"
    for said, answer in expected:
        row = found[tuple(str(said[name]) for name in told if name in said)]
        if isinstance(answer, str):
            assert row["problem"] == answer, f"{row['problem']} in the grid, {answer} alone, of {said}"
            continue
        for what, one, other in _pairs(row, families[row["scenario"]], answer):
            assert alike(one, other), f"{what}: {one} in the grid, {other} alone, of {said}"
    return len(expected)


def _pairs(
    row: Mapping[str, Any], families: Mapping[str, tuple[float, float]], alone: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(what, value in the grid, value alone) of all that a row says."""
    yield "problem", row["problem"], None
    for name, said in alone["metrics"].items():
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            yield f"{name}{end}", row[measure_column(name, end)], said[part]
    rate = alone["metrics"]["output_throughput"]["value"]
    yield "a device's tokens", row["output_per_gpu_per_s"], rate / alone["economics"]["devices"]
    for name in ("needed_bytes", "largest_batch", "fits"):
        yield name, row[name], alone["memory"][name]
    for name in ("tokens_per_joule", "cost_per_million_tokens"):
        yield name, row[name], alone["economics"][name]
    for name in ("gpus", "wafers"):
        yield name, row[name], alone[name]
    yield "in_context", row["in_context"], alone["context"]["within"]
    yield "queued", row["queued"], alone["queued"]
    yield "routing_source", row["routing_source"], alone["distinct"] and alone["distinct"]["source"]
    yield "beyond_fit", row["beyond_fit"] or "", alone["beyond_fit"]
    said = {part["family"]: (part["decode_s"], part["prefill_s"]) for part in alone["families"]}
    yield "families", sorted(families), sorted(said)
    for name, values in said.items():
        for phase, one, other in zip(("decode", "prefill"), families[name], values, strict=True):
            yield f"{phase} of {name}", one, other


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=CLOSE, abs_tol=1e-12)
    return bool(one == other)


def main() -> None:
    from moetrace.hardware import profile_names
    from moetrace.model import model_names

    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("draws", nargs="?", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--small", action="store_true")
    said = options.parse_args()
    tally = {"grids": 0, "scenarios": 0}
    drawn = grids() if said.small else grids(model_names(), (*MACHINES, *profile_names()))

    @seed(said.seed)
    @settings(
        max_examples=said.draws,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(drawn)
    def hold(ask: Ask) -> None:
        tally["scenarios"] += check(ask)
        tally["grids"] += 1

    try:
        hold()
    finally:
        print(", ".join(f"{count:,} {what}" for what, count in tally.items()), "alike")


if __name__ == "__main__":
    main()
