"""Collectives and copies: bytes by hand, and where they are taken from."""

from __future__ import annotations

import pytest

from moetrace import ops
from moetrace.op import Op
from moetrace.ops.base import Seen
from moetrace.ops.communication import COLLECTIVES


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
