"""What collectives send: bytes on each rank's links, on its share of the network between nodes, and those that are certain.

`bytes` is the buffer that one rank contributes. What each rank sends for it, n ranks (Thakur, Rabenseifner, Gropp 2005, doi
10.1177/1094342005051521): all_reduce ``2 (n-1)/n B`` (ring, two-shot; ``(n-1) B`` in one shot), all_gather ``(n-1) B``,
reduce_scatter and all_to_all ``(n-1)/n B``, send_recv and broadcast ``B``. Their time: machines/forms/collectives.py.
"""

from __future__ import annotations

import numpy as np

from moetrace.op import FloatArray


def wire_bytes(kind: str, nbytes: FloatArray, ranks: FloatArray) -> FloatArray:
    """Bytes that each rank sends; 0 for a group of one."""
    n = np.maximum(ranks, 1.0)
    factor = {
        "all_reduce": 2 * (n - 1) / n,
        "all_gather": n - 1,
        "send_recv": np.minimum(n - 1, 1.0),
        "broadcast": np.minimum(n - 1, 1.0),
    }
    return np.asarray(nbytes * factor.get(kind, (n - 1) / n), dtype=np.float64)


def certain_bytes(kind: str, nbytes: FloatArray, ranks: FloatArray) -> FloatArray:
    """Bytes that must cross each rank's links whatever the algorithm: for lower bounds.

    A dispatch or collect may find all its experts at home, so nothing of it is certain; a reduction in the switch still
    takes every rank's share of the buffer.
    """
    if kind in ("moe_dispatch", "moe_collect"):
        return np.zeros_like(nbytes)
    sent = wire_bytes(kind, nbytes, ranks)
    return sent / 2 if kind == "all_reduce" else sent


def network_bytes(kind: str, nbytes: FloatArray, ranks: FloatArray, domain: float) -> FloatArray:
    """Bytes that each rank's share of the network takes; 0 within one node of `domain` devices.

    A node's devices share out what the node must send: the other nodes' part of what one rank sends to all.
    """
    n = np.maximum(ranks, 1.0)
    nodes, inside = n / domain, np.minimum(n, domain)
    beyond = np.maximum(0.0, 1.0 - 1.0 / np.maximum(nodes, 1.0))
    per_rank = {"all_reduce": 2.0 / inside, "all_gather": n / inside, "reduce_scatter": 1.0 / inside}
    return np.asarray(nbytes * beyond * per_rank.get(kind, 1.0), dtype=np.float64)
