"""Costs: `price` puts works on a machine and is the only place where the two meet; `cost` does so for a table of ops."""

from __future__ import annotations

from moetrace.cost.anchors import read_anchors
from moetrace.cost.bulk import Pricing, Tally, context_for, cost, cost_file
from moetrace.cost.price import DEFAULT, PriceContext, price

__all__ = [
    "DEFAULT",
    "PriceContext",
    "Pricing",
    "Tally",
    "context_for",
    "cost",
    "cost_file",
    "price",
    "read_anchors",
]
