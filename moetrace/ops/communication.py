"""Collectives and copies: NCCL, RCCL, custom and multimem all-reduce, all-to-all libraries, memcpy and memset.

Dims: `bytes` is the buffer that one rank contributes, `ranks` the size of the group. The bytes that cross a link follow
from the algorithm and are the link law's business, not the op's.
"""

from __future__ import annotations

import re

from moetrace.op import Op, Work, element_bytes
from moetrace.ops.base import Kind, Seen, numel


def collective_work(op: Op) -> Work:
    """The buffer crosses the network; on the way it is read and written once in local memory."""
    return Work(
        net_bytes=op["bytes"],
        net_ranks=op.get("ranks", 2) or 2,
        act_read_bytes=op["bytes"],
        act_write_bytes=op["bytes"],
    )


def copy_work(op: Op) -> Work:
    """Bytes read and written on the device; a copy to or from the host crosses only one side here."""
    host = bool(op.get("host", 0))
    return Work(act_read_bytes=op["bytes"] * (not host), act_write_bytes=op["bytes"])


def set_work(op: Op) -> Work:
    """Bytes written."""
    return Work(act_write_bytes=op["bytes"])


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
KINDS = (
    *(Kind(name, "communication", ("bytes",), collective_work) for name in COLLECTIVES),
    Kind("memcpy", "copy", ("bytes",), copy_work),
    Kind("memset", "copy", ("bytes",), set_work),
)

KERNELS = (
    (r"^Memcpy", "memcpy"),
    (r"^Memset", "memset"),
    (
        r"(?i)nccl\w*(Kernel|Dev)\w*_?AllReduce|ncclDevKernel_AllReduce|multimem_all_reduce|one_shot_all_reduce|two_shot_all_reduce|cross_device_reduce|custom_all_?reduce|allreduce_fusion|AllReduceKernel|quick_?reduce|quick_all_reduce|oneshotAllreduce|twoshotAllreduce|userbuffers.*allreduce|mnnvl.*allreduce",
        "all_reduce",
    ),
    (r"(?i)nccl\w*AllGather|multimem_all_gather|all_gather_kernel", "all_gather"),
    (r"(?i)nccl\w*ReduceScatter|reduce_scatter", "reduce_scatter"),
    (r"(?i)nccl\w*Broadcast", "broadcast"),
    (
        r"(?i)(deep_ep|dpsk::ep|internode|intranode)\w*.*(::|_)(notify_|cached_notify_?)?dispatch(?!_layout)|moeA2ADispatch|AllToAllDispatch|a2a_dispatch|moeAllToAllDispatch|pplx.*dispatch",
        "moe_dispatch",
    ),
    (
        r"(?i)(deep_ep|dpsk::ep|internode|intranode)\w*.*(::|_)(cached_notify_?)?combine|(deep_ep|dpsk::ep|internode|intranode).*notify|moeA2ACombine|AllToAllCombine|a2a_combine|moeAllToAllCombine|pplx.*combine",
        "moe_collect",
    ),
    (r"(?i)all_?to_?all|nvshmem\w*alltoall", "all_to_all"),
    (r"(?i)nccl\w*SendRecv|ncclKernel_Send|ncclKernel_Recv", "send_recv"),
    (r"(?i)^nccl|rccl", "all_reduce"),
)
OPERATORS = (
    (r"(?i)(nccl|gloo|c10d)::?_?all_?reduce|multimem_all_reduce|vllm::all_reduce", "all_reduce"),
    (r"(?i)(nccl|gloo|c10d)::?_?all_?gather", "all_gather"),
    (r"(?i)(nccl|gloo|c10d)::?_?reduce_scatter", "reduce_scatter"),
    (r"(?i)(nccl|gloo|c10d)::?_?all_?to_?all", "all_to_all"),
)


def dims(kind: str, seen: Seen) -> Op | None:
    """Bytes from the event (copies, NCCL's message size) or from the operator's first input."""
    if kind in ("memcpy", "memset"):
        host = {"host": 1} if re.search(r"HtoD|DtoH|Host", seen.kernel) else {}
        return Op.of(kind, "int8", bytes=seen.nbytes, **host) if seen.nbytes else None
    nbytes = seen.nbytes
    if not nbytes and seen.tensors:
        shape, dtype = max(seen.tensors, key=lambda t: numel(t[0]))
        nbytes = int(numel(shape) * element_bytes(dtype or "bf16"))
    ranks = {"ranks": seen.group} if seen.group > 1 else {}
    return Op.of(kind, "bf16", bytes=nbytes, **ranks) if nbytes else None
