"""The figures of a RUN computed anew from its Parquet files with pandas, and the texts in which every output must show them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd

from moetrace import units

BY = {"family": "families", "layer": "layers", "kind": "kinds", "kernel": "kernels"}
PARTS = ("memory", "compute", "network", "fixed", "unexplained")


class Figures:
    """What attribution.parquet, ops.parquet, routing.parquet and run.json of a RUN of one device say, by phase."""

    def __init__(self, folder: Path) -> None:
        frame = pd.read_parquet(folder / "attribution.parquet")
        ops = pd.read_parquet(folder / "ops.parquet")
        frame["bytes"] = ops.weight_bytes + ops.kv_bytes + ops.act_bytes  # na where one is not known
        frame["weights"] = ops.weight_bytes
        self.rows = frame[frame.step.notna()]
        self.counts = pd.read_parquet(folder / "routing.parquet")
        self.steps = pd.DataFrame(json.loads((folder / "run.json").read_text())["steps"])
        self.steps["span_s"] = (self.steps.end_ns - self.steps.start_ns) / 1e9

    def phase(self, phase: str) -> pd.DataFrame:
        return self.rows[self.rows.phase == phase]

    def spans(self, phase: str) -> pd.Series:
        return self.steps[self.steps.phase == phase].span_s

    def groups(self, phase: str, by: str) -> dict[object, dict[str, float | None]]:
        """Each group of the steps of a phase: count, seconds by what bounds them, lower bound, bytes and their rate."""
        here, span = self.phase(phase), self.spans(phase).sum()
        out = {}
        for name, rows in here[here[by].notna()].groupby(by, observed=True):
            busy = rows.exposed_ns / 1e9
            parts = rows[[f"{p}_s" for p in PARTS[:-1]]].fillna(0.0)
            explained = (
                np.minimum(rows.expected_s.fillna(0.0), rows.dur_ns / 1e9) * rows.exposed_ns / rows.dur_ns
            )
            dealt = (
                parts.div(parts.sum(axis=1).replace(0.0, np.nan), axis=0)
                .fillna(0.0)
                .mul(explained, axis=0)
                .sum()
            )
            known = rows[rows.bytes.notna()]
            seconds = known.dur_ns.sum() / 1e9
            out[int(name) if by == "layer" else name] = {
                "count": len(rows),
                "busy_s": busy.sum(),
                "share": busy.sum() / span,
                "expected_s": rows.expected_s.sum(),
                "lower_bound_s": rows.lower_bound_s.sum(),
                **dealt.to_dict(),
                "unexplained_s": (busy - explained).sum(),
                "bytes": known.bytes.sum() if seconds else None,
                "bytes_per_s": known.bytes.sum() / seconds if seconds else None,
                "halving_saves_s": busy.sum() / 2,
                "halving_saves_share": busy.sum() / 2 / span,
            }
        return out

    def terminal(self, phase: str, by: str) -> dict[str, dict[str, str]]:
        """The cells of the terminal's table, by row and heading."""
        out = {}
        for name, g in self.groups(phase, by).items():
            out[str(name)] = {
                "ops": f"{g['count']:,}",
                "time": units.seconds(g["busy_s"]),
                "share": units.percent(g["share"]),
                **{_heading(p): units.percent(g[f"{p}_s"] / g["busy_s"], 0) for p in PARTS},
                "achieved": "-" if g["bytes_per_s"] is None else units.count(g["bytes_per_s"], "B/s"),
                "saves if halved": units.percent(g["halving_saves_share"]),
            }
        return out

    def page(self, phase: str, by: str) -> dict[str, list[str]]:
        """The cells of the page's table: after the name, those that hold text."""
        steps = len(self.spans(phase))
        out = {}
        for name, g in self.groups(phase, by).items():
            rate = "-" if g["bytes_per_s"] is None else units.count(g["bytes_per_s"], "B/s")
            time, share = micro(units.seconds(g["busy_s"] / steps)), units.percent(g["share"])
            last = units.percent(g["halving_saves_share"])
            if by == "layer":
                out[str(name)] = [time, share, "", rate, micro(units.seconds(g["lower_bound_s"] / steps))]
            else:
                out[str(name)] = [f"{g['count']:,}", time, share, "", rate, last]
        return out

    def headlines(self) -> dict[str, list[str]]:
        """Texts that each answer must hold, by its id: computed here from the files, for decode."""
        here, spans = self.phase("decode"), self.spans("decode")
        families = self.groups("decode", "family")
        experts = families["experts"]
        largest = sorted(families.items(), key=lambda item: -item[1]["busy_s"])[:3]
        weights = here[here.family == "experts"].weights.sum()
        whole = self.rows.exposed_ns.sum()
        layer, skew = self.skew()
        beyond = sum(g["unexplained_s"] for g in families.values()) / spans.sum()
        lower = here.groupby("step").lower_bound_s.sum().median()
        return {
            "time": [
                units.seconds(spans.median()),
                units.seconds(spans.min()),
                units.seconds(spans.max()),
                units.seconds(lower),
                *(f"{name} {units.percent(g['share'])}" for name, g in largest),
            ],
            "experts": [
                units.percent(experts["share"]),
                units.seconds(experts["busy_s"] / len(spans)),
                units.percent(experts["memory_s"] / spans.sum()),
                units.percent(weights / here.bytes.sum()),
                units.count(weights / len(spans), "B"),
            ],
            "skew": [f"layer {layer}: {skew:.2f} x"],
            "covered": [
                units.percent(self.rows[self.rows.layer.isna()].exposed_ns.sum() / whole),
                units.percent(self.rows[self.rows.bytes.isna()].exposed_ns.sum() / whole),
                units.percent(beyond),
            ],
        }

    def skew(self) -> tuple[int, float]:
        """(layer, busiest expert's tokens over the mean expert's), the mean over the decode steps, of the worst layer."""
        decode = self.steps[self.steps.phase == "decode"]["index"]
        counts = self.counts[self.counts.step.isin(decode)]
        load = counts.groupby(["layer", "step", "expert"])["count"].sum().unstack(fill_value=0)
        load = load.reindex(columns=range(int(self.counts.expert.max()) + 1), fill_value=0)
        skew = (load.max(axis=1) / load.mean(axis=1)).groupby("layer").mean()
        return int(skew.idxmax()), float(skew.max())


def _heading(part: str) -> str:
    return "not explained" if part == "unexplained" else part


def micro(text: str) -> str:
    """As a page writes a unit."""
    return text.replace(" us", " µs")


def same(found: dict[str, float | None], wanted: dict[str, float | None]) -> bool:
    """Whether a group of the JSON holds every figure that was wanted of it."""
    return all(
        found[key] is None
        if value is None
        else found[key] is not None and np.isclose(found[key], value, rtol=1e-9, atol=1e-15)
        for key, value in wanted.items()
    )


def table_after(said: str, title: str) -> dict[str, dict[str, str]]:
    """The plain table below the line that begins with a title: cells by the first column and the heading."""
    lines = iter(said[said.index(title) :].splitlines()[1:])
    head = re.split(r"\s{2,}", next(lines).strip())
    edges = [m.span() for m in re.finditer(r"-+", next(lines))]
    out = {}
    for line in lines:
        if not line.strip():
            break
        cells = [line[a:b].strip() for a, b in edges]
        out[cells[0]] = dict(zip(head[1:], cells[1:], strict=True))
    return out


def page_table(page: str, table: str) -> dict[str, list[str]]:
    """The cells of a table in a page's text, by their first cell."""
    body = page.split(f'id="{table}"', 1)[1].split("</table>", 1)[0]
    return dict(_rows(body))


def _rows(body: str) -> Iterator[tuple[str, list[str]]]:
    for row in re.findall(r"<tr>.*?</tr>", body.split("<tbody>", 1)[1], re.DOTALL):
        cells = [plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        yield cells[0], cells[1:]


def plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html)).replace("\xa0", " ").strip()
