"""Line charts as SVG text: axes with units, a line per series with its band, labels at the lines' ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log2, log10
from typing import TYPE_CHECKING, Any

from moetrace.report.facts.answers import change
from moetrace.report.tables import decimal, seconds

if TYPE_CHECKING:
    from markupsafe import Markup

Point = tuple[float, float, float, float, str]
_NORMAL_80 = 1.2816  # standard deviations to either side that hold 80 % of a normal spread
_WIDTH, _HEIGHT = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 108, 14, 46


@dataclass(frozen=True, slots=True)
class Series:
    """A line: `points` are (x, y, low, high, what to say of it); `mark` is ``line``, ``dash`` or ``dots``."""

    name: str
    css: str
    points: tuple[Point, ...]
    mark: str = "line"


def n_a_chart(what: Mapping[str, Any]) -> Markup:
    """Step time over that at the native n_a, by n_a, one line per machine and placement, with its interval."""
    series, keys = [], dict.fromkeys((r["hardware"], r["placement"]) for r in what["n_a"])
    for place, (hardware, placement) in enumerate(keys):
        rows = [r for r in what["n_a"] if (r["hardware"], r["placement"]) == (hardware, placement)]
        rows.sort(key=lambda r: r["n_a"])
        points = tuple(
            (r["n_a"], r["ratio"], r["ratio_low"], r["ratio_high"],
             f"{hardware}{f' ({placement})' if placement else ''}\nn_a {r['n_a']}: {seconds(r['step_s'])} a step, "
             f"{change(r['ratio'])} ({change(r['ratio_low'])} to {change(r['ratio_high'])})\n"
             f"distinct experts {decimal(r['distinct'])}")
            for r in rows
        )  # fmt: skip
        name = hardware + (f" {placement}" if placement else "")
        series.append(Series(name, f"s{place % 6}", points, "dash" if placement == "own" else "line"))
    ticks = sorted({p[0] for s in series for p in s.points})
    most = max((p[3] for s in series for p in s.points), default=1.0)
    top = most if most > 1.02 else 1.0  # a band that ends a hair above 1 needs no axis up to the next tick
    return chart(
        series,
        "n_a, active experts per token",
        f"step time over that at n_a {what['native_n_a']}",
        ticks,
        y_from=0.0,
        y_to=top,
    )


def distinct_chart(routing: Mapping[str, Any]) -> Markup:
    """Distinct experts by tokens of a step: uniform with its spread, recorded popularity, and what was counted."""
    curve, most = routing["curve"], float(routing["experts"])
    top = curve[-1]["tokens"]

    def uniform(c: Mapping[str, Any]) -> Point:
        half = _NORMAL_80 * c["spread"]
        said = f"uniform routing, {c['tokens']} tokens\n{c['uniform']:.1f} distinct experts, 80 % within {half:.1f}"
        return c["tokens"], c["uniform"], max(0.0, c["uniform"] - half), min(most, c["uniform"] + half), said

    def recorded(c: Mapping[str, Any]) -> Point:
        y = c["recorded"]
        said = f"recorded popularity, {c['tokens']} tokens\n{y:.1f} distinct experts (mean over layers)"
        return c["tokens"], y, y, y, said

    def counted(m: Mapping[str, Any]) -> Point:
        span = f"{m['low']} to {m['high']} over {m['cells']} steps and layers"
        said = f"counted in {m['phase']}, {m['tokens']} tokens\n{m['mean']:.1f} distinct experts, {span}"
        return min(m["tokens"], top), m["mean"], m["low"], m["high"], said

    series = [
        Series("uniform", "s0", tuple(map(uniform, curve)), "dash"),
        Series("recorded", "s1", tuple(recorded(c) for c in curve if c["recorded"] is not None)),
        Series("counted", "s2", tuple(map(counted, routing["measured"])), "dots"),
    ]
    return chart(
        series,
        "tokens in the step (more: at the right edge)",
        f"distinct experts of {routing['experts']}",
        [c["tokens"] for c in curve],
        y_from=0.0,
        y_to=most,
        log=True,
    )


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    *,
    y_from: float,
    y_to: float | None = None,
    log: bool = False,
) -> Markup:
    """The SVG of some series on linear y and linear or logarithmic x."""
    from markupsafe import Markup, escape

    drawn = [s for s in series if s.points]
    high = y_to or max((p[3] for s in drawn for p in s.points), default=1.0)
    step = _tick(high - y_from)
    top = step * -(-(high - y_from) // step) + y_from
    low_x, high_x = min(x_ticks, default=0), max(x_ticks, default=1)

    def flat(x: float) -> float:
        return log2(x) if log else x

    def px(x: float) -> float:
        wide = flat(high_x) - flat(low_x) or 1.0
        return _LEFT + (flat(x) - flat(low_x)) / wide * (_WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_from) / (top - y_from) * (_HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">'
    ]
    count = round((top - y_from) / step)
    for i in range(count + 1):
        y = y_from + i * step
        out.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        )
        out.append(f'<text class="tick" x="{_LEFT - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    out += [
        f'<text class="tick" x="{px(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        for x in x_ticks
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    out.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    up = (_TOP + _HEIGHT - _BOTTOM) / 2
    out.append(
        f'<text class="axis" transform="translate(14 {up}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    out += [part for s in drawn for part in _line(s, px, py)]
    out += _labels(drawn, py)
    return Markup("".join(out) + "</svg>")  # noqa: S704 texts were escaped above


def _line(s: Series, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    from markupsafe import escape

    out = []
    if s.mark != "dots":
        if any(p[2] < p[3] for p in s.points):
            there = [f"{px(x):.1f},{py(high):.1f}" for x, _, _, high, _ in s.points]
            back = [f"{px(x):.1f},{py(low):.1f}" for x, _, low, _, _ in reversed(s.points)]
            out.append(f'<polygon class="band {s.css}" points="{" ".join(there + back)}"/>')
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y, *_ in s.points)
        out.append(f'<polyline class="line {s.mark} {s.css}" points="{path}"/>')
    for x, y, low, high, said in s.points:
        if s.mark == "dots" and low < high:
            out.append(
                f'<line class="whisker {s.css}" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" y2="{py(high):.1f}"/>'
            )
        at, size = f'cx="{px(x):.1f}" cy="{py(y):.1f}"', 5 if s.mark == "dots" else 3.5
        out.append(f'<circle class="dot {s.css}" {at} r="{size}" data-tip="{escape(said)}"/>')
    return out


def _labels(series: Sequence[Series], py: Callable[[float], float]) -> list[str]:
    """The series' names at the right edge, pushed apart so that none covers another, each with its mark before it."""
    from markupsafe import escape

    at = sorted(((py(s.points[-1][1]), s) for s in series), key=lambda item: item[0])
    out, free = [], float(_TOP + 6)
    room = _HEIGHT - _BOTTOM - 16 * (len(at) - 1)
    for y, s in at:
        y = max(min(y, room), free)
        free, room = y + 16, room + 16
        x = _WIDTH - _RIGHT + 14
        if s.mark == "dots":
            out.append(f'<circle class="dot {s.css}" cx="{x + 8}" cy="{y:.1f}" r="5"/>')
        else:
            out.append(
                f'<line class="line {s.mark} {s.css}" x1="{x}" x2="{x + 16}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        out.append(f'<text class="name" x="{x + 21}" y="{y + 4:.1f}">{escape(s.name)}</text>')
    return out


def _tick(span: float) -> float:
    """A round step that cuts a span in four to eight."""
    raw = max(span, 1e-12) / 8
    base = 10.0 ** floor(log10(raw))
    return next((base * m for m in (1, 2, 2.5, 5) if base * m >= raw), base * 10)
