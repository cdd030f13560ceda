"""Communication is known by a table, which a user's own goes before."""

from __future__ import annotations

import re

import pytest

from moetrace import ops
from moetrace.errors import MoetraceError
from moetrace.ops.communication import COLLECTIVES
from moetrace.parse import parse
from tests.made import rank_traces, write

BUILT_IN = {
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevComm*, unsigned long)": "all_reduce",
    "void (anonymous namespace)::multimem_one_shot_all_reduce_kernel<c10::BFloat16>": "all_reduce",
    "void quickreduce::allreduce_prototype_twoshot<AllReduceTwoshot<__half, CodecQ4>>": "all_reduce",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>": "all_reduce",
    "flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport": "all_reduce",
    "void deep_ep::intranode::dispatch<8, 768, 8192>": "moe_dispatch",
    "void deep_ep::internode_ll::combine<true, 7168, 9>": "moe_collect",
    "void tensorrt_llm::kernels::mnnvl_throughput::moeA2ADispatchKernel<8>": "moe_dispatch",
    "void tensorrt_llm::kernels::mnnvl_throughput::moeA2ACombineKernel<8>": "moe_collect",
    "void tensorrt_llm::kernels::moe_comm::moeAllToAllKernel": "all_to_all",
    "void a2a_dispatch_send_kernel<true, 16>": "moe_dispatch",
    "void a2a_combine_recv_kernel<16>": "moe_collect",
    "void mori::moe::EpDispatchIntraNodeKernel<hip_bfloat16>": "moe_dispatch",
    "void mori::moe::EpCombineInterNodeV1Kernel<hip_bfloat16>": "moe_collect",
    "nvshmemi_alltoall_kernel": "all_to_all",
    "ncclDevKernel_SendRecv(ncclDevComm*, unsigned long)": "send_recv",
}


@pytest.mark.parametrize(("kernel", "kind"), BUILT_IN.items())
def test_the_built_in_table(kernel, kind):
    assert ops.recognise(kernel, "") == kind


def table(tmp_path, text):
    path = tmp_path / "names.toml"
    path.write_text(text)
    return path


OWN = """
[[kernel]]
library = "of our own"
kind = "moe_dispatch"
pattern = 'house_scatter|ncclDevKernel_AllReduce'

[[operator]]
kind = "all_gather"
pattern = 'house::gather'
"""


def test_a_user_s_table_goes_before(tmp_path):
    own = ops.communication_names(table(tmp_path, OWN))
    assert ops.recognise("house_scatter_k", "", own) == "moe_dispatch"
    assert ops.recognise("ncclDevKernel_AllReduce", "", own) == "moe_dispatch"
    assert ops.recognise("elementwise_kernel", "house::gather", own) == "all_gather"
    assert ops.recognise("ncclDevKernel_AllGather", "", own) == "all_gather"
    assert ops.recognise("house_scatter_k", "") == "other"


def test_parse_takes_it(tmp_path):
    events = [dict(e, name=e["name"].replace("ncclDevKernel_AllReduce_Sum_bf16", "house_scatter"))
              for e in rank_traces([100], clocks=[0])[0]]  # fmt: skip
    for event in events:
        event["args"].pop("Collective name", None)
    trace = write(tmp_path / "t.json", events)
    kinds = [set(parse(trace, comm_table=t).codes("kind")[1]) for t in (None, table(tmp_path, OWN))]
    assert "moe_dispatch" not in kinds[0] and "moe_dispatch" in kinds[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("[[kernal]]\nkind = 'all_reduce'", "it has 'kernal'"),
        ("kernel = 3", "not a list of entries"),
        ("[[kernel]]\nkind = 'all_reduce'", "kernel 1: expected pattern and kind"),
        ("[[kernel]]\nkind = 'allreduce'\npattern = 'x'", "did you mean 'all_reduce'"),
        ("[[kernel]]\nkind = 'all_reduce'\npattern = '('", "not a regular expression"),
        ("[[operator]]\nkind = 'all_reduce'\npattern = 'x|'", "operator 1: pattern 'x|' would match every name"),
        ("[[kernel]]\nkind = 'all_reduce'\npattern = 4", "would match every name"),
        ("[[kernel", "is not TOML"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_in_a_line(tmp_path, text, said):
    path = table(tmp_path, text)
    with pytest.raises(MoetraceError, match=re.escape(said)) as caught:
        ops.communication_names(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_and_one_too_long(tmp_path, process):
    trace = write(tmp_path / "t.json", rank_traces([100], clocks=[0])[0])
    answer = process("parse", trace, "--comm-table", tmp_path / "none.toml")
    assert answer.status == 2 and answer.err.count("\n") == 1 and "none.toml cannot be read" in answer.err
    with pytest.raises(MoetraceError, match="more than 1 MiB"):
        ops.communication_names(table(tmp_path, "#" * (1 << 20) + "\n#"))


def test_every_kind_of_communication_can_be_named():
    assert set(COLLECTIVES) <= set(ops.KINDS)
    assert {kind for _, kind in ops.communication.NAMES.kernels} == set(COLLECTIVES)
