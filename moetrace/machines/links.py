"""Collectives over the links of one node: latency plus bytes on the wire over bandwidth, with the algorithm's byte factor.

`bytes` is the buffer that one rank contributes. What each rank sends for it, n ranks:

* all_reduce: ``(n-1) B`` up to ``one_shot_bytes`` (every rank sends its buffer to every other), above it the slope of ring
  and two-shot algorithms, ``2 (n-1)/n B`` (Thakur, Rabenseifner, Gropp 2005, doi 10.1177/1094342005051521);
* all_gather: ``(n-1) B``; reduce_scatter, all_to_all, moe_dispatch, moe_collect: ``(n-1)/n B``; send_recv, broadcast: ``B``.

Not modelled: more than one node, contention between collectives, in-switch reduction (it shows as a better efficiency).
"""

from __future__ import annotations

import numpy as np

from moetrace.errors import ProfileError, unknown
from moetrace.hardware import Collective, Link
from moetrace.op import FloatArray


def seconds(kind: str, nbytes: FloatArray, ranks: FloatArray, link: Link) -> tuple[FloatArray, FloatArray]:
    """(latency_s, bandwidth_s) arrays of one kind of collective; both 0 for a group of one.

    Raises ProfileError if the link has no coefficients for `kind`.
    """
    c = coefficients(kind, link)
    n = np.maximum(np.asarray(ranks, dtype=np.float64), 1.0)
    wire = wire_bytes(kind, np.asarray(nbytes, dtype=np.float64), n, c.one_shot_bytes)
    latency = np.where(n > 1, c.latency_s + c.per_rank_s * (n - 1), 0.0)
    return latency, wire / (c.efficiency * link.bytes_per_s)


def coefficients(kind: str, link: Link) -> Collective:
    """Coefficients of one kind; a broadcast without its own takes those of send_recv."""
    name = "send_recv" if kind == "broadcast" and kind not in link.collectives else kind
    if name not in link.collectives:
        raise ProfileError(unknown("collective", kind, link.collectives))
    return link.collectives[name]


def wire_bytes(kind: str, nbytes: FloatArray, ranks: FloatArray, one_shot_bytes: float = 0.0) -> FloatArray:
    """Bytes that each rank sends; 0 for a group of one."""
    n = np.maximum(ranks, 1.0)
    ring = (n - 1) / n
    if kind == "all_reduce":
        small = np.minimum(nbytes, one_shot_bytes)
        sent = small * (n - 1) + (nbytes - small) * 2 * ring  # for two ranks both algorithms send one buffer
    elif kind == "all_gather":
        sent = nbytes * (n - 1)
    elif kind in ("send_recv", "broadcast"):
        sent = nbytes * (n > 1)
    else:
        sent = nbytes * ring
    return np.asarray(sent, dtype=np.float64)


def certain_bytes(kind: str, nbytes: FloatArray, ranks: FloatArray) -> FloatArray:
    """Bytes that must cross each rank's links whatever the algorithm: for lower bounds.

    A dispatch or collect may find all its experts at home, so nothing of it is certain; a reduction in the switch still
    takes every rank's share of the buffer.
    """
    if kind in ("moe_dispatch", "moe_collect"):
        return np.zeros_like(nbytes)
    if kind == "all_reduce":
        n = np.maximum(ranks, 1.0)
        return np.asarray(nbytes * (n - 1) / n, dtype=np.float64)
    return wire_bytes(kind, nbytes, ranks)
