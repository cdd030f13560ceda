"""What NCCL's ranges carry: bytes and ranks of the kernels launched in them, binary or JSON, alone or in groups."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.formats import nsys_nccl
from moetrace.parse import parse
from tests.made_nsys import API, KERNEL_TABLE, NVTX, call, kernel, save, span

COMM, CALL, PEER, RANKS = 16777230, 16777223, 16777226, 16777218
HASH = 0xFEDCBA9876543210


def entry(schema, kind, name, offset, domain=1):
    return {"domainId": domain, "schemaId": schema, "idx": 0, "type": kind, "name": name, "offset": offset}


ENTRIES = [
    *(entry(schema, 18, "NCCL communicator ID", None) for schema in (COMM, CALL, PEER, RANKS)),
    *(entry(schema, 22, "Message size [bytes]", 8) for schema in (CALL, PEER)),
    entry(CALL, 16777232, "Reduction operation", 16),
    entry(PEER, 5, "Peer rank", 16),
    entry(RANKS, 5, "No. of ranks", 8),
]


def packed(schema, *numbers):
    """A payload as exports of 2026 have it: four numbers of 8 bytes, then the communicator and what the schema says."""
    body = struct.pack("<Q", HASH) + b"".join(numbers)
    return struct.pack("<QQQQ", 1, schema, len(body), 32 + len(body)) + body


def size(n):
    return struct.pack("<Q", n)


def rank(n):
    return struct.pack("<ii", n, 0)


INIT = span(1, 2, "ncclCommInitRankConfig", domainId=1, binaryData=packed(RANKS, rank(4)))


def parsed(tmp_path, ranges, kernel_name="ncclDevKernel_AllReduce_Sum_bf16_RING_LL", **tables):
    made = {
        KERNEL_TABLE: [kernel(300, 5, name=kernel_name)],
        API: [call(205, 5, name="cudaLaunchKernelExC_v11060")],
        NVTX: ranges,
        nsys_nccl.ENTRIES: ENTRIES,
    } | tables
    frame = parse(save(tmp_path / "t.sqlite", **made)).to_pandas()
    assert len(frame) == 1
    return frame.op[0]


@pytest.mark.parametrize(
    ("name", "kernel_name", "expected"),
    [
        ("ncclAllReduce", "ncclDevKernel_AllReduce_Sum_bf16", "all_reduce bf16 bytes=4096 ranks=4"),
        ("ncclAllGather", "ncclDevKernel_AllGather_RING_LL", "all_gather bf16 bytes=4096 ranks=4"),
        ("ncclReduceScatter", "ncclDevKernel_ReduceScatter_Sum", "reduce_scatter bf16 bytes=16384 ranks=4"),
        ("ncclBroadcast", "ncclDevKernel_Broadcast_RING_LL", "broadcast bf16 bytes=4096 ranks=4"),
    ],
)
def test_a_call_alone(name, kernel_name, expected, tmp_path):
    ranges = [INIT, span(200, 210, name, domainId=1, binaryData=packed(CALL, size(4096)))]
    assert parsed(tmp_path, ranges, kernel_name) == expected


def test_json_says_the_same(tmp_path):
    said = {"payload": {"NCCL communicator ID": hex(HASH), "Message size [bytes]": "4096"}}
    init = {"NCCL communicator ID": HASH, "No. of ranks": 4}
    ranges = [
        span(1, 2, "ncclCommInitRank", jsonText=json.dumps(init)),
        span(200, 210, "ncclAllReduce", jsonTextId=3),
    ]
    strings = [{"id": 3, "value": json.dumps(said)}]
    assert parsed(tmp_path, ranges, StringIds=strings) == "all_reduce bf16 bytes=4096 ranks=4"


def test_registered_names_and_a_column_of_hexadecimal_text(tmp_path):
    data = packed(CALL, size(64)).hex()
    ranges = [INIT, span(200, 210, None, textId=9, binaryData=data)]
    assert (
        parsed(tmp_path, ranges, StringIds=[{"id": 9, "value": "ncclAllReduce"}])
        == "all_reduce bf16 bytes=64 ranks=4"
    )


def group(peers, end=(200, 210)):
    data = [packed(PEER, size(1000), rank(peer)) for peer in peers]
    sends = [span(102 + 4 * i, 103 + 4 * i, "ncclSend", binaryData=d) for i, d in enumerate(data)]
    gets = [span(104 + 4 * i, 105 + 4 * i, "ncclRecv", binaryData=d) for i, d in enumerate(data)]
    return [INIT, span(100, 101, "ncclGroupStart"), *sends, *gets, span(*end, "ncclGroupEnd")]


def test_a_group_is_launched_at_its_end(tmp_path):
    name = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
    assert parsed(tmp_path, group(range(4)), name) == "all_to_all bf16 bytes=4000 ranks=4"
    (tmp_path / "one").mkdir()
    assert parsed(tmp_path / "one", group([1]), name) == "send_recv bf16 bytes=1000 ranks=4"


def test_nested_groups_are_one(tmp_path):
    nested = [
        span(90, 91, "ncclGroupStart"),
        *group(range(4), end=(150, 151)),
        span(200, 210, "ncclGroupEnd"),
    ]
    assert parsed(tmp_path, nested, "ncclDevKernel_SendRecv") == "all_to_all bf16 bytes=4000 ranks=4"


def test_a_group_of_several_kinds_says_nothing(tmp_path):
    mixed = group([1])
    mixed.insert(2, span(101, 102, "ncclAllReduce", binaryData=packed(CALL, size(8))))
    assert "bytes" not in parsed(tmp_path, mixed, "ncclDevKernel_SendRecv")


def test_another_thread_and_another_process_have_their_own_calls(tmp_path):
    for i, where in enumerate(({"thread": 2}, {"process": 2})):
        (folder := tmp_path / str(i)).mkdir()
        ranges = [INIT, span(200, 210, "ncclAllReduce", binaryData=packed(CALL, size(8)), **where)]
        calls = {API: [call(205, 5), call(205, 5, process=2)]}
        assert "bytes" not in parsed(folder, ranges, **calls)


@given(st.binary(max_size=80) | st.text(max_size=30) | st.integers() | st.none())
def test_any_payload_is_read_or_nothing(data):
    schemas = {(1, CALL): [("Message size [bytes]", "<Q", 8)]}
    assert set(nsys_nccl._unpacked(data, schemas)) <= {"Message size [bytes]"}
    if isinstance(data, str):
        assert isinstance(nsys_nccl._spelled(data), dict)


@pytest.mark.parametrize("cut", [0, 8, 31, 32, 40, 47])
def test_a_payload_that_is_cut_off_says_nothing(cut, tmp_path):
    ranges = [INIT, span(200, 210, "ncclAllReduce", binaryData=packed(CALL, size(4096))[:cut])]
    assert "bytes" not in parsed(tmp_path, ranges)


def test_a_huge_payload_is_not_read(tmp_path):
    ranges = [INIT, span(200, 210, "ncclAllReduce", binaryData=packed(CALL, size(4096)) + bytes(1 << 20))]
    assert "bytes" not in parsed(tmp_path, ranges)
