"""Collectives and copies: bytes by hand, and where they are taken from."""

from __future__ import annotations

import pytest

from moetrace import ops
from moetrace.model import load_model
from moetrace.op import Op
from moetrace.ops.base import Seen
from moetrace.ops.communication import COLLECTIVES, collective_kind


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_a_message_crosses_the_network_and_local_memory(kind: str) -> None:
    w = ops.work(Op.of(kind, bytes=8192, ranks=8))
    assert (w.net_bytes, w.net_ranks, w.act_read_bytes, w.act_write_bytes) == (8192, 8, 8192, 8192)
    assert (w.flops, w.weight_bytes, w.kv_bytes) == (0, 0, 0)
    assert ops.work(Op.of(kind, bytes=8192)).net_ranks == 2  # the fewest that can talk
    assert not ops.work(Op.of(kind, ranks=8)).known and ops.family(kind) == "communication"


def test_copies_stay_in_memory() -> None:
    inside, host, fill = (
        ops.work(Op.of(kind, "int8", bytes=64, **more))
        for kind, more in (("memcpy", {}), ("memcpy", {"host": 1}), ("memset", {}))
    )
    assert (inside.act_read_bytes, inside.act_write_bytes) == (64, 64)
    assert (host.act_read_bytes, host.act_write_bytes) == (0, 64)  # one end is the host's memory
    assert (fill.act_read_bytes, fill.act_write_bytes) == (0, 64)
    assert inside.net_bytes == host.net_bytes == 0 and ops.family("memcpy") == ops.family("memset") == "copy"


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("Memcpy HtoD (Pageable -> Device)", True),
        ("Memcpy DtoH (Device -> Pinned)", True),
        ("Memcpy DtoD (Device -> Device)", False),
    ],
)
def test_a_copy_has_the_bytes_that_the_event_states(name: str, host: bool) -> None:
    op = ops.build("memcpy", Seen(name, nbytes=9216))
    assert op == Op.of("memcpy", "int8", bytes=9216, **({"host": 1} if host else {}))
    assert ops.build("memcpy", Seen(name)) == Op("memcpy")


def test_a_collective_s_size_comes_from_its_message_else_from_its_tensor() -> None:
    message = Seen("ncclDevKernel_AllReduce", nbytes=4096, group=8, shapes=((7, 7),), dtypes=("bf16",))
    assert ops.build("all_reduce", message) == Op.of("all_reduce", bytes=4096, ranks=8)
    tensor = Seen("multimem_all_reduce_kernel", "vllm::all_reduce", ((888, 2880), ()), ("bf16", ""))
    assert ops.build("all_reduce", tensor) == Op.of("all_reduce", bytes=888 * 2880 * 2)
    assert ops.build("all_reduce", Seen("ncclDevKernel_AllReduce", group=8)) == Op("all_reduce")


def test_a_gather_counts_what_one_rank_gives() -> None:
    base = Seen("ncclDevKernel", "c10d::_allgather_base_", ((256, 64), (32, 64)), ("bf16", "bf16"), group=8)
    assert ops.build("all_gather", base) == Op.of("all_gather", bytes=32 * 64 * 2, ranks=8)
    scatter = Seen("k", "c10d::_reduce_scatter_base_", ((32, 64), (256, 64)), ("bf16", "bf16"), group=8)
    assert ops.build("reduce_scatter", scatter) == Op.of("reduce_scatter", bytes=256 * 64 * 2, ranks=8)
    engine = Seen("k", "vllm::all_gather", ((32, 64),), ("bf16",), group=8)
    assert ops.build("all_gather", engine) == Op.of("all_gather", bytes=32 * 64 * 2, ranks=8)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("allreduce", "all_reduce"), ("allreduce_coalesced", "all_reduce"), ("_allgather_base", "all_gather"),
        ("all_gather", "all_gather"), ("_reduce_scatter_base", "reduce_scatter"), ("all_to_allv", "all_to_all"),
        ("_broadcast_oop", "broadcast"), ("send", "send_recv"), ("recv 0->1", "send_recv"), ("barrier", None), ("", None),
    ],
)  # fmt: skip
def test_a_collective_s_own_name_decides(name: str, kind: str | None) -> None:
    assert collective_kind(name) == kind
    op = ops.build("send_recv", Seen("ncclDevKernel_SendRecv", nbytes=64, collective=name))
    assert op == Op.of(kind or "send_recv", bytes=64)


def test_only_an_all_reduce_that_states_nothing_takes_its_bytes_from_the_model() -> None:
    model = load_model("gpt-oss-20b")
    plain = Seen("cross_device_reduce_1stage", tokens=4, model=model)
    assert ops.build("all_reduce", plain) == Op.of("all_reduce", bytes=4 * 2880 * 2)
    assert not ops.work(ops.build("all_gather", plain)).known
    stated = Seen("ncclDevKernel_AllReduce", tokens=4, model=model, collective="allreduce")
    assert not ops.work(ops.build("all_reduce", stated)).known  # a message of a type that has no known width


def test_the_operator_around_sends_says_what_they_are_for():
    """emit_nvtx around torch's all_to_all, which NCCL runs as sends and receives; a point-to-point send stays one."""
    for operator, kind in (
        ("nccl:all_to_all", "all_to_all"),
        ("nccl:send 0->1", "send_recv"),
        ("", "send_recv"),
    ):
        assert (
            ops.build("send_recv", Seen("ncclDevKernel_SendRecv", nbytes=64, operator=operator)).kind == kind
        )
    assert (
        ops.build("all_reduce", Seen("ncclDevKernel_AllReduce", nbytes=64, operator="nccl:all_to_all")).kind
        == "all_reduce"
    )
