"""Facts to the page: templates filled with everything escaped, and bulk data (steps, distinct ops) packed for the scripts.

Text from outside is cut and cleaned before it enters the page. Scripts run by the hash of their own text alone (Content-
Security-Policy), so that nothing in a trace can run, and no address can be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from moetrace.attribute import Attribution
from moetrace.report import tables
from moetrace.report.facts.answers import change
from moetrace.report.facts.distinct_ops import distinct_ops
from moetrace.report.facts.layers import layer_families
from moetrace.report.html import svg
from moetrace.run import Run

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_POINTS = 100_000  # distinct ops drawn, those with most time first
MAX_STEPS = 50_000  # steps drawn, the first ones
TEXT = 300  # characters of a name that the page keeps
SOURCE = 4000  # of a machine's source, which the profile's author wrote
FAMILIES = (
    "experts", "attention", "dense_gemm", "routing", "shared_expert", "norm", "communication", "elementwise", "sampling",
    "embedding", "copy",
)  # fmt: skip
_UNIT = re.compile(r"(?<=\d) (?=[%xµmnkMGTP]?(?:%|s|B|x|FLOP|B/s)?(?:[ ,;.)]|$))")
_SCRIPTS = ("core.js", "tables.js", "timeline.js", "roofline.js", "heat.js", "main.js")
_STEP_COLUMNS = (
    "span_s", "between_steps_s", "memory_s", "compute_s", "network_s", "fixed_s", "unexplained_s", "launch_bound_s", "idle_s",
    "expected_s", "lower_bound_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """One run in the page: `facts` without steps, `layers` (families by layer and phase), and the packed `bulk`."""

    facts: Mapping[str, Any]
    layers: Mapping[str, Any]
    ops: Sequence[Mapping[str, Any]]
    points: Mapping[str, int]
    bulk: str

    def __repr__(self) -> str:
        return f"<Report of {self.facts['attribution']['run']['source']}: .facts; write_report puts it into a file>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own, which reaches nothing outside of it."""
        page = escape(render([self]), quote=True)
        return f'<iframe sandbox="allow-scripts" style="width:100%;height:820px;border:0" srcdoc="{page}"></iframe>'

    @classmethod
    def of(cls, run: Run, facts: Mapping[str, Any], held: Attribution) -> Report:
        found = distinct_ops(run, held)
        known = found["columns"]["bytes"]
        counts = {
            "distinct": len(known),
            "drawn": min(MAX_POINTS, len(known)),
            "unknown": int(np.isnan(known).sum()),
        }
        attribution = {k: v for k, v in facts["attribution"].items() if k != "steps"}
        small = trimmed({**facts, "attribution": attribution})
        steps = facts["attribution"]["steps"]
        small["machine"]["sources"] = {
            k: tables.shorten(v, SOURCE) for k, v in facts["machine"]["sources"].items()
        }
        small["step_stats"] = step_stats(steps)
        bulk = {
            "steps": _step_columns(steps[:MAX_STEPS]),
            "points": _points(found),
            "machine": small["machine"],
            "heat": small["routing"]["load"] if small["routing"] else None,
            "heat_layers": [r["layer"] for r in small["routing"]["layers"]] if small["routing"] else [],
        }
        return cls(small, layer_families(run, held), _top_ops(found), counts, packed(bulk))


def trimmed(value: Any) -> Any:
    """The value with every text cleaned and cut, so that no name can break a line or fill the page."""
    if isinstance(value, str):
        return tables.shorten(value, TEXT)
    if isinstance(value, Mapping):
        return {tables.shorten(str(k), TEXT): trimmed(v) for k, v in value.items()}
    return [trimmed(v) for v in value] if isinstance(value, (list, tuple)) else value


def packed(value: Any) -> str:
    """JSON, deflated, as base64: what a script reads back."""
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return base64.b64encode(zlib.compress(text, 9)).decode("ascii")


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens another."""
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def step_stats(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By phase: median, 10th and 90th percentile of the span, and the steps beyond 1.5 times the middle half's width."""
    out: dict[str, Any] = {}
    for phase in dict.fromkeys(s["phase"] or "unknown" for s in steps):
        mine = [s for s in steps if (s["phase"] or "unknown") == phase]
        spans = np.array([s["span_s"] for s in mine])
        q1, q3 = np.percentile(spans, [25, 75])
        low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
        odd = [s for s in mine if len(mine) > 4 and not low <= s["span_s"] <= high]
        odd.sort(key=lambda s: -abs(s["span_s"] - float(np.median(spans))))
        out[phase] = {
            "steps": len(mine),
            "median_s": float(np.median(spans)),
            "p10_s": float(np.percentile(spans, 10)),
            "p90_s": float(np.percentile(spans, 90)),
            "low_s": float(low),
            "high_s": float(high),
            "outliers": len(odd),
            "worst": [
                {"index": s["index"], "span_s": s["span_s"], "critical": s["critical"]} for s in odd[:5]
            ],
        }
    return out


def _short(values: Any) -> Any:
    """Floats at seven digits: the three or four that a screen shows are then those of the table, which rounds once."""
    x = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (6 - np.floor(np.log10(np.abs(x))))
        return np.where(np.isfinite(x) & (x != 0), np.round(x * scale) / scale, x)


def _step_columns(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    phases = list(dict.fromkeys(s["phase"] or "unknown" for s in steps))
    out: dict[str, Any] = {
        "phases": phases,
        "phase": [phases.index(s["phase"] or "unknown") for s in steps],
        "index": [s["index"] for s in steps],
        "tokens": [s["tokens"] for s in steps],
    }
    for name in _STEP_COLUMNS:
        out[name] = _short([np.nan if s[name] is None else s[name] for s in steps])
    return out


def _points(found: Mapping[str, Any]) -> dict[str, Any]:
    columns = {
        name: (_short(v) if np.asarray(v).dtype.kind == "f" else np.ascontiguousarray(v))[:MAX_POINTS]
        for name, v in found["columns"].items()
    }
    return {
        **columns,
        "texts": found["texts"],
        "classes": [family_class(f) for f in found["texts"]["family"]],
    }


def _top_ops(found: Mapping[str, Any], top: int = 60) -> list[dict[str, Any]]:
    """The distinct ops with most time as rows for the table."""
    columns, texts = found["columns"], found["texts"]
    rows = []
    for i in range(min(top, len(columns["count"]))):
        row: dict[str, Any] = {}
        for name, values in columns.items():
            value = values[i].item()
            if name in texts:
                row[name] = texts[name][value] if value >= 0 else None
            else:
                row[name] = None if value != value else value
        rows.append(row)
    return rows


def family_class(family: str | None) -> str:
    """The CSS class of a family's colour."""
    return f"f-{family}" if family in FAMILIES else "f-other"


def micro(text: str) -> str:
    """Units as a page can write them: us as µs."""
    return text[:-2] + "µs" if text.endswith(" us") else text


def tight(text: str) -> str:
    """The text with every number kept on the line of its unit."""
    return _UNIT.sub("\u00a0", text.replace(" us", " µs"))


def _asset(name: str) -> str:
    return resources.files("moetrace.report.html").joinpath("assets", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates with what they may call; everything that they print is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("moetrace.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        seconds=lambda v: micro(tables.seconds(v)),
        tight=tight,
        percent=tables.percent,
        share=tables.share,
        rate=tables.rate,
        size=tables.size,
        flops=tables.flops,
        number=tables.number,
        decimal=tables.decimal,
        times=tables.times,
        change=change,
        family_class=family_class,
    )
    made.globals.update(of=tables.of, n_a_chart=svg.n_a_chart, distinct_chart=svg.distinct_chart)
    return made


def assets() -> dict[str, str]:
    """Style and script of a page, and the script's hash, by which alone it may run."""
    from markupsafe import Markup

    script = "\n".join(_asset(name) for name in _SCRIPTS)
    return {
        "style": Markup(_asset("style.css")),  # noqa: S704 the project's own file
        "script": Markup(script),  # noqa: S704 the project's own files
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def render(reports: Sequence[Report]) -> str:
    """The page's text."""
    from markupsafe import Markup

    run = reports[0].facts["attribution"]["run"]
    return environment().get_template("page.html.j2").render(
        reports=reports,
        title=f"{run['model'] or 'unknown model'} on {run['hardware'] or run['device'] or 'unknown device'}",
        **assets(),
        embedded=[Markup(embedded(r.facts)) for r in reports],  # noqa: S704 made safe by `embedded`
    )  # fmt: skip


__all__ = ["Report", "embedded", "packed", "render", "trimmed"]
