"""Simulations to blocks: one in full (measures, op families, steps, memory), or several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from moetrace import units
from moetrace.report.comparison import accuracy_lines, assumption_lines, interval, routing_blocks
from moetrace.report.tables import (
    DASH,
    Block,
    Facts,
    Table,
    clean,
    decimal,
    number,
    of,
    percent,
    seconds,
    share,
    size,
)

_NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "throughput": "throughput, in + out",
    "output_throughput": "output throughput",
    "user_speed": "speed of one sequence",
}


_LOAD = ("batch", "input_len", "output_len")
_FEW_PER_S = 10.0  # below it a rate is shown to two digits


def simulation_report(simulations: Sequence[Facts]) -> list[Block]:
    """Blocks for the `Simulation.summary` dicts of one model and workload."""
    if len(simulations) == 1:
        return [
            *_one(simulations[0]),
            *routing_blocks(simulations, "TPOT"),
            *accuracy_lines(simulations),
            *assumption_lines(simulations),
        ]
    return [
        _side_by_side(simulations),
        *routing_blocks(simulations, "TPOT"),
        *_sensitivity(simulations),
        *_formulas(simulations[0], _priced(simulations)),
        *accuracy_lines(simulations),
        *assumption_lines(simulations),
    ]


def _one(facts: Facts) -> list[Block]:
    label = "" if facts["label"] == "as recorded" else f", {clean(facts['label'])}"
    title = f"{clean(facts['model'])} on {clean(facts['hardware'])}: {_workload(facts)}{label} (no measurement behind it)"
    marks = []
    if facts["memory"]["fits"] is False and (facts["wafers"] or 1) == 1:
        marks.append("IT DOES NOT FIT, see memory")
    if facts["context"]["within"] is False:
        marks.append("LONGER THAN THE MODEL IS MADE FOR, see assumptions")
    title += f": {'; '.join(marks)}" if marks else ""
    rows = tuple(
        (_NAMES[name], clean(m["formula"]), *_value(m))
        for name, m in facts["metrics"].items()
        if name in _NAMES
    )
    blocks: list[Block] = [
        Table(title, ("measure", "definition", "expected", "80 % interval"), rows, left=2),
        _families(facts),
        _steps(facts),
        _memory(facts),
    ]
    routed = facts.get("distinct")
    if routed:
        blocks.append(
            f"distinct experts per MoE layer in decode: {decimal(routed['mean_distinct'])} of {number(routed['experts'])} "
            f"({clean(routed['source'])})"
        )
    return [*blocks, *_economics(facts)]


def _economics(facts: Facts) -> list[Block]:
    """Energy from the profile's power, money from a user's price; nothing where neither is known."""
    e = facts["economics"]
    said: list[Block] = []
    if e["tokens_per_joule"] is not None:
        said.append(
            f"energy: {e['tokens_per_joule']:.3g} output tokens per joule at least, at {number(e['power_w'])} W (the most that "
            f"{number(e['devices'])} device(s) draw)"
        )
    if e["cost_per_million_tokens"] is not None:
        said.append(
            f"cost: {e['cost_per_million_tokens']:.4g} per million output tokens at {e['price_per_hour']:g} per device and hour"
        )
    return said


def _workload(facts: Facts) -> str:
    w = facts["workload"]
    return f"batch {number(w['batch'])}, {number(w['input_len'])} tokens in, {number(w['output_len'])} out"


def _value(measure: Facts) -> tuple[str, str]:
    """(value, interval) with units."""
    if measure["value"] is None:
        return DASH, DASH
    if measure["unit"] == "s":
        return units.seconds(measure["value"], 2), interval(measure["low"], measure["high"])
    return (
        f"{_rate(measure['value'])} {measure['unit']}",
        f"{_rate(measure['low'])} - {_rate(measure['high'])}",
    )


def _rate(per_s: float) -> str:
    """Tokens a second, whole but where they are few."""
    return number(per_s) if per_s >= _FEW_PER_S else f"{per_s:.2g}"


def _families(facts: Facts) -> Table:
    """Time by op family; where a model drafts, the mean step is one round of drafting and verifying."""
    drafts = any(f["drafting_s"] for f in facts["families"])
    rows = tuple(
        (
            clean(f["family"]),
            clean(f["bound"] or DASH),
            seconds(f["decode_s"]),
            percent(f["decode_share"]),
            *((seconds(f["drafting_s"]),) if drafts else ()),
            seconds(f["prefill_s"]),
            percent(f["prefill_share"]),
        )
        for f in facts["families"]
    )
    step = ("mean round", "share", "of it drafting") if drafts else ("mean decode step", "share")
    title = "Time by op family" + (" (a round: tokens are drafted, then verified)" if drafts else "")
    return Table(title, ("family", "decode bound by", *step, _first(facts), "share"), rows, left=2)


def _first(facts: Facts) -> str:
    """What the step beside the decode steps is called."""
    return "mixed step" if facts["steps"][0]["name"] == "mixed" else "prefill"


def _steps(facts: Facts) -> Table:
    rows = tuple(
        (
            clean(s["name"]),
            number(s["context"]),
            seconds(s["step_s"]),
            interval(s["low_s"], s["high_s"]),
        )
        for s in facts["steps"]
    )
    header = ("step", "KV tokens each", "time", "80 % interval")
    return Table("Steps that were priced (the others are interpolated linearly)", header, rows)


def _memory(facts: Facts) -> Table:
    m = facts["memory"]
    parts = (
        ("weights", m["weight_bytes"]),
        ("KV cache at the end", m["kv_bytes"]),
        ("drafting model", m["rank"]["draft"] * facts["gpus"] if "draft" in m["rank"] else None),
        ("framework and buffers", m["framework_bytes"]),
        ("needed", m["needed_bytes"]),
        ("capacity", m["capacity_bytes"]),
    )
    rows = tuple((name, size(n), share(of(n, m["capacity_bytes"]))) for name, n in parts if n is not None)
    if m["largest_batch"] is not None:
        rows = (*rows, ("largest batch that fits", number(m["largest_batch"]), DASH))
    return Table(f"Memory: {_fits(facts)}", ("part", "bytes", "of capacity"), rows)


def _fits(facts: Facts) -> str:
    if (facts["wafers"] or 1) > 1:
        return f"takes {facts['wafers']} wafers"
    word = {True: "it fits", False: "IT DOES NOT FIT", None: "whether it fits is not known"}
    return word[facts["memory"]["fits"]]


def _side_by_side(simulations: Sequence[Facts]) -> Table:
    rows = []
    priced = _priced(simulations)
    for index, facts in enumerate(simulations, 1):
        metrics = facts["metrics"]
        tpot = metrics["tpot"]
        top = max(facts["families"], key=lambda f: f["decode_s"], default=None)
        rows.append(
            (
                str(index),
                clean(facts["hardware"]),
                clean(facts["label"] if facts["label"] != "as recorded" else DASH),
                f"{clean(top['family'])} ({share(top['decode_share'])})" if top else DASH,
                clean(top["bound"] or DASH) if top else DASH,
                _short_fits(facts),
                *(number(facts["workload"][name]) for name in ("batch", "input_len", "output_len")),
                seconds(metrics["ttft"]["value"]),
                seconds(tpot["value"]),
                _value(tpot)[1],
                seconds(metrics["itl"]["value"]),
                number(metrics["throughput"]["value"]),
                number(metrics["output_throughput"]["value"]),
                size(facts["memory"]["needed_bytes"]),
                *_per_row(facts, priced),
            )
        )
    header = (
        "row",
        "machine",
        "scenario",
        "most of decode",
        "bound",
        "fits",
        "batch",
        "in",
        "out",
        "TTFT",
        "TPOT",
        "80 % interval",
        "ITL",
        "in+out tokens/s",
        "out tokens/s",
        "memory",
        "tokens/J",
        *(("cost/M tokens",) if priced else ()),
    )
    title = f"{clean(simulations[0]['model'])} simulated (no measurement behind it)"
    return Table(title, header, tuple(rows), left=6)


def _priced(simulations: Sequence[Facts]) -> bool:
    return any(facts["economics"]["cost_per_million_tokens"] is not None for facts in simulations)


def _per_row(facts: Facts, priced: bool) -> tuple[str, ...]:
    """Output tokens per joule, and the cost of a million of them where any row has a price."""
    e = facts["economics"]
    energy = DASH if e["tokens_per_joule"] is None else f"{e['tokens_per_joule']:.3g}"
    cost = DASH if e["cost_per_million_tokens"] is None else f"{e['cost_per_million_tokens']:.4g}"
    return (energy, cost) if priced else (energy,)


def _short_fits(facts: Facts) -> str:
    """Whether it fits the machine, and what is longer than the model is made for."""
    return _short_room(facts) + (", too long" if facts["context"]["within"] is False else "")


def _short_room(facts: Facts) -> str:
    if (facts["wafers"] or 1) > 1:
        return f"{facts['wafers']} wafers"
    if facts["memory"]["fits"] is False and facts["memory"]["largest_batch"] is not None:
        return f"NO ({number(facts['memory']['largest_batch'])} would)"
    return {True: "yes", False: "NO", None: DASH}[facts["memory"]["fits"]]


def _sensitivity(simulations: Sequence[Facts]) -> list[Block]:
    """What each machine gains from another n_a, all else equal: TPOT over that of the first n_a asked; nothing for one n_a."""
    groups: dict[tuple[str, ...], dict[str, Facts]] = {}
    for facts in simulations:
        said = dict(facts["scenario"])
        n_a = said.pop("n_a", None)
        if n_a is not None:
            key = (
                facts["hardware"],
                _workload(facts),
                " ".join(f"{k}={v}" for k, v in said.items() if k not in _LOAD),
            )
            groups.setdefault(key, {})[n_a] = facts
    asked = list(dict.fromkeys(n_a for group in groups.values() for n_a in group))
    if len(asked) < 2:
        return []
    rows = []
    for (machine, load, rest), group in groups.items():
        base = group[asked[0]]["metrics"]["tpot"]["value"] if asked[0] in group else None
        times = [group[n_a]["metrics"]["tpot"]["value"] if n_a in group else None for n_a in asked[1:]]
        cells = [f"{time / base:.2f}" if time and base else DASH for time in times]
        rows.append((clean(machine), clean(rest or DASH), load, *cells))
    header = ("machine", "scenario", "load", *(f"n_a {clean(n_a)}" for n_a in asked[1:]))
    return [Table(f"TPOT over that of n_a {clean(asked[0])}, all else equal", header, tuple(rows), left=3)]


def _formulas(facts: Facts, priced: bool) -> list[Block]:
    shown = ("ttft", "tpot", "itl", "throughput", "output_throughput")
    cost = "  cost/M tokens = price of a device per hour x devices / output tokens of an hour x 1,000,000"
    return [
        "Definitions:",
        *(f"  {_NAMES[name]} = {clean(facts['metrics'][name]['formula'])}" for name in shown),
        *([cost] if priced else []),
    ]


__all__ = ["simulation_report"]
