"""What there is to choose from: machines and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moetrace import units
from moetrace.report.tables import DASH, Block, Table, clean, number, percent, rate, size, without_empty

if TYPE_CHECKING:
    from moetrace.hardware import Hardware
    from moetrace.model import ModelSpec


def models_report(models: Sequence[ModelSpec]) -> list[Block]:
    """One row per model of the catalogue."""
    rows = tuple(
        (
            m.name,
            m.attention,
            m.expert_dtype if m.experts else m.dtype,
            str(m.layers),
            str(m.hidden),
            str(m.experts) if m.experts else DASH,
            str(m.topk) if m.experts else DASH,
            str(m.expert_inter) if m.experts else DASH,
            str(m.shared_inter) if m.shared_inter else DASH,
            units.count(m.params()),
            units.count(m.active_params()),
            size(m.weight_bytes()),
            f"{m.max_context:,}" if m.max_context else DASH,
        )
        for m in models
    )
    header = (
        "model",
        "attention",
        "weights",
        "layers",
        "hidden",
        "n_e",
        "n_a",
        "d_e",
        "shared width",
        "parameters",
        "active",
        "bytes",
        "context",
    )
    return [Table("Built-in models (--model also takes a config.json)", header, rows, left=3)]


def profile_facts(machine: Hardware) -> dict[str, Any]:
    """What a profile says, JSON-able; per device, in SI units, with op families by provenance."""
    provenance: dict[str, list[str]] = {}
    for family, coefficients in sorted(machine.families.items()):
        provenance.setdefault(coefficients.provenance, []).append(family)
    return {
        "name": machine.name,
        "title": machine.title,
        "law": machine.law,
        "gpus": machine.gpus,
        "base": machine.base,
        "peak_flop_per_s": dict(machine.peaks),
        "memory_bytes": machine.memory.capacity_bytes,
        "memory_bytes_per_s": machine.memory.bytes_per_s,
        "link_bytes_per_s": machine.link.bytes_per_s if machine.link else None,
        "power_w": machine.power_w,
        "domain_gpus": machine.domain_gpus,
        "coefficients": provenance,
        "sources": dict(machine.sources),
    }


def machine_facts(machine: Hardware) -> dict[str, Any]:
    """What a profile says, JSON-able, with each family's coefficients, their error and what they rest on."""
    families = []
    for key, found in sorted(machine.families.items()):
        name, dtype, engine = _parts_of(key)
        families.append(
            {
                "family": name,
                "dtype": dtype,
                "engine": engine,
                "provenance": found.provenance,
                "form": found.form,
                "coefficients": {k: found.value[k] for k in sorted(found.named)},
                "error": found.error,
                "error_decades": list(found.error_decades),
                "rows": found.fit.rows if found.fit else None,
                "shapes": found.fit.shapes if found.fit else None,
                "held_out_mean": found.fit.mean if found.fit else None,
                "held_out_median": found.fit.median if found.fit else None,
                "held_out": found.fit.held_out if found.fit else None,
                "seen": {k: list(ends) for k, ends in found.seen.items()},
                "source": found.source,
            }
        )
    return {
        **profile_facts(machine),
        "cache_bytes": machine.memory.cache_bytes,
        "network_bytes_per_s": machine.link.network_bytes_per_s if machine.link else None,
        "multiprocessors": machine.multiprocessors,
        **{
            name: getattr(machine.wafer, name, None)
            for name in ("cores", "fabric_bytes_per_s", "off_wafer_bytes_per_s")
        },
        "clock_hz": machine.clock_hz,
        "engines": dict(machine.engines),
        "families": families,
    }


def _parts_of(key: str) -> tuple[str, str | None, str | None]:
    """(family or op kind, element type, engine) of a key such as ``experts:fp8@vllm``."""
    rest, _, engine = key.partition("@")
    name, _, dtype = rest.partition(":")
    return name, dtype or None, engine or None


def machine_report(machine: Hardware) -> list[Block]:
    """One machine: its figures, the coefficients of each op family with their error, and where all of it is from."""
    facts = machine_facts(machine)
    rows = tuple(
        (
            f["family"],
            f["dtype"] or DASH,
            f["engine"] or DASH,
            f["form"],
            f["provenance"],
            percent(f["error"]),
            percent(f["held_out_mean"]),
            percent(f["held_out_median"]),
            number(f["rows"]),
            number(f["shapes"]),
        )
        for f in facts["families"]
    )
    header = ("family", "type", "engine", "form", "from", "80 % within", "mean", "median", "rows", "shapes")
    title = "Coefficients: what 80 % of ops are within"
    if any(f["held_out_mean"] is not None for f in facts["families"]):
        title += "; mean and median error of shapes that the fit did not see"
        title += "" if _own_fits(facts) else ", on the machine that was measured: not this one"
    return [
        f"{machine.name}: {machine.title}, law {machine.law}",
        *_figures(facts),
        without_empty(
            Table(title, header, rows, left=5), "mean", "median", "rows", "shapes", "engine", "type"
        ),
        "Where it is from:",
        *(f"  {what}: {clean(source)}" for what, source in facts["sources"].items()),
        "No type: 16-bit kernels; no engine: coefficients for any. --json has them, the sizes seen and each one's source.",
    ]


def _figures(facts: dict[str, Any]) -> list[Block]:
    """The datasheet in lines, of one device."""
    peaks = ", ".join(f"{units.count(v, 'FLOP/s')} {name}" for name, v in facts["peak_flop_per_s"].items())
    links = [
        f"{what} {rate(value)}"
        for what, value in (("link", facts["link_bytes_per_s"]), ("network", facts["network_bytes_per_s"]))
        if value
    ]
    memory = f"{size(facts['memory_bytes'])} at {rate(facts['memory_bytes_per_s'])}"
    if facts["cache_bytes"]:
        memory += f", cache {size(facts['cache_bytes'])}"
    out: list[Block] = [f"dense peaks: {peaks}", f"memory: {', '.join([memory, *links])}"]
    processors = [f"{facts['multiprocessors']:,.0f}"] if facts["multiprocessors"] > 1 else []
    if facts["clock_hz"]:
        processors.append(f"up to {units.count(facts['clock_hz'], 'Hz', 2)}")
    if processors:
        out.append(f"processors: {', '.join(processors)}")
    if facts["cores"]:
        out.append(
            f"wafer: {facts['cores']:,.0f} cores, fabric {rate(facts['fabric_bytes_per_s'])}, "
            f"off the wafer {rate(facts['off_wafer_bytes_per_s'])}"
        )
    if facts["engines"]:
        where = "" if _own_fits(facts) else " on another machine"
        out.append(
            f"engines measured{where}: " + ", ".join(f"{name} {v}" for name, v in facts["engines"].items())
        )
    return out


def _own_fits(facts: dict[str, Any]) -> bool:
    """Whether anything was fitted to measurements of this machine, not only carried over from another."""
    return "fitted" in facts["coefficients"]


def profiles_report(machines: Sequence[Hardware]) -> list[Block]:
    """One row per machine: its law, its datasheet, and what its op families' coefficients rest on."""
    rows = []
    for machine in machines:
        facts = profile_facts(machine)
        peaks = facts["peak_flop_per_s"]
        rows.append(
            (
                machine.name,
                machine.law,
                ", ".join(
                    f"{len(families)} {what}" for what, families in sorted(facts["coefficients"].items())
                )
                or DASH,
                *(units.count(peaks[d], "FLOP/s") if d in peaks else DASH for d in ("bf16", "fp8", "fp4")),
                size(facts["memory_bytes"]),
                rate(facts["memory_bytes_per_s"]),
                rate(facts["link_bytes_per_s"]),
                f"{facts['power_w']:,.0f} W" if facts["power_w"] else DASH,
            )
        )
    header = ("machine", "law", "op families", "bf16", "fp8", "fp4", "memory", "bandwidth", "link", "power")
    return [
        Table("Machines, per device (dense peaks; the link is one direction)", header, tuple(rows), left=3),
        "NAME-xN is N of them joined by their link (h100-sxm-x8). 'moetrace profiles NAME' says where its figures "
        "come from and how far off its fits are; --hw also takes the path of a .toml file.",
    ]
