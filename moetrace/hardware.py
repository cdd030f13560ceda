"""Hardware profiles: TOML files of datasheet peaks, fitted efficiencies and assumptions, read into frozen values.

A profile is data; the timing law that uses it is code (`moetrace.machines`). Keys are checked exactly: an unknown key, a
wrong type or a value that cannot be meant is a ProfileError that names file, key and expectation. Format: docs/hardware.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moetrace.errors import ProfileError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LAWS = ("gpu", "wafer", "cpu")
# Where a dtype that a machine has no units for is computed: weights are dequantised to the first of these with a peak;
# index arithmetic runs on the vector units. fp32 and fp64 have no substitute.
FALLBACK = {
    "fp4": "bf16",
    "fp8": "bf16",
    "int8": "bf16",
    "int4": "bf16",
    "fp16": "bf16",
    "int32": "fp32",
    "int64": "fp32",
}
# Whose coefficients an op kind takes, where that is not its own family's. The small kernels of an MoE module share the
# module's fitted time per launch, so that the parts add up to the measured whole; every GEMM is a GEMM.
_MODEL_OF_KIND = {
    **dict.fromkeys(
        ("topk", "moe_align", "moe_act", "moe_combine", "moe_gate_up", "moe_down", "moe_experts"), "experts"
    ),
    **dict.fromkeys(("router", "shared_gate_up", "shared_down", "gemm", "lm_head"), "dense_gemm"),
    **dict.fromkeys(("attention_reduce", "kv_write", "rope", "shared_act", "activation"), "elementwise"),
}


@dataclass(frozen=True, slots=True)
class Memory:
    """One device's memory: capacity and last-level cache in bytes, bandwidth in bytes/s (read and write together)."""

    capacity_bytes: float
    bytes_per_s: float
    cache_bytes: float


@dataclass(frozen=True, slots=True)
class Collective:
    """Alpha-beta coefficients of one collective: ``latency_s + per_rank_s (n - 1) + wire bytes / (efficiency x link)``.

    `one_shot_bytes`: up to this size an all-reduce sends its whole buffer to every other rank (see machines/links.py).
    """

    latency_s: float
    per_rank_s: float
    efficiency: float
    one_shot_bytes: float
    error: float
    provenance: str


@dataclass(frozen=True, slots=True)
class Link:
    """The links of one device to its peers: bytes/s in one direction, all links together; coefficients by collective."""

    bytes_per_s: float
    collectives: Mapping[str, Collective]


@dataclass(frozen=True, slots=True)
class Wafer:
    """What only a wafer has: cores, fabric bytes/s (sum over all links), bytes/s off the wafer, seconds per wafer crossing."""

    cores: float
    fabric_bytes_per_s: float
    off_wafer_bytes_per_s: float
    crossing_s: float


@dataclass(frozen=True, slots=True)
class Family:
    """Efficiency coefficients of one op family on one machine (the law's formula is in machines/gpu.py).

    `t0_s` per launch, `per_expert_s` per distinct expert and expert GEMM, `per_k_s` per element of a GEMM's reduction
    length, `per_tile_s` per (sequence, KV head) of an attention; `eta_bw` and `eta_flops` are shares of the datasheet;
    `blend` is the p of the p-norm that joins memory and compute time (1: they add up). `error` is such that 80 % of
    held-out measurements lie within ``/ (1 + error)`` and ``x (1 + error)``. `source` says where all this is from.
    """

    t0_s: float
    eta_bw: float
    eta_flops: float
    per_expert_s: float
    per_k_s: float
    per_tile_s: float
    blend: float
    error: float
    provenance: str
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine, by value. `peaks` are dense FLOP/s by dtype; all figures are per device, also for a node of `gpus`.

    `law` names the timing law; `base` the profile that a node repeats; `launch_s` is the host's time per kernel launch
    (used by schedules, not by op costs). `sources` maps a table of the profile to where its figures come from.
    """

    name: str
    title: str
    law: str
    gpus: int
    base: str | None
    peaks: Mapping[str, float]
    memory: Memory
    link: Link | None
    wafer: Wafer | None
    families: Mapping[str, Family]
    launch_s: float
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def device_class(self) -> str:
        """``gpu``, ``wafer`` or ``cpu``: a measurement anchors a prediction only within one class."""
        return self.law

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of multiply-adds in `dtype`.

        A machine without units for a narrow dtype dequantises (fp8 on A100, fp4 on H100: the bf16 peak; see FALLBACK).
        Raises ProfileError if there is no such path.
        """
        for name in (dtype, FALLBACK.get(dtype, dtype)):
            if name in self.peaks:
                return self.peaks[name]
        raise ProfileError(f"profile {self.name!r}: {unknown('dtype of a peak', dtype, self.peaks)}")

    def family(self, kind: str, family: str, dtype: str) -> tuple[str, Family]:
        """Key and coefficients for an op: those of its kind before those of its family, with its dtype before without."""
        model = _MODEL_OF_KIND.get(kind, family)
        for key in (f"{kind}:{dtype}", kind, f"{model}:{dtype}", model):
            if key in self.families:
                return key, self.families[key]
        return "other", self.families["other"]


def _folder() -> Path:
    inside = Path(__file__).parent / "hw_profiles"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "hw_profiles"


def profile_names() -> tuple[str, ...]:
    """Names of all shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def load_hardware(name_or_path: str) -> Hardware:
    """The Hardware of a shipped profile's name, or of a path to a ``.toml`` file. Raises ProfileError."""
    path, table = _read(name_or_path)
    if "base" not in table:
        return _build(_Reader(path), table)
    base_path, base = _read(str(table["base"]))
    reader = _Reader(path)
    reader.keys(table, "", {"base", "title", "gpus"}, {"datasheet", "fitted", "assumed"})
    if "base" in base:
        raise reader.error("base", table["base"], "a profile that has no base itself")
    gpus = reader.number(table, "", "gpus", 2, whole=True)
    whole = _build(_Reader(base_path), base)
    return _overlay(reader, whole, table, int(gpus))


def match_device(name: str, memory_bytes: int | None, multiprocessors: int | None) -> str | None:
    """The shipped profile of a device as a profiler describes it, or None.

    A name must match; memory and number of multiprocessors must not contradict. Without a name (ROCm leaves it empty)
    both of the others must be there and agree.
    """
    fits = []
    for profile in profile_names():
        match = _read(profile)[1].get("match")
        if match is None or (name and not re.search(match["name"], name)):
            continue
        low, high = match["memory_bytes"]
        known = memory_bytes is not None and multiprocessors is not None
        agrees = (memory_bytes is None or low <= memory_bytes <= high) and (
            multiprocessors is None or multiprocessors == match["multiprocessors"]
        )
        if agrees and (name or known):
            fits.append(profile)
    return fits[0] if len(fits) == 1 else None


def _read(name_or_path: str) -> tuple[Path, dict[str, Any]]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if name_or_path not in profile_names():
            raise ProfileError(
                unknown("hardware profile", name_or_path, profile_names()) + " (or a path to a .toml file)"
            )
        path = _folder() / f"{name_or_path}.toml"
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"hardware profile {path}: cannot be read ({type(error).__name__})") from error
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"hardware profile {path}: is not TOML: {error}") from error


class _Reader:
    """Takes values from one profile's tables, or raises a ProfileError that names file, key and expectation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, value: object, expected: str) -> ProfileError:
        return ProfileError(f"hardware profile {self.path}: {key} = {value!r}: expected {expected}")

    def keys(
        self, table: object, where: str, required: set[str], optional: AbstractSet[str] = frozenset()
    ) -> dict[str, Any]:
        """`table`, if it is one and has all required keys and no other than the optional ones."""
        if not isinstance(table, dict):
            raise self.error(where, table, "a table")
        for key in table:
            if key not in required | optional:
                text = unknown(f"key in [{where}]" if where else "key", key, required | optional)
                raise ProfileError(f"hardware profile {self.path}: {text}")
        for key in sorted(required - set(table)):
            raise ProfileError(
                f"hardware profile {self.path}: {f'[{where}]' if where else 'it'} lacks the key {key!r}"
            )
        return table

    def table(self, parent: Mapping[str, Any], where: str, key: str) -> dict[str, Any]:
        """A table of free keys, empty if absent."""
        value = parent.get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"{where}.{key}", value, "a table")
        return value

    def number(
        self,
        table: Mapping[str, Any],
        where: str,
        key: str,
        low: float,
        high: float = 1e19,
        whole: bool = False,
    ) -> float:
        value = table[key]
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not good or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            raise self.error(f"{where}.{key}" if where else key, value, f"{what} from {low:g} to {high:g}")
        return float(value)

    def text(self, table: Mapping[str, Any], where: str, key: str) -> str:
        value = table[key]
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{where}.{key}" if where else key, value, "a text")
        return value


# Bounds catch values in the wrong unit (989 instead of 989e12).
_DATASHEET = {
    "memory_bytes": (1e8, 1e15),
    "memory_bytes_per_s": (1e9, 1e18),
    "cache_bytes": (0, 1e12),
    "link_bytes_per_s": (1e8, 1e15),
    "multiprocessors": (1, 1e5),
    "cores": (1, 1e8),
    "fabric_bytes_per_s": (1e9, 1e19),
    "off_wafer_bytes_per_s": (1e6, 1e15),
}
_WAFER_ONLY = {"cores", "fabric_bytes_per_s", "off_wafer_bytes_per_s"}
_FAMILY: dict[str, tuple[float, float, float]] = {  # low, high, default
    "t0_s": (0, 1, 0),
    "eta_bw": (1e-3, 1, 1),
    "eta_flops": (1e-3, 1, 1),
    "per_expert_s": (0, 1e-3, 0),
    "per_k_s": (0, 1e-6, 0),
    "per_tile_s": (0, 1e-3, 0),
    "blend": (1, 8, 1),
    "error": (0, 20, 1),
}
_COLLECTIVE: dict[str, tuple[float, float, float]] = {
    "latency_s": (0, 1, 0),
    "per_rank_s": (0, 1, 0),
    "efficiency": (1e-3, 1, 1),
    "one_shot_bytes": (0, 1e12, 0),
    "error": (0, 20, 1),
}
_COLLECTIVES = frozenset(
    [
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "moe_dispatch",
        "moe_collect",
        "send_recv",
        "broadcast",
    ]
)
_TABLES = {"fitted", "assumed", "transferred", "match"}


def _build(reader: _Reader, table: dict[str, Any]) -> Hardware:
    law = table.get("law")
    if law not in LAWS:
        raise reader.error("law", law, f"one of {', '.join(LAWS)} (or base = NAME for a node)")
    ceilings = "measured" if law == "cpu" else "datasheet"
    reader.keys(table, "", {"title", "law", ceilings, "assumed"}, _TABLES)
    sheet = table[ceilings]
    required = {"source", "peak_flops", "memory_bytes", "memory_bytes_per_s", "cache_bytes"}
    extra = _WAFER_ONLY if law == "wafer" else set()
    reader.keys(sheet, ceilings, required | extra, {"multiprocessors", "link_bytes_per_s"})
    value = {key: reader.number(sheet, ceilings, key, *_DATASHEET[key]) for key in sheet if key in _DATASHEET}
    if value["cache_bytes"] > value["memory_bytes"]:
        raise reader.error(f"{ceilings}.cache_bytes", sheet["cache_bytes"], "no more than memory_bytes")
    if "match" in table:
        _check_match(reader, table["match"])
    families, collectives, sources = _coefficients(reader, table)
    if "other" not in families:
        raise ProfileError(
            f"hardware profile {reader.path}: lacks [assumed.family.other], the family of unnamed ops"
        )
    link = Link(value["link_bytes_per_s"], collectives) if "link_bytes_per_s" in value else None
    scalars = table["assumed"]
    if law == "wafer" and "crossing_s" not in scalars:
        raise ProfileError(f"hardware profile {reader.path}: [assumed] lacks the key 'crossing_s'")
    wafer = None
    if law == "wafer":
        crossing_s = reader.number(scalars, "assumed", "crossing_s", 0, 1)
        wafer = Wafer(value["cores"], value["fabric_bytes_per_s"], value["off_wafer_bytes_per_s"], crossing_s)
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
        launch_s=reader.number(scalars, "assumed", "launch_s", 0, 1) if "launch_s" in scalars else 0.0,
        sources=MappingProxyType({ceilings: reader.text(sheet, ceilings, "source"), **sources}),
    )


def _overlay(reader: _Reader, base: Hardware, table: dict[str, Any], gpus: int) -> Hardware:
    """A node: the base profile with another number of devices and, where given, its own link and coefficients."""
    sheet = table.get("datasheet", {})
    reader.keys(sheet, "datasheet", set(), {"source", "link_bytes_per_s"})
    families, collectives, sources = _coefficients(reader, table)
    link = base.link
    if "link_bytes_per_s" in sheet:
        rate = reader.number(sheet, "datasheet", "link_bytes_per_s", *_DATASHEET["link_bytes_per_s"])
        link = Link(rate, link.collectives if link else {})
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
        link=replace(link, collectives=MappingProxyType({**link.collectives, **collectives})),
        families=MappingProxyType({**base.families, **families}),
        sources=MappingProxyType(
            {**base.sources, **({"node": sheet["source"]} if "source" in sheet else {}), **sources}
        ),
    )


def _peaks(reader: _Reader, table: object, ceilings: str) -> Mapping[str, float]:
    where = f"{ceilings}.peak_flops"
    table = reader.keys(table, where, set(), {"fp64", "fp32", "bf16", "fp16", "fp8", "int8", "fp4"})
    if "bf16" not in table:
        raise ProfileError(f"hardware profile {reader.path}: [{where}] lacks the key 'bf16'")
    return MappingProxyType({key: reader.number(table, where, key, 1e9, 1e19) for key in table})


def _check_match(reader: _Reader, match: object) -> None:
    match = reader.keys(match, "match", {"name", "memory_bytes", "multiprocessors"})
    reader.number(match, "match", "multiprocessors", 1, 1e5, whole=True)
    span = match["memory_bytes"]
    if (
        not isinstance(span, list)
        or len(span) != 2
        or not all(isinstance(v, int) for v in span)
        or span[0] >= span[1]
    ):
        raise reader.error("match.memory_bytes", span, "[low, high] in bytes")
    try:
        re.compile(reader.text(match, "match", "name"))
    except re.error as error:
        raise reader.error("match.name", match["name"], f"a regular expression ({error})") from error


def _coefficients(
    reader: _Reader, table: Mapping[str, Any]
) -> tuple[Mapping[str, Family], Mapping[str, Collective], dict[str, str]]:
    """Families, collectives and sources of [transferred], then [assumed], then [fitted]: the better known wins."""
    families: dict[str, Family] = {}
    collectives: dict[str, Collective] = {}
    sources: dict[str, str] = {}
    if "transferred" in table:
        families, collectives, sources["transferred"] = _transferred(reader, table["transferred"])
    scalars = {"launch_s", "crossing_s"}
    for kind in ("assumed", "fitted"):
        part = table.get(kind)
        if part is None:
            continue
        optional = {"family", "link", "date"} | (scalars if kind == "assumed" else set())
        reader.keys(part, kind, {"source"}, optional)
        source = sources[kind] = reader.text(part, kind, "source")
        for key, entry in reader.table(part, kind, "family").items():
            where = f"{kind}.family.{key}"
            value = _entry(reader, entry, where, _FAMILY)
            families[key] = Family(**value, provenance=kind, source=entry.get("source", source))
        for key, entry in reader.table(part, kind, "link").items():
            where = f"{kind}.link.{key}"
            if key not in _COLLECTIVES:
                raise ProfileError(
                    f"hardware profile {reader.path}: {unknown('collective in [' + where + ']', key, _COLLECTIVES)}"
                )
            collectives[key] = Collective(**_entry(reader, entry, where, _COLLECTIVE), provenance=kind)
    return MappingProxyType(families), MappingProxyType(collectives), sources


def _entry(
    reader: _Reader, entry: object, where: str, schema: Mapping[str, tuple[float, float, float]]
) -> dict[str, float]:
    entry = reader.keys(entry, where, {"error"}, set(schema) | {"source", "rows"})
    return {
        key: reader.number(entry, where, key, low, high) if key in entry else default
        for key, (low, high, default) in schema.items()
    }


def _transferred(reader: _Reader, table: object) -> tuple[dict[str, Family], dict[str, Collective], str]:
    """The fitted coefficients of another profile, their error widened: ``(1 + error)(1 + widen) - 1``."""
    table = reader.keys(table, "transferred", {"from", "widen", "source"})
    donor_path, donor_table = _read(reader.text(table, "transferred", "from"))
    if "transferred" in donor_table or "fitted" not in donor_table:
        raise reader.error("transferred.from", table["from"], "a profile with fitted coefficients of its own")
    widen = reader.number(table, "transferred", "widen", 0, 10)
    families, collectives, _ = _coefficients(_Reader(donor_path), {"fitted": donor_table["fitted"]})
    source = reader.text(table, "transferred", "source")
    label = f"transferred from {donor_path.stem}"
    return (
        {
            key: replace(
                f, error=(1 + f.error) * (1 + widen) - 1, provenance=label, source=f"{source}; {f.source}"
            )
            for key, f in families.items()
        },
        {
            key: replace(c, error=(1 + c.error) * (1 + widen) - 1, provenance=label)
            for key, c in collectives.items()
        },
        source,
    )
