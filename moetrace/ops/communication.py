"""Collectives and copies: NCCL, RCCL, custom and multimem all-reduce, all-to-all libraries, memcpy and memset.

Dims: `bytes` is the buffer that one rank contributes, `ranks` the size of the group, `stride` the distance between its ranks
where that is stated and not 1. The bytes that cross a link follow
from the algorithm and are the link law's business, not the op's. Names are data: communication.toml, beside this file.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from moetrace.op import Amounts, Op, OpGroup, element_bytes
from moetrace.ops.base import Kind, Seen, numel
from moetrace.ops.names import read_names


def collective_work(op: OpGroup) -> Amounts:
    """The buffer crosses the network; on the way it is read and written once in local memory."""
    return Amounts(
        net_bytes=op["bytes"],
        net_ranks=op.given("ranks", 2.0),
        act_read_bytes=op["bytes"],
        act_write_bytes=op["bytes"],
    )


def copy_work(op: OpGroup) -> Amounts:
    """Bytes read and written on the device; a copy to or from the host crosses only one side here."""
    local = np.equal(op.get("host", 0.0), 0.0)
    return Amounts(act_read_bytes=op["bytes"] * local, act_write_bytes=op["bytes"])


def set_work(op: OpGroup) -> Amounts:
    """Bytes written."""
    return Amounts(act_write_bytes=op["bytes"])


COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "moe_dispatch",
    "moe_collect",
    "send_recv",
    "broadcast",
)
# Those that end on all ranks of their group at about one time, and begin on each when it arrives.
TOGETHER = frozenset(COLLECTIVES) - {"send_recv", "broadcast"}
_EQUAL = ("all_reduce", "reduce_scatter")  # every rank gives as many bytes; of the others each gives its own
KINDS = (
    *(Kind(name, "communication", ("bytes",), collective_work) for name in COLLECTIVES),
    Kind("memcpy", "copy", ("bytes",), copy_work),
    Kind("memset", "copy", ("bytes",), set_work),
)


def matched_name(op: Op) -> str:
    """What a collective is called on all ranks of its group alike: its op without what each rank has of its own."""
    dims = ("bytes", "ranks", "stride") if op.kind in _EQUAL else ("ranks", "stride")
    said = [f"{name}={op[name]:.0f}" for name in dims if op.has(name)]
    return " ".join([op.kind, *([op.dtype] if op.kind in _EQUAL else []), *said])


NAMES = read_names(Path(__file__).with_name("communication.toml"), frozenset(COLLECTIVES))
KERNELS = ((r"^Memcpy", "memcpy"), (r"^Memset", "memset"), *NAMES.kernels)
OPERATORS = NAMES.operators


def dims(kind: str, seen: Seen) -> Op | None:
    """Bytes from the event (copies, NCCL's message size), else from the operator's inputs, else from the model."""
    if kind in ("memcpy", "memset"):
        host = {"host": 1} if re.search(r"HtoD|DtoH|Host", seen.kernel) else {}
        return Op.of(kind, "int8", bytes=seen.nbytes, **host) if seen.nbytes else None
    kind = collective_kind(seen.collective) or (_sent_by(seen.operator) if kind == "send_recv" else kind)
    nbytes = seen.nbytes or _contribution(kind, seen)
    if (
        not nbytes
        and kind == "all_reduce"
        and not seen.collective
        and seen.model is not None
        and seen.tokens is not None
    ):
        # A custom all-reduce states no message: what tensor parallelism reduces is the residual stream.
        nbytes = int(seen.tokens * seen.model.hidden * element_bytes(seen.model.act_dtype))
    ranks = {"ranks": seen.group} if seen.group > 1 else {}
    ranks |= {"stride": seen.stride} if ranks and seen.stride > 1 else {}
    return Op.of(kind, "bf16", bytes=nbytes, **ranks) if nbytes else Op(kind, seen.act_dtype)


def _sent_by(operator: str) -> str:
    """What sends and receives are for: where nothing else says it, the operator around the calls does."""
    return collective_kind(operator) or "send_recv"


def _contribution(kind: str, seen: Seen) -> int:
    """Bytes of the tensor that one rank gives; 0 where no tensor is seen. c10d's gathers and scatters take it last."""
    if not seen.tensors:
        return 0
    if kind in ("all_gather", "reduce_scatter", "all_to_all"):
        shape, dtype = seen.tensors[-1 if "c10d::" in seen.operator else 0]
    else:
        shape, dtype = max(seen.tensors, key=lambda t: numel(t[0]))
    return int(numel(shape) * element_bytes(dtype or "bf16"))


# Names that torch's process groups give to collectives (torch.distributed, ProcessGroupNCCL).
_COLLECTIVE = (
    (re.compile(r"all_?reduce"), "all_reduce"),
    (re.compile(r"all_?gather"), "all_gather"),
    (re.compile(r"reduce_?scatter"), "reduce_scatter"),
    (re.compile(r"all_?to_?all"), "all_to_all"),
    (re.compile(r"broadcast"), "broadcast"),
    (re.compile(r"^(send|recv)"), "send_recv"),
)


def collective_kind(name: str) -> str | None:
    """The kind of a collective by its own name, which wins over its kernel's: all-to-all runs as SendRecv kernels."""
    return next((kind for pattern, kind in _COLLECTIVE if pattern.search(name.lower())), None)
