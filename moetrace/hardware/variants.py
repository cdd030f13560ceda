"""Machines made of another's profile: a node (``NAME-xN``, N devices), a variant (`like`: another datasheet, its kernels)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from moetrace.errors import ProfileError
from moetrace.hardware.family import Family, Widen
from moetrace.hardware.files import Reader
from moetrace.hardware.machine import Hardware, Link, Memory
from moetrace.hardware.pace import Pace

MAX_DEVICES = 100_000
_FOREIGN = 1.0  # an error of more than a factor of two
_FAMILY_END = re.compile("[:@]")  # what follows in a key: element type, engine
_NODE = re.compile(r"(?P<base>.+)-x(?P<gpus>[1-9][0-9]*)")


def split_node(name: str) -> tuple[str, int] | None:
    """(profile, devices) of a name such as ``h100-sxm-x8``; None for any other."""
    found = _NODE.fullmatch(name)
    return (found["base"], int(found["gpus"])) if found else None


def node_of(one: Hardware, gpus: int) -> Hardware:
    """`gpus` devices of one profile, joined by its link. Raises ProfileError for a machine that is not joined that way."""
    base = one.base or one.name
    if one.law != "gpu":
        more = "takes as many wafers as the model needs" if one.law == "wafer" else "is one device"
        raise ProfileError(f"{base}-x{gpus}: {base} is a {one.law}, which {more}: name it without -x{gpus}")
    if not 1 <= gpus <= MAX_DEVICES:
        raise ProfileError(f"{base}-x{gpus}: expected 1 to {MAX_DEVICES} devices")
    if gpus > 1 and one.link is None:
        raise ProfileError(f"{base}-x{gpus}: the profile {base!r} has no link (link_bytes_per_s)")
    title = one.title.partition(" x ")[2] if one.gpus > 1 and " x " in one.title else one.title
    if gpus == 1:
        return replace(one, name=base, title=title, gpus=1, base=None)
    return replace(one, name=f"{base}-x{gpus}", title=f"{gpus} x {title}", gpus=gpus, base=base)


def widening(
    reader: Reader, table: Mapping[str, Any], where: str, families: Mapping[str, Family]
) -> dict[str, Widen]:
    """By coefficients' key what they err by beside their own error: `widen`, or what `widen_family` says of their family.

    Beyond a factor of two they are taken for another kernel's, which nothing measured of this one narrows.
    """
    usual = Widen(reader.number(table, where, "widen", 0, 10))
    told = reader.table(table, where, "widen_family")
    there = f"{where}.widen_family".lstrip(".")
    wide = {name: reader.number(told, there, name, 0, 10) for name in told}
    own = {name: Widen(by, foreign=by > _FOREIGN) for name, by in wide.items()}
    model = {key: _FAMILY_END.split(key)[0] for key in families}
    if unheard := set(own) - set(model.values()):
        raise reader.error(there, min(unheard), f"one of {', '.join(sorted(set(model.values())))}")
    return {key: own.get(name, usual) for key, name in model.items()}


def variant_of(
    reader: Reader, table: Mapping[str, Any], one: Hardware, bounds: Mapping[str, Any]
) -> Hardware:
    """`one` with another datasheet, its fixed times at that pace, with the transfer's error beside their own."""
    more = {"match", "widen_family", "same_processors"}
    reader.keys(table, "", {"like", "title", "datasheet", "widen", "source"}, more)
    sheet = reader.keys(
        table["datasheet"],
        "datasheet",
        {"source"},
        {"peak_flops", "memory_bytes", "memory_bytes_per_s", *bounds},
    )
    value = {key: reader.number(sheet, "datasheet", key, *bounds[key]) for key in sheet if key in bounds}
    widens = widening(reader, table, "", one.families)
    peaks = reader.keys(sheet.get("peak_flops", {}), "datasheet.peak_flops", set(), set(one.peaks))
    flops = {name: reader.number(peaks, "datasheet.peak_flops", name, 1e9, 1e19) for name in peaks}
    clock_hz = value.get("clock_hz", one.clock_hz)
    processors = value.get("multiprocessors", one.multiprocessors)
    paces = one.pace, Pace.of(clock_hz, flops or one.peaks, processors)
    same = "same_processors" in table and reader.number(table, "", "same_processors", 0, 1) > 0
    families = {
        name: f if f.provenance == "assumed" else f.on_another(one.name, paces, widens[name], same)
        for name, f in one.families.items()
    }
    told = {
        "datasheet": reader.text(sheet, "datasheet", "source"),
        "transferred": reader.text(table, "", "source"),
    }
    return replace(
        one,
        name=reader.path.stem,
        title=reader.text(table, "", "title"),
        peaks=MappingProxyType(flops or dict(one.peaks)),
        **_parts(one, value),
        families=MappingProxyType(families),
        sources=MappingProxyType({**{k: v for k, v in one.sources.items() if k != "tuned"}, **told}),
        tuned=MappingProxyType({}),  # for the other device's name
        multiprocessors=processors,
        clock_hz=clock_hz,
        power_w=value.get("power_w", one.power_w),
        domain_gpus=int(value.get("domain_gpus", one.domain_gpus)),
    )


def _parts(one: Hardware, value: Mapping[str, Any]) -> dict[str, Any]:
    """Memory, link and wafer of a machine where a datasheet says `value`, else as they are."""
    memory, link, wafer = one.memory, one.link, one.wafer
    if link is not None:
        link = Link(
            value.get("link_bytes_per_s", link.bytes_per_s),
            value.get("network_bytes_per_s", link.network_bytes_per_s),
        )
    if wafer is not None:
        wafer = replace(
            wafer,
            cores=value.get("cores", wafer.cores),
            fabric_bytes_per_s=value.get("fabric_bytes_per_s", wafer.fabric_bytes_per_s),
            off_wafer_bytes_per_s=value.get("off_wafer_bytes_per_s", wafer.off_wafer_bytes_per_s),
        )
    memory = Memory(
        value.get("memory_bytes", memory.capacity_bytes),
        value.get("memory_bytes_per_s", memory.bytes_per_s),
        value.get("cache_bytes", memory.cache_bytes),
    )
    return {"memory": memory, "link": link, "wafer": wafer}
