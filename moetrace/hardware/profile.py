"""A profile's tables to a Hardware: keys, types and bounds checked, a node laid over its base, coefficients joined."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from moetrace.errors import ProfileError
from moetrace.given import misfit, several
from moetrace.hardware.coefficients import read_family, sizes_seen
from moetrace.hardware.family import Family
from moetrace.hardware.files import Reader, profile_names, read_profile
from moetrace.hardware.machine import ENGINES, NARROW, Hardware, Link, Memory, Wafer
from moetrace.hardware.match import check_match
from moetrace.hardware.pace import Pace
from moetrace.hardware.variants import node_of, split_node, variant_of, widening

_MACHINE = "expected a profile's name, the path of one, or a Hardware"
LAWS = ("gpu", "wafer", "cpu")
# Bounds catch values in the wrong unit (989 instead of 989e12).
_DATASHEET = {
    "memory_bytes": (1e8, 1e15),
    "memory_bytes_per_s": (1e9, 1e18),
    "cache_bytes": (0, 1e12),
    "link_bytes_per_s": (1e8, 1e15),
    "network_bytes_per_s": (1e6, 1e15),
    "multiprocessors": (1, 1e5),
    "cores": (1, 1e8),
    "fabric_bytes_per_s": (1e9, 1e19),
    "off_wafer_bytes_per_s": (1e6, 1e15),
    "clock_hz": (1e8, 1e11),
    "power_w": (1, 1e6),
    "domain_gpus": (1, 1e5),
}
_WAFER_ONLY = {"cores", "fabric_bytes_per_s", "off_wafer_bytes_per_s"}
_MESH = {"hop_s", "shift_s", "eta_mesh"}
_TABLES = {"fitted", "assumed", "transferred", "match", "tuned", "engines"}
_TUNED = {
    dtype + whose for dtype in ("bf16", "fp8", "fp8_block") for whose in ("", *(f"@{e}" for e in ENGINES))
}


def load_hardware(machine: str | os.PathLike[str] | Hardware) -> Hardware:
    """The Hardware of a shipped profile's name, or of a path to a ``.toml`` file. Raises ProfileError.

    ``NAME-xN`` is N devices of that profile, joined by its link. A Hardware is returned as it is, so that whatever takes a
    machine takes its name too.
    """
    if isinstance(machine, Hardware):
        return machine
    if not isinstance(machine, str | os.PathLike):
        raise ProfileError(misfit(machine, "machine", _MACHINE))
    machine = os.fspath(machine)
    node = split_node(machine)
    if node and machine not in profile_names():
        return node_of(load_hardware(node[0]), node[1])
    path, table = read_profile(machine)
    if "like" in table:
        reader = Reader(path)
        return variant_of(reader, table, load_hardware(reader.text(table, "", "like")), _DATASHEET)
    if "base" not in table:
        return _build(Reader(path), table)
    base_path, base = read_profile(str(table["base"]))
    reader = Reader(path)
    reader.keys(table, "", {"base", "title", "gpus"}, {"datasheet", "fitted", "assumed"})
    if "base" in base:
        raise reader.error("base", table["base"], "a profile that has no base itself")
    gpus = reader.number(table, "", "gpus", 2, 1e5, whole=True)
    whole = _build(Reader(base_path), base)
    return _overlay(reader, whole, table, int(gpus))


def machines_of(given: Iterable[Hardware | str] | Hardware | str) -> list[Hardware | str]:
    """One machine or several as a list, each a name or a Hardware. Raises ProfileError where another type is among them."""
    return several(given, (str, os.PathLike, Hardware), "machine", _MACHINE, ProfileError)


def _build(reader: Reader, table: dict[str, Any]) -> Hardware:
    law = table.get("law")
    if law not in LAWS:
        raise reader.error("law", law, f"one of {', '.join(LAWS)} (or base = NAME for a node)")
    ceilings = "measured" if law == "cpu" else "datasheet"
    reader.keys(table, "", {"title", "law", ceilings, "assumed"}, _TABLES)
    sheet = table[ceilings]
    required = {"source", "peak_flops", "memory_bytes", "memory_bytes_per_s", "cache_bytes"}
    extra = _WAFER_ONLY if law == "wafer" else set()
    optional = set(_DATASHEET) - required - _WAFER_ONLY
    reader.keys(sheet, ceilings, required | extra, optional)
    value = {key: reader.number(sheet, ceilings, key, *_DATASHEET[key]) for key in sheet if key in _DATASHEET}
    if value["cache_bytes"] > value["memory_bytes"]:
        raise reader.error(f"{ceilings}.cache_bytes", sheet["cache_bytes"], "no more than memory_bytes")
    if "match" in table:
        check_match(reader, table["match"])
    families, sources = _coefficients(reader, table)
    by_term = [key for key, family in families.items() if family.error_terms]
    if law == "wafer" and by_term:
        raise ProfileError(
            f"hardware profile {reader.path}: family {by_term[0]!r} has error_terms, which the wafer law does not know: "
            "expected error and error_decades alone"
        )
    tuned = _tuned(reader, table)
    if "tuned" in table:
        sources["tuned"] = reader.text(table["tuned"], "tuned", "source")
    engines = _engines(reader, table)
    if "engines" in table:
        sources["engines"] = reader.text(table["engines"], "engines", "source")
    if "other" not in families:
        raise ProfileError(
            f"hardware profile {reader.path}: lacks [assumed.family.other], the family of unnamed ops"
        )
    link = None
    if "link_bytes_per_s" in value:
        link = Link(value["link_bytes_per_s"], value.get("network_bytes_per_s"))
    wafer = _wafer(reader, table["assumed"], value) if law == "wafer" else None
    return Hardware(
        name=reader.path.stem,
        title=reader.text(table, "", "title"),
        law=law,
        gpus=1,
        base=None,
        peaks=_peaks(reader, sheet["peak_flops"], ceilings),
        memory=Memory(value["memory_bytes"], value["memory_bytes_per_s"], value["cache_bytes"]),
        link=link,
        wafer=wafer,
        families=families,
        sources=MappingProxyType({ceilings: reader.text(sheet, ceilings, "source"), **sources}),
        multiprocessors=value.get("multiprocessors", 1.0),
        clock_hz=value.get("clock_hz"),
        power_w=value.get("power_w"),
        domain_gpus=int(value.get("domain_gpus", 8)),
        tuned=tuned,
        engines=engines,
        narrow=_narrow(reader, table.get("transferred", {}), families),
    )


def _narrow(reader: Reader, table: Mapping[str, Any], families: Mapping[str, Family]) -> Mapping[str, float]:
    """By ``FAMILY:DTYPE`` what another profile's 16-bit coefficients err by for a narrower type here, from `narrow`."""
    told = reader.table(table, "transferred", "narrow")
    for key in told:
        family, _, dtype = key.partition(":")
        if family not in families or dtype not in NARROW:
            raise reader.error(
                "transferred.narrow", key, f"FAMILY:DTYPE, its type one of {', '.join(sorted(NARROW))}"
            )
    return MappingProxyType({key: reader.number(told, "transferred.narrow", key, 0, 10) for key in told})


def _wafer(reader: Reader, scalars: Mapping[str, Any], value: Mapping[str, float]) -> Wafer:
    """A wafer's mesh, from its datasheet's `value` and what of it is assumed."""
    if "crossing_s" not in scalars:
        raise ProfileError(f"hardware profile {reader.path}: [assumed] lacks the key 'crossing_s'")
    crossing_s = reader.number(scalars, "assumed", "crossing_s", 0, 1)
    more = {key: reader.number(scalars, "assumed", key, 0, 1) for key in sorted(_MESH & set(scalars))}
    return Wafer(
        value["cores"], value["fabric_bytes_per_s"], value["off_wafer_bytes_per_s"], crossing_s,
        mesh_seen=sizes_seen(reader, scalars, "assumed", "mesh_seen"), **more,
    )  # fmt: skip


def _engines(reader: Reader, table: Mapping[str, Any]) -> Mapping[str, str]:
    """Versions of the engines whose kernels the fitted coefficients are of, from [engines]; a donor's with its coefficients."""
    if "engines" not in table:
        donor = table.get("transferred", {}).get("from")
        return _engines(reader, read_profile(str(donor))[1]) if donor else MappingProxyType({})
    told = reader.keys(table["engines"], "engines", {"source"}, set(ENGINES))
    return MappingProxyType({n: reader.text(told, "engines", n) for n in sorted({*ENGINES} & set(told))})


def _tuned(reader: Reader, table: Mapping[str, Any]) -> Mapping[str, frozenset[tuple[int, int]]]:
    """(Experts, width) by dtype of the weights, of one engine's own where it says so (``bf16@vllm``), from [tuned]."""
    if "tuned" not in table:
        return MappingProxyType({})
    found = {}
    for dtype, pairs in reader.keys(table["tuned"], "tuned", {"source"}, _TUNED).items():
        if dtype == "source":
            continue
        good = isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)
        if not good or not all(type(n) is int and n > 0 for pair in pairs for n in pair):
            raise reader.error(
                f"tuned.{dtype}", pairs, "pairs [experts on a rank, width] of whole numbers above 0"
            )
        found[dtype] = frozenset((pair[0], pair[1]) for pair in pairs)
    return MappingProxyType(found)


def _overlay(reader: Reader, base: Hardware, table: dict[str, Any], gpus: int) -> Hardware:
    """A node: the base profile with another number of devices and, where given, its own link and coefficients."""
    sheet = table.get("datasheet", {})
    reader.keys(sheet, "datasheet", set(), {"source", "link_bytes_per_s"})
    families, sources = _coefficients(reader, table)
    link = base.link
    if "link_bytes_per_s" in sheet:
        rate = reader.number(sheet, "datasheet", "link_bytes_per_s", *_DATASHEET["link_bytes_per_s"])
        link = Link(rate, link.network_bytes_per_s if link else None)
    if link is None:
        raise ProfileError(
            f"hardware profile {reader.path}: base {base.name!r} has no link: give link_bytes_per_s"
        )
    return replace(
        base,
        name=reader.path.stem,
        title=reader.text(table, "", "title"),
        gpus=gpus,
        base=base.name,
        link=link,
        families=MappingProxyType({**base.families, **families}),
        sources=MappingProxyType(
            {**base.sources, **({"node": sheet["source"]} if "source" in sheet else {}), **sources}
        ),
    )


def _peaks(reader: Reader, table: object, ceilings: str) -> Mapping[str, float]:
    where = f"{ceilings}.peak_flops"
    table = reader.keys(table, where, set(), {"fp64", "fp32", "bf16", "fp16", "fp8", "int8", "fp4"})
    if "bf16" not in table:
        raise ProfileError(f"hardware profile {reader.path}: [{where}] lacks the key 'bf16'")
    return MappingProxyType({key: reader.number(table, where, key, 1e9, 1e19) for key in table})


def _coefficients(reader: Reader, table: Mapping[str, Any]) -> tuple[Mapping[str, Family], dict[str, str]]:
    """Families and sources of [transferred], then [assumed], then [fitted]: the better known wins."""
    families: dict[str, Family] = {}
    sources: dict[str, str] = {}
    if "transferred" in table:
        families, sources["transferred"] = _transferred(reader, table["transferred"], _pace(reader, table))
    scalars = {"crossing_s", "mesh_seen", *_MESH}
    for kind in ("assumed", "fitted"):
        part = table.get(kind)
        if part is None:
            continue
        optional = {"family", "date"} | (scalars if kind == "assumed" else set())
        reader.keys(part, kind, {"source"}, optional)
        source = sources[kind] = reader.text(part, kind, "source")
        for key, entry in reader.table(part, kind, "family").items():
            where = f"{kind}.family.{key}"
            families[key] = read_family(reader, entry, where, kind, source)
    return MappingProxyType(families), sources


def _pace(reader: Reader, table: Mapping[str, Any]) -> Pace:
    """How fast the datasheet's processors go."""
    sheet = reader.table(table, "", "datasheet")
    value = {
        key: reader.number(sheet, "datasheet", key, *_DATASHEET[key])
        for key in ("clock_hz", "multiprocessors")
        if key in sheet
    }
    peaks = _peaks(reader, sheet["peak_flops"], "datasheet") if "peak_flops" in sheet else {}
    return Pace.of(value.get("clock_hz"), peaks, value.get("multiprocessors"))


def _transferred(reader: Reader, table: object, pace: Pace) -> tuple[dict[str, Family], str]:
    """Another profile's fitted coefficients, at this pace, with the error of the transfer beside their own."""
    table = reader.keys(table, "transferred", {"from", "widen", "source"}, {"widen_family", "narrow"})
    donor_path, donor_table = read_profile(reader.text(table, "transferred", "from"))
    if "transferred" in donor_table or "fitted" not in donor_table:
        raise reader.error("transferred.from", table["from"], "a profile with fitted coefficients of its own")
    families, _ = _coefficients(Reader(donor_path), {"fitted": donor_table["fitted"]})
    source = reader.text(table, "transferred", "source")
    paces = _pace(Reader(donor_path), donor_table), pace
    widens = widening(reader, table, "transferred", families)
    moved = {
        key: replace(f.on_another(donor_path.stem, paces, widens[key]), source=f"{source}; {f.source}")
        for key, f in families.items()
    }
    return moved, source
