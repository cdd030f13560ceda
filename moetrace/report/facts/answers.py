"""The questions a reader has, answered from the facts: the same words on the page, in the terminal and in JSON.

An answer has a `question`, a `short` answer, `lines` (label, value, note), `sure` (how sure that is) and the `section` of the
page that holds its evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moetrace import units
from moetrace.report.facts.saves import saves, shares, verdict, within
from moetrace.report.tables import clean, number, of, percent, plural, seconds, share, shorten, size
from moetrace.run import TPOT, step_is_token

Facts = Mapping[str, Any]
Line = tuple[str, str, str]
_TOO_DARK = 0.5  # of the time without bytes: above it, what binds the whole cannot be told
_PARTS = ("memory", "compute", "network", "fixed", "unexplained", "idle")
_WORDS = {"unexplained": "not explained"}


def answers(facts: Facts) -> list[dict[str, Any]]:
    """The answers, in the order in which a reader asks."""
    makers = (_time, _experts, _skew, _fewer, _helps, _covered)
    return [made for maker in makers if (made := maker(facts)) is not None]


def _answer(
    key: str, section: str, question: str, short: str, lines: Sequence[Line], sure: str
) -> dict[str, Any]:
    named = [{"label": label, "value": value, "note": note} for label, value, note in lines]
    return {
        "id": key,
        "section": section,
        "question": question,
        "short": short,
        "lines": named,
        "sure": sure,
    }


def _phase(facts: Facts) -> tuple[str, Facts]:
    name = str(facts["main_phase"])
    return name, facts["attribution"]["phases"].get(name, {})


def _a_step(name: str) -> str:
    return "a step" if name in ("unknown", "all") else f"a {name} step"


def _time(facts: Facts) -> dict[str, Any] | None:
    name, phase = _phase(facts)
    if not phase:
        return None
    families = phase["families"][:3]
    fall = facts["waterfall"][name]
    mean = fall["span_s"] or 1.0
    means = {d["name"]: d["seconds"] for d in fall["drops"]}
    spent = {
        **{p: means[p] + fall["floor"][p] for p in ("memory", "compute", "network")},
        **{p: means[p] for p in ("fixed", "unexplained")},
        "idle": means["idle"] + means["launch"] + means["imbalance"],
    }
    parts = sorted(_PARTS, key=lambda p: -spent[p])
    lines = [
        ("ops", ", ".join(f"{clean(f['family'])} {percent(f['share'])}" for f in families), "of the steps"),
        (
            "bound by",
            ", ".join(
                f"{_WORDS.get(p, p)} {share(spent[p] / mean)}" for p in parts if spent[p] / mean >= 0.005
            ),
            f"held against {facts['attribution']['hardware']}",
        ),
        (
            "lower bound",
            seconds(phase["lower_bound_s"] or None),
            "bytes certainly touched and FLOPs at datasheet peaks",
        ),
        *_tpot(facts["attribution"]["run"], name),
    ]
    spread = sorted(s["span_s"] for s in facts["attribution"]["steps"] if (s["phase"] or "unknown") == name)
    sure = (
        f"median of {len(spread):,} steps, {seconds(spread[0])} to {seconds(spread[-1])}"
        if spread[1:]
        else "one step"
    )
    return _answer(
        "time", "breakdown", f"Where does {_a_step(name)} go?", seconds(phase["span_s"]), lines,
        f"{facts['attribution']['run']['kind']}: {sure}",
    )  # fmt: skip


def _tpot(run: Facts, phase: str) -> list[Line]:
    """What a token costs in a simulation whose decode step is not that."""
    if phase != "decode" or step_is_token(run):
        return []
    if (found := run.get(TPOT)) is None:
        return [("TPOT", "not known", "it has prompts, the host or drafting in it: simulate this scenario")]
    ends = f"{seconds(found['low_s'])} to {seconds(found['high_s'])}"
    return [
        ("TPOT", seconds(found["expected_s"]), f"{ends}, as simulated, with prompts, the host or drafting")
    ]


def _experts(facts: Facts) -> dict[str, Any] | None:
    name, phase = _phase(facts)
    row = next((f for f in phase.get("families", ()) if f["family"] == "experts"), None)
    if row is None:
        return None
    weights = facts["weights"][name]
    span = of(row["busy_s"], row["share"])
    lines = [
        ("time", seconds(row["busy_s"] / phase["steps"]), f"of {_a_step(name)} in expert GEMMs"),
        ("reading weights", percent(of(row["memory_s"], span)), "of the step, as the law splits it"),
        ("bytes", percent(weights["share"]), f"of all bytes moved: {size(weights['expert_bytes'])} of expert weights"),
    ]  # fmt: skip
    if not weights["expert_bytes"]:
        lines[1:] = [
            ("weights", "not known", "the experts' shapes are not in the trace: parse it with --model")
        ]
    unexplained = of(row["unexplained_s"], span)
    kind = facts["attribution"]["run"]["kind"]
    sure = f"time as {kind}; {percent(unexplained)} of the step is expert time that the law does not explain"
    what = "decode" if name == "decode" else "the step"
    short = percent(row["share"])
    if weights["expert_bytes"]:
        short += f" of the time, {percent(weights['share'])} of the bytes"
    return _answer("experts", "breakdown", f"What share of {what} is expert weights?", short, lines, sure)


def _skew(facts: Facts) -> dict[str, Any] | None:
    routing, question = facts["routing"], "Which layer has the worst load skew?"
    if routing is None:
        if not _has_experts(facts):
            return None
        how = (
            "a prediction at another depth, batch or n_a keeps no routing: ask the recording that it was made from"
            if facts["attribution"]["run"]["kind"] == "predicted"
            else "routing was not recorded; 'moetrace record' counts it, and a RUN keeps it as routing.parquet"
        )
        return _answer("skew", "routing", question, "not recorded", [], how)
    rows = sorted(routing["layers"], key=lambda r: -r["skew"])
    worst = rows[0]
    lines = [
        (f"layer {r['layer']}", f"{r['skew']:.2f} x", _steps_of(r))
        for r in rows[:3]
    ]  # fmt: skip
    chance = (
        f"uniform routing of {number(worst['tokens'])} tokens would show {worst['chance']:.2f} x by chance"
    )
    if worst["skew"] <= worst["chance"]:
        chance += ", so no layer is skewed beyond it"
    sure = f"busiest expert's tokens over the mean expert's, counted in {plural(routing['steps'], 'step')}; {chance}"
    short = f"layer {worst['layer']}: {worst['skew']:.2f} x"
    return _answer("skew", "routing", question, short, lines, sure)


def _steps_of(layer: Facts) -> str:
    return f"{layer['skew_low']:.2f} to {layer['skew_high']:.2f} over the steps; expert {layer['busiest']} has most"


def _has_experts(facts: Facts) -> bool:
    """Whether the model has experts, as far as it or the trace's kernels tell."""
    return bool(facts["what_if"]["native_n_a"]) or any(
        f["family"] == "experts" for f in _phase(facts)[1].get("families", ())
    )


def _fewer(facts: Facts) -> dict[str, Any] | None:
    what = facts["what_if"]
    native, fewer = what["native_n_a"], what["fewer_n_a"]
    rows = [r for r in what["n_a"] if r["n_a"] == fewer]
    if native is None or not rows:
        return _fewer_unknown(facts, native)
    base = {(r["hardware"], r["placement"]): r for r in what["n_a"] if r["n_a"] == native}
    lines = []
    for r in rows:
        where = r["hardware"] + (f" ({r['placement']})" if r["placement"] else "")
        was = base[r["hardware"], r["placement"]]["step_s"]
        note = (
            f"{change(r['ratio_low']).removesuffix(' %')} to {change(r['ratio_high'])}; "
            f"{units.seconds(was, 2)} to {units.seconds(r['step_s'], 2)}"
            f"{', no measurement behind it' if r['anchored'] == 'unanchored' else ''}"
        )
        lines.append((where, change(r["ratio"]), note))
    lines.append(("accuracy", *_accuracy(what, native, fewer)))
    depth = f", real depth of {what['depth']} layers" if what["depth"] else ""
    at = f"at batch {number(what['batch'])}" if what["batch"] else "at this batch"
    sure = f"{at}{depth}; ranges: what a family's law gets wrong at both n_a and at one alone, 80 %, {_rerouted(rows, facts)}"
    where = ", ".join(_by_machine(rows))
    return _answer("n_a", "n_a", f"What does n_a {native} to {fewer} buy {at}?", where, lines, sure)


def _fewer_unknown(facts: Facts, native: int | None) -> dict[str, Any] | None:
    """Why nothing is said of fewer experts; None for a model that has one a token, or none."""
    if native == 1 or not _has_experts(facts):
        return None
    how = (
        "no machine that it could be predicted on"
        if native
        else "the model is not known: name it with --model"
    )
    return _answer("n_a", "n_a", "What would fewer active experts (n_a) buy?", "not known", [], how)


def _rerouted(rows: Sequence[Facts], facts: Facts) -> str:
    """What the ranges say of the experts that tokens choose at the lower n_a."""
    low = min((r["rerouted_low"] for r in rows if r["rerouted_low"] is not None), default=None)
    high = max((r["rerouted_high"] for r in rows if r["rerouted_high"] is not None), default=None)
    if low is None or high is None:
        _, stated, routing = str(facts["attribution"]["run"]["routing"]).partition("as stated, routing=")
        how = f"routing={clean(routing)}" if stated else "the uniform formula"
        return f"and what tokens choose changes as {how} has it: no routing is there to say more"
    return (
        "and tokens keep their first choices as recorded, or choose anew by each expert's popularity "
        f"({change(low).removesuffix(' %')} to {change(high)} of the step)"
    )


def _by_machine(rows: Sequence[Facts]) -> list[str]:
    """One text per machine; a wafer's placements as a range."""
    out: dict[str, list[float]] = {}
    for r in rows:
        out.setdefault(r["hardware"], []).append(r["ratio"])
    return [
        f"{name} {change(min(v)).removesuffix(' %')} to {change(max(v))}"
        if change(min(v)) != change(max(v))
        else f"{name} {change(v[0])}"
        for name, v in out.items()
    ]


def change(ratio: float) -> str:
    """``-4.2 %`` for a step that takes 0.958 of the time."""
    text = f"{100 * (ratio - 1):+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text


def _accuracy(what: Facts, native: int, fewer: int) -> tuple[str, str]:
    points = {p["n_a"]: p for p in what["accuracy"]}
    if native in points and fewer in points:
        lost = points[fewer]["percent"] - points[native]["percent"]
        return (
            f"{lost:+.1f} points",
            f"{points[native]['percent']} to {points[fewer]['percent']} %; {points[fewer]['source']}",
        )
    return "not known", "no published accuracy of this model at this n_a"


def _helps(facts: Facts) -> dict[str, Any] | None:
    held, dark = facts["attribution"]["hardware"], 1 - facts["attribution"]["coverage"]["bytes_share"]
    question = "More HBM bandwidth or fewer launches?"
    if dark > _TOO_DARK:
        said = (
            f"the bytes and FLOPs of {percent(dark)} of the time are not known: parse the trace with --model"
        )
        return _answer("helps", "machines", question, "not known", [], said)
    lines: list[Line] = []
    verdicts: dict[str, list[str]] = {}
    for where, note, memory, launches in saves(facts, _phase(facts)[1].get("halving", ())):
        better = verdict(memory, launches)
        verdicts.setdefault(better, []).append(where)
        said = f"2 x bandwidth saves {within(memory)}, half the launch cost {within(launches)}"
        lines.append((where + note, better, said))
    if not lines:
        return None
    best = next((h for h in _phase(facts)[1].get("halving", ()) if h["saves_share"] > 0), None)
    if best is not None:
        lines.append(
            ("most of all", clean(best["what"]), f"on {held}: half its time saves {within(shares(best))}")
        )
    sure = (
        "of the step's time, everything else unchanged; in brackets: where the law is at the ends of its 80 % interval; "
        "launch cost: fixed cost per op and waits for the host"
    )
    short = "; ".join(f"{v} ({', '.join(w)})" for v, w in verdicts.items())
    return _answer("helps", "machines", question, short, lines, sure)


def _beyond(facts: Facts) -> str:
    held = facts["attribution"]
    dark = "work not known, or " if held["coverage"]["bytes_share"] < 0.995 else ""
    return f"{dark}busy longer than the law of {held['hardware']} expects"


def _covered(facts: Facts) -> dict[str, Any]:
    held = facts["attribution"]
    coverage, run = held["coverage"], held["run"]
    name, _ = _phase(facts)
    unnamed = ", ".join(shorten(u["kernel"], 40) for u in coverage["unnamed"][:3])
    fall = facts["waterfall"].get(name)
    over = (
        next((d["seconds"] for d in fall["drops"] if d["name"] == "unexplained"), 0.0) / (fall["span_s"] or 1)
        if fall
        else None
    )
    lines: list[Line] = [
        ("not named", percent(1 - coverage["named_share"]), unnamed or "every kernel was recognised"),
        ("without bytes", percent(1 - coverage["bytes_share"]), "of the time: its work is not known"),
        ("without a layer", percent(1 - coverage["layer_share"]), "embedding, head, sampling, or not placed"),
        ("not explained", percent(over), f"of {_a_step(name)}: {_beyond(facts)}"),
        ("between steps", percent(held["between_steps"]["share"]), "of the recording lies in no step, in none of the figures"),
    ]  # fmt: skip
    if run.get("native_layers") and held["layers_found"] < run["native_layers"]:
        what = (
            f"of the model's {run['native_layers']} were recorded; predictions repeat them to the real depth"
        )
        lines.append(("layers", str(held["layers_found"]), what))
    if run.get("outside_steps"):
        lines.append(("outside steps", number(run["outside_steps"]), "ops in no step"))
    if run.get("damaged"):
        lines.append(("damaged", number(run["damaged"]), "events that could not be read"))
    if facts["routing"] is None and facts["what_if"]["native_n_a"]:
        lines.append(("routing", "not recorded", f"distinct experts: {clean(str(run['routing']))}"))
    failed = [m for m in facts["what_if"]["machines"] if "error" in m]
    lines += [(m["hardware"], "not predicted", shorten(m["error"], 160)) for m in failed]
    short = f"{percent(1 - coverage['named_share'])} unnamed, {share(over)} not explained"
    found = plural(int(held["layers_found"]), "layer")
    sure = f"shares of the device time of {plural(len(held['steps']), 'step')}; {found} found"
    return _answer("covered", "assumptions", "What was not covered?", short, lines, sure)
