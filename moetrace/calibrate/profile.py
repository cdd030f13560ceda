"""Writes a calibration into a profile: the base's text as it is, its [fitted] table with the new keys in place of old ones.

Only what is measured changes: datasheet, assumptions and the fits of other families stay word for word or value for value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moetrace.calibrate import Calibration, Group
from moetrace.files import write_whole
from moetrace.hardware import SCHEMAS, read_profile

_WHOLE = 1e9  # above it a number is written to six digits
MAX_ERROR = 20.0  # the largest that a profile may state
_FITTED = re.compile(r"^\[fitted", re.MULTILINE)


def write_profile(found: Calibration, base: str, path: Path, source: str = "") -> None:
    """Writes the base profile with these coefficients as TOML, whole or not at all.

    A base of another's coefficients, or a node, keeps saying so; what was fitted here beats them. `source` says where the
    measurements are from, by default the names of their files. Groups of the base that were not fitted anew stay.
    """
    base_path, table = read_profile(base)
    text = base_path.read_text(encoding="utf-8")
    cut = _FITTED.search(text)
    old = table.get("fitted", {})
    before = {"source": old["source"]} if "source" in old else {}
    entries: dict[str, Mapping[str, Any]] = {k: {**before, **e} for k, e in old.get("family", {}).items()}
    new = {g.key: _entry(g) for g in found.groups}
    lines = [
        text[: cut.start()].rstrip() if cut else text.rstrip(), "", "[fitted]",
        f"source = {json.dumps(source or found.source)}", f'date = "{found.date}"', "",
    ]  # fmt: skip
    for key in sorted({*entries, *new}):
        lines += [f"[fitted.family.{_key(key)}]", *_lines(new.get(key, entries.get(key, {}))), ""]
    for key, entry in old.get("link", {}).items():
        lines += [f"[fitted.link.{_key(key)}]", *_lines(entry), ""]
    written = "\n".join(lines).rstrip() + "\n"
    write_whole(path, lambda target: target.write_text(written, encoding="utf-8"))


def _entry(group: Group) -> dict[str, Any]:
    parameters = SCHEMAS[group.form].parameters
    by_kernel = ", ".join(f"{k} {m:.1%} {d:.1%}" for k, (m, d) in group.by_kernel.items())
    only = "of the fastest kernel alone, others are too far off for one set: " if group.alone else ""
    return {
        "form": group.form,
        **{n: value if parameters[n].given else _short(value) for n, value in group.fit.value.items()},
        "error": _short(group.interval.error),
        "error_decades": [_short(min(e, MAX_ERROR)) for e in group.interval.error_decades],
        "error_terms": {
            name: [_short(min(e, MAX_ERROR)) for e in errors]
            for name, errors in group.interval.error_terms.items()
        },
        "error_rises": [_short(rise) for rise in group.interval.error_rises],
        **(
            {"error_apart": [_short(min(e, MAX_ERROR)) for e in group.interval.error_apart]}
            if group.interval.error_apart
            else {}
        ),
        "rows": group.rows,
        "shapes": group.shapes,
        "held_out": f"{only}mean {group.mean:.1%} median {group.median:.1%}; by kernel: {by_kernel}",
        "kept": list(group.fit.kept),
        "seen": {name: list(ends) for name, ends in group.seen.items()},
        "covariance": {
            name: [_short(v, 2) for v in row[: i + 1]]
            for i, (name, row) in enumerate(zip(group.fit.fitted, group.fit.covariance.tolist(), strict=True))
        },
    }


def _lines(entry: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in entry.items()]


def _value(value: object) -> str:
    """A TOML value: text, number, list, or an inline table."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    # A kernel's limit in bytes is told whole: rounded, its own size is beyond it.
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < _WHOLE else f"{value:.6g}"
    return json.dumps(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _short(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")
