"""What there is to choose from: machines and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moetrace import units
from moetrace.report.tables import DASH, Block, Table, rate, size

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
        "NAME-xN is N of them joined by their link (h100-sxm-x8). docs/hardware.md says where every figure comes from; "
        "--hw also takes the path of a .toml file.",
    ]
