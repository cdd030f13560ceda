"""One op family's coefficients from its entry in a profile: parameters of its form, errors, sizes seen, what a fit says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from moetrace.errors import ProfileError
from moetrace.hardware.family import Family, Fitted
from moetrace.hardware.files import Reader
from moetrace.hardware.forms import GENERIC, SCHEMAS

_ERROR, _TERM_ERROR, _RISE = (0, 20), (1e-6, 20), (0.1, 10)
# What a fit says of itself beside its coefficients (moetrace/calibrate writes it); facts for a reader, no law uses them.
_ABOUT_FIT = {
    "form", "error_decades", "error_terms", "error_rises", "error_apart", "source", "rows", "shapes",
    "kernels", "held_out", "kept", "covariance", "seen"
}  # fmt: skip
_HELD_OUT = re.compile(r"mean ([0-9.]+)% median ([0-9.]+)%")  # as moetrace/calibrate writes it


def read_family(reader: Reader, entry: object, where: str, kind: str, source: str) -> Family:
    """One family's coefficients; the parameters of its form that it leaves out have their defaults."""
    form = entry.get("form", GENERIC.name) if isinstance(entry, dict) else GENERIC.name
    if form not in SCHEMAS:
        raise reader.error(f"{where}.form", form, f"one of {', '.join(SCHEMAS)}")
    parameters = SCHEMAS[form].parameters
    try:
        entry = reader.keys(entry, where, {"error"}, set(parameters) | _ABOUT_FIT)
    except ProfileError as error:
        # Laws change what they are told, and a fit of another version's formula is none of this one's.
        again = "; if an earlier moetrace fitted it, fit it anew (moetrace calibrate)"
        raise ProfileError(f"{error}{again if kind == 'fitted' else ''}") from None
    value = {
        name: reader.number(entry, where, name, p.low, p.high) if name in entry else p.default
        for name, p in parameters.items()
    }
    decades, apart = (_errors(reader, entry, where, key) for key in ("error_decades", "error_apart"))
    terms = _error_terms(reader, entry, where, SCHEMAS[form].terms, len(decades))
    rises = _errors(reader, entry, where, "error_rises", _RISE)
    if rises and len(rises) != len(decades):
        raise reader.error(f"{where}.error_rises", list(rises), "as many numbers as error_decades has")
    return Family(
        form=form,
        value=MappingProxyType(value),
        error=reader.number(entry, where, "error", *_ERROR),
        provenance=kind,
        source=entry.get("source", source),
        error_decades=decades,
        error_terms=MappingProxyType(terms),
        error_rises=rises,
        error_apart=apart,
        seen=sizes_seen(reader, entry, where),
        named=frozenset(parameters) & frozenset(entry),
        fit=_fit(reader, entry, where),
    )


def _fit(reader: Reader, entry: Mapping[str, Any], where: str) -> Fitted | None:
    """What a fit says of itself, where it says all of it."""
    if not {"rows", "shapes", "held_out"} <= set(entry):
        return None
    rows, shapes = (int(reader.number(entry, where, key, 0, 1e12, whole=True)) for key in ("rows", "shapes"))
    text = reader.text(entry, where, "held_out")
    found = _HELD_OUT.search(text)
    mean, median = (float(n) / 100.0 for n in found.groups()) if found else (None, None)
    return Fitted(rows, shapes, mean, median, text)


def sizes_seen(
    reader: Reader, entry: Mapping[str, Any], where: str, key: str = "seen"
) -> Mapping[str, tuple[float, float]]:
    """The least and the most of each size that the fit saw."""
    found = {}
    for name, ends in reader.table(entry, where, key).items():
        if not isinstance(ends, list) or len(ends) != 2:
            raise reader.error(f"{where}.{key}.{name}", ends, "the least and the most that the fit saw")
        low, high = (reader.number({name: end}, f"{where}.{key}", name, 0) for end in ends)
        found[name] = (low, high)
    return MappingProxyType(found)


def _error_terms(
    reader: Reader, entry: Mapping[str, Any], where: str, terms: tuple[str, ...], decades: int
) -> dict[str, tuple[float, ...]]:
    """The errors of all of a form's terms by decade, or none; above 0, since an op's is their geometric mean."""
    if not entry.get("error_terms"):
        return {}
    where = f"{where}.error_terms"
    table = reader.keys(entry["error_terms"], where, set(terms))
    found = {name: _errors(reader, table, where, name, _TERM_ERROR) for name in terms}
    if any(len(errors) != decades for errors in found.values()):
        raise reader.error(where, list(table), "as many numbers for each as error_decades has")
    return found


def _errors(
    reader: Reader, entry: Mapping[str, Any], where: str, key: str, ends: tuple[float, float] = _ERROR
) -> tuple[float, ...]:
    errors = entry.get(key, [])
    if not isinstance(errors, list):
        raise reader.error(f"{where}.{key}", errors, "a list of numbers")
    return tuple(reader.number({key: error}, where, key, *ends) for error in errors)
