"""DEP: DeepEP's README, latency of dispatch (FP8) and combine (BF16) of 128 tokens per GPU on H800 and its network.

Not recomputed: its bandwidths, of which neither the processors that send nor the bytes that count are stated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moetrace.cost import price
from moetrace.cost.beyond import TRANSFERRED, beyond
from moetrace.cost.price import PriceContext
from moetrace.op import Op, OpColumns
from moetrace.ops import works
from moetrace.validate.entry import Entry, Estimate, RefusalError, scored
from moetrace.validate.figure import Figure
from moetrace.validate.simulating import machine_of

KINDS = ("DEP",)
_EXPERTS = 256  # of the DeepSeek-V3 setting that the table names
_KINDS = {"ep_dispatch_latency": ("moe_dispatch", 1), "ep_combine_latency": ("moe_collect", 2)}


def entries(figure: Figure, among: Sequence[Figure]) -> list[Entry]:
    """The entry of a latency; its note says which of its sizes no fit saw."""
    estimate, unseen = _latency(figure)
    note = "; ".join([f"{_EXPERTS} experts are taken", *(f"extrapolated: {reason}" for reason in unseen)])
    return [scored(figure, estimate, note, per=1e-6)]


def _latency(figure: Figure) -> tuple[Estimate, list[str]]:
    """The estimate, and in words what about it the coefficients were not fitted to, beside the machine."""
    if figure.metric not in _KINDS:
        raise RefusalError("how many processors send, and which bytes count, is not stated")
    kind, width = _KINDS[figure.metric]
    hidden = re.search(r"hidden (\d+)", figure.model)
    tokens = re.match(r"(\d+)/GPU", figure.batch)
    gpus, topk = figure.whole("n_gpus"), figure.whole("n_a")
    if not (hidden and tokens and gpus and topk):
        raise RefusalError("hidden size, tokens per GPU, GPUs and n_a are not all stated")
    rows = int(tokens[1]) * topk
    op = Op.of(
        kind, "bf16", bytes=rows * int(hidden[1]) * width, ranks=gpus, experts=_EXPERTS, topk=topk,
        tokens=int(tokens[1]), hidden=int(hidden[1]),
    )  # fmt: skip
    hw = machine_of(figure.hw, gpus)
    work = works(OpColumns.of([op]))
    cost = price(work, hw)[0]
    value, error = cost.expected_s, cost.error
    unseen = [reason for reason, _ in beyond(work, hw, PriceContext()) if TRANSFERRED not in reason]
    return Estimate(value, value / (1 + error), value * (1 + error), hw.name, str(op)), unseen
