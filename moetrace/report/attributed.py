"""The tables of an attribution: phases, devices, steps, groups with what bounds them, what halving saves, and flags."""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.errors import RunError
from moetrace.report.tables import (
    DASH,
    Block,
    Facts,
    Table,
    clean,
    coverage_line,
    device_word,
    identity,
    notes,
    number,
    of,
    percent,
    plural,
    rate,
    seconds,
    share,
    shorten,
    without_empty,
)
from moetrace.run import GENERATING, main_phase

PARTS = ("memory_s", "compute_s", "network_s", "fixed_s", "unexplained_s")
MOST_DEVICES = 32  # rows of the table of devices
_FAMILIES = 4  # columns of op families in the table of devices


def attribute_report(facts: Facts, by: str, table: str, phase: str | None, top: int) -> list[Block]:
    """Blocks for an `Attribution.summary`: steps, a table by `by` (the summary's `table`) of one phase, halving, flags."""
    here, _ = _chosen(facts, phase)
    rows, what = rows_of(facts, table, phase)
    blocks: list[Block] = [
        coverage_line(facts["coverage"], device_word(facts["run"])),
        identity(facts["run"]),
    ]
    blocks += [_phase_table(facts), *_between_line(facts.get("between_steps") or {})]
    if len(facts.get("devices", ())) > 1:
        blocks.append(_device_table(facts["devices"], facts["device_is"]))
        if (more := len(facts["devices"]) - MOST_DEVICES) > 0:
            blocks.append(f"{more} more {facts['device_is']}s: --json has all")
    blocks.append(
        step_table(rows[:top]) if by == "step" else bound_table(what, facts["hardware"], by, rows[:top])
    )
    if len(rows) > top:
        blocks.append(f"{len(rows) - top} more rows: --top {len(rows)} shows all")
    if here["halving"]:
        blocks.append(f"What halving one thing would save of {what} steps' time, everything else unchanged:")
        blocks += [
            f"  {clean(h['what'])}: {seconds(h['saves_s'])} ({percent(h['saves_share'])})"
            for h in here["halving"]
            if h["saves_s"] > 0
        ]
    return [*blocks, *_flag_lines(facts["flags"]), *notes(facts)]


def _chosen(facts: Facts, phase: str | None) -> tuple[Facts, str]:
    """(the facts of the phase asked for, its name): decode where none is asked for and there is any, else all steps."""
    main = main_phase(facts["phases"])
    chosen = phase or (main if main in GENERATING else "all")
    if chosen != "all" and chosen not in facts["phases"]:
        raise RunError(
            f"the run has no {chosen} step: its phases are {', '.join(facts['phases']) or 'not known'}"
        )
    return (facts if chosen == "all" else facts["phases"][chosen]), chosen


def rows_of(facts: Facts, table: str, phase: str | None) -> tuple[Sequence[Facts], str]:
    """(rows of a table of an `Attribution.summary`, in words which steps they sum up). Raises RunError without such a step."""
    here, chosen = _chosen(facts, phase)
    what = "all" if chosen == "all" else f"the {chosen}"
    if table == "steps":
        return [s for s in facts["steps"] if chosen in ("all", s["phase"])], what
    return here[table], what


def _between_line(between: Facts) -> list[Block]:
    """Time that belongs to no step: the engine's own, between the device's last op of one step and its first of the next."""
    if not between.get("total_s"):
        return []
    return [
        f"between steps: median {seconds(between['median_s'])} from the end of one to the start of the next, "
        f"{percent(between['share'])} of the time from the first step to the last; in none of the figures here"
    ]


def _device_table(devices: Sequence[Facts], word: str) -> Table:
    """Each device or rank beside the others: its times, and the shares of the families that take most on all of them."""
    total: dict[str, float] = {}
    for d in devices:
        for f in d["families"]:
            total[f["family"]] = total.get(f["family"], 0.0) + f["share"]
    most = sorted(total, key=lambda name: -total[name])[:_FAMILIES]
    rows = []
    for d in devices[:MOST_DEVICES]:
        shares = {f["family"]: f["share"] for f in d["families"]}
        rows.append(
            (
                str(d["device"]),
                seconds(d["span_s"]),
                seconds(d["busy_s"]),
                percent(d["idle_share"]),
                seconds(d["communication_s"]),
                seconds(d["exposed_communication_s"]),
                *(percent(shares.get(name, 0.0)) for name in most),
            )
        )
    header = (word, "span", "busy", "idle", "network", "exposed network", *map(clean, most))
    title = f"{word.capitalize()} by {word}, all steps together (elsewhere: means over them); families as shares of the span"
    return without_empty(Table(title, header, tuple(rows)), "network", "exposed network")


def _phase_table(facts: Facts) -> Table:
    rows = tuple(
        (
            clean(phase),
            number(p["steps"]),
            seconds(p["span_s"]),
            seconds(p["busy_s"]),
            seconds(p["idle_s"]),
            seconds(p.get("launch_bound_s")),
            seconds(p.get("exposed_communication_s")),
            seconds(p["expected_s"]),
            seconds(p["lower_bound_s"]),
            clean(p.get("critical") or DASH),
        )
        for phase, p in facts["phases"].items()
    )
    header = (
        "phase",
        "steps",
        "span",
        "busy",
        "idle",
        "launch-bound",
        "exposed network",
        "expected",
        "lower bound",
        "critical",
    )
    table = Table(f"Steps held against {clean(facts['hardware'])} (medians)", header, rows)
    return without_empty(table, "launch-bound", "exposed network")


def step_table(steps: Sequence[Facts]) -> Table:
    rows = tuple(
        (
            number(s["index"]),
            clean(s.get("phase") or DASH),
            seconds(s["span_s"]),
            seconds(s["busy_s"]),
            percent(s["idle_share"]),
            seconds(s.get("communication_s")),
            seconds(s.get("exposed_communication_s")),
            seconds(s.get("launch_bound_s")),
            seconds(s.get("expected_s")),
            clean(s.get("critical") or DASH),
        )
        for s in steps
    )
    header = (
        "step",
        "phase",
        "span",
        "busy",
        "idle",
        "network",
        "exposed network",
        "launch-bound",
        "expected",
        "critical",
    )
    return without_empty(
        Table("Step by step", header, rows, left=2), "network", "launch-bound", "exposed network"
    )


def bound_table(what: str, hardware: str, by: str, groups: Sequence[Facts]) -> Table:
    """Rows with their time dealt out to what bounds it."""
    rows = tuple(
        (
            shorten(str(DASH if g[by] is None else g[by])),
            number(g["count"]),
            seconds(g["busy_s"]),
            percent(g["share"]),
            *(share(of(g[part], g["busy_s"])) for part in PARTS),
            rate(g["bytes_per_s"]),
            percent(g["halving_saves_share"]),
        )
        for g in groups
    )
    header = (
        by,
        "ops",
        "time",
        "share",
        "memory",
        "compute",
        "network",
        "fixed",
        "not explained",
        "achieved",
        "saves if halved",
    )
    title = (
        f"Time of {what} steps by {by}: share of the steps, and what bounds it on {clean(hardware)} "
        "(of the row's time)"
    )
    return without_empty(Table(title, header, rows), "network")


def _flag_lines(flags: Facts) -> list[Block]:
    blocks: list[Block] = []
    if flags.get("cache-resident"):
        blocks.append(
            f"{_beat(flags['cache-resident'])} with what fits the last-level cache (cache-resident)"
        )
    if flags.get("suspect"):
        blocks.append(f"{_beat(flags['suspect'])} and should not be able to (suspect):")
        blocks += [f"  {_suspect(op)}" for op in list(flags.get("suspect_ops", ()))[:5]]
    return blocks


def _beat(count: int) -> str:
    return "1 op beats its lower bound" if count == 1 else f"{plural(count, 'op')} beat their lower bound"


def _suspect(op: Facts) -> str:
    measured, bound = seconds(op["measured_s"]), seconds(op["lower_bound_s"])
    return f"{clean(op['op'])}: {number(op['count'])} x, median {measured} measured, lower bound {bound}"
