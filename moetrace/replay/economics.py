"""Energy and money of a simulation: tokens per joule from the profile's power, cost per million tokens from a user's price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetrace.errors import ScenarioError, unknown
from moetrace.hardware import Hardware


def economics(
    hw: Hardware, output_per_s: float | None, wafers: int | None, price_per_hour: float | None = None
) -> dict[str, Any]:
    """What a machine draws and costs at `output_per_s` tokens/s of its whole: JSON-able, None where not known.

    `devices` are GPUs, or as many wafers as the model takes. `power_w` is the most that all of them draw (boards alone; a
    wafer's is the system's), so tokens per joule are at least what is said. `price_per_hour` is for one device: there is no
    default. Raises ScenarioError for a price that is not above 0.
    """
    if price_per_hour is not None and not (isinstance(price_per_hour, int | float) and price_per_hour > 0):
        raise ScenarioError(f"price_per_hour={price_per_hour}: expected a price above 0 per device and hour")
    devices = (wafers or 1) if hw.device_class == "wafer" else hw.gpus
    power = None if hw.power_w is None else hw.power_w * devices
    known = output_per_s is not None and output_per_s > 0
    return {
        "devices": devices,
        "power_w": power,
        "tokens_per_joule": output_per_s / power if known and power and output_per_s else None,
        "price_per_hour": price_per_hour,
        "cost_per_million_tokens": (
            price_per_hour * devices / 3600 / output_per_s * 1e6
            if price_per_hour is not None and known and output_per_s
            else None
        ),
    }


def read_prices(texts: Sequence[str], machines: Sequence[Hardware]) -> dict[str, float]:
    """The price of one device per hour by machine, from texts such as ``2.5`` or ``h100-sxm=2.5,cs3=30``.

    A price without a name is that of the machines that no other names. Raises ScenarioError.
    """
    names = {machine.base or machine.name for machine in machines}
    found: dict[str, float] = {}
    usual: float | None = None
    for text in (part for whole in texts for part in whole.split(",")):
        name, equals, value = text.rpartition("=")
        try:
            price = float(value)
        except ValueError:
            price = -1.0
        if not 0 < price < 1e9:
            raise ScenarioError(f"--price-per-hour {text}: expected a price above 0, or NAME=PRICE")
        if equals and name not in names:
            raise ScenarioError(f"--price-per-hour {text}: {unknown('machine', name, names)}")
        if name in found or (not equals and usual is not None):
            raise ScenarioError(
                f"--price-per-hour {text}: a price of {name or 'all machines'} is given twice"
            )
        if equals:
            found[name] = price
        else:
            usual = price
    return found if usual is None else {**dict.fromkeys(names, usual), **found}
