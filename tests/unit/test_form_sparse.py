"""The forms of an indexer's scores and of its choice, by hand; MLA over what it picks, by MLA's law."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace import ops
from moetrace.cost import PriceContext, beyond, price
from moetrace.hardware import Family, Hardware, load_hardware
from moetrace.machines.forms import FORMS, Setting
from moetrace.machines.forms.base import Cache
from moetrace.op import Cost, Op

SCORES = Op.of("index_scores", "fp8", heads=64, head_dim=128, batch=256, kv=256 * 8192)


def cost(op: Op, machine: str, engine: str = "any", cache: Cache = "cold") -> Cost:
    return price(ops.works([op]), load_hardware(machine), context=PriceContext(engine=engine, cache=cache))[0]


def test_scores_take_matrix_and_vector_units_in_turns_by_hand() -> None:
    """H20: 296 TFLOP/s in FP8, 44 in fp32; 2,097,152 keys x 64 heads take 116.1 and 12.2 us, memory 102."""
    found = cost(SCORES, "h20")
    pairs = 256 * 8192 * 64
    assert found.compute_s == pytest.approx(pairs * 2 * 128 / 296e12 + pairs * 4 / 44e12)
    assert (
        found.memory_s == pytest.approx(ops.work(SCORES).bytes / (0.7 * 4e12))
        and found.memory_s < found.compute_s
    )
    assert found.expected_s == pytest.approx(3e-6 + found.compute_s)


def test_scores_of_few_heads_stream_their_keys() -> None:
    found = cost(SCORES.with_dims(heads=1), "h20")
    assert found.expected_s == pytest.approx(3e-6 + found.memory_s) and found.compute_s < found.memory_s / 10


# us: vLLM issue 43457 (H20), TensorRT-LLM pull request 13219 (B200), SGLang issue 11989 (taken for an H200)
@pytest.mark.parametrize(
    ("machine", "batch", "context", "queries", "us", "within"),
    [
        ("h20", 256, 8192, 1, 130.6, 0.03), ("h20", 256, 8192, 2, 251.9, 0.04), ("h20", 256, 8192, 3, 380.7, 0.03),
        ("h20", 256, 4096, 1, 68.3, 0.03), ("h20", 256, 4096, 2, 130.1, 0.03),
        ("b200", 1, 32768, 1, 3.8, 0.3), ("b200", 8, 65536, 1, 9.4, 0.3), ("b200", 32, 65536, 1, 46.6, 0.21),
        ("h200-sxm", 1, 4096, 2048, 103, 0.3), ("h200-sxm", 1, 32768, 2048, 931, 0.2),
    ],
)  # fmt: skip
def test_scores_near_what_was_published(
    machine: str, batch: int, context: int, queries: int, us: float, within: float
) -> None:
    dims = {"heads": 64, "head_dim": 128, "batch": batch, "kv": batch * context, "q": batch * queries}
    found = cost(Op.of("index_scores", "fp8", **dims), machine, cache="warm")
    assert found.expected_s * 1e6 == pytest.approx(us, rel=within)
    assert found.expected_s / (1 + found.error) < us * 1e-6 < found.expected_s * (1 + found.error)


def select(rows: int, values: int, processors: float = 100.0) -> float:
    """Seconds of a choice on a machine of 1 GHz whose memory takes no time."""
    import dataclasses

    hw: Hardware = dataclasses.replace(load_hardware("h100-sxm"), multiprocessors=processors, clock_hz=1e9)
    hw = dataclasses.replace(hw, memory=dataclasses.replace(hw.memory, bytes_per_s=1e30))
    family: Family = hw.families["index_topk"]
    works = ops.works([Op.of("index_topk", "fp32", batch=rows, kv=rows * values, chosen=2048)])
    return float(FORMS["select"].seconds(family.value, works, Setting(hw, np.full(1, np.inf))).expected_s[0])


def test_a_choice_walks_each_row_on_a_processor_by_hand() -> None:
    assert select(1, 10_000) == pytest.approx(3e-6 + 10e-6)
    assert select(100, 10_000) == select(1, 10_000)
    assert select(150, 10_000) == pytest.approx(3e-6 + 15e-6)  # one row and a half on each


def test_idle_processors_share_a_long_row_by_hand() -> None:
    """From 32,768 values on, in parts of so many; no more parts than processors."""
    assert select(1, 32_768) == pytest.approx(3e-6 + 32.768e-6)
    assert select(1, 65_536) == pytest.approx(select(1, 32_768))
    assert select(50, 131_072) == pytest.approx(3e-6 + 65.536e-6)
    assert select(100, 131_072) == pytest.approx(3e-6 + 131.072e-6)


# us on B200: TensorRT-LLM's tech blog 15; FlashInfer pull request 2461 (SGLang's kernel); vLLM pull request 37421 (its second)
@pytest.mark.parametrize(
    ("rows", "values", "us"),
    [
        (64, 9295, 14.3),
        (1, 4096, 5.17),
        (1, 16384, 15.39),
        (1, 65536, 40.88),
        (4, 16384, 13.48),
        (4, 163840, 22.09),
    ],
)
def test_a_choice_lies_within_its_error_of_what_was_published(rows: int, values: int, us: float) -> None:
    found = cost(Op.of("index_topk", "fp32", batch=rows, kv=rows * values, chosen=2048), "b200")
    assert found.expected_s / (1 + found.error) < us * 1e-6 < found.expected_s * (1 + found.error)


MLA = {"heads": 128, "kv_lora": 512, "rope": 64}


def test_mla_over_what_is_picked_takes_mlas_time_and_a_wider_error() -> None:
    dims = {**MLA, "batch": 64, "kv": 64 * 2048}
    for engine in ("any", "vllm", "sglang", "trtllm"):
        whole = cost(Op.of("mla_attention", "bf16", **dims), "h100-sxm", engine)
        picked = cost(Op.of("sparse_mla", "bf16", **dims, chosen=2048), "h100-sxm", engine)
        assert picked.expected_s == whole.expected_s and picked.error > max(whole.error, 0.59)


def test_queries_of_one_sequence_share_no_tile() -> None:
    """Each picks its own tokens, so that 256 of them take what 256 sequences do, but for keys that are read once."""
    one = cost(Op.of("sparse_mla", "bf16", **MLA, batch=1, kv=8192, q=256, chosen=2048), "h100-sxm", "trtllm")
    many = cost(Op.of("mla_attention", "bf16", **MLA, batch=256, kv=256 * 2048), "h100-sxm", "trtllm")
    assert one.compute_s == pytest.approx(many.compute_s) and one.fixed_s == pytest.approx(many.fixed_s)
    assert one.memory_s < many.memory_s / 5
    # and 16 heads of a rank fill a tile of 64 rows, whatever the number of queries
    few = Op.of("sparse_mla", "bf16", **{**MLA, "heads": 16}, batch=1, kv=8192, q=256, chosen=2048)
    full = few.with_dims(heads=64)
    assert cost(few, "h100-sxm", "trtllm").compute_s == pytest.approx(
        cost(full, "h100-sxm", "trtllm").compute_s
    )


def test_mla_in_fp8_is_flashmlas_whatever_the_engine() -> None:
    dims = {**MLA, "batch": 64, "kv": 64 * 2048}
    whole = cost(Op.of("mla_attention", "fp8/bf16", **dims), "h100-sxm", "trtllm")
    for engine in ("any", "vllm", "sglang", "trtllm"):
        picked = cost(Op.of("sparse_mla", "fp8/bf16", **dims, chosen=2048), "h100-sxm", engine)
        assert picked.expected_s == whole.expected_s


# github.com/deepseek-ai/FlashMLA: 410 TFLOP/s of 128 sequences with two queries on H800 over a cache in FP8;
# SGLang pull request 25751: 4,096 queries of one sequence on an H200 (its bf16 kernel)
@pytest.mark.parametrize(
    ("machine", "dtype", "batch", "context", "queries", "us"),
    [
        ("h800-sxm", "fp8/bf16", 128, 32768, 2, 356.2),
        ("h200-sxm", "bf16", 1, 8192, 4096, 3489.7), ("h200-sxm", "bf16", 1, 32768, 4096, 4138.1),
        ("h200-sxm", "bf16", 1, 65536, 4096, 4385.4),
    ],
)  # fmt: skip
def test_mla_over_what_is_picked_lies_within_its_error_of_what_was_published(
    machine: str, dtype: str, batch: int, context: int, queries: int, us: float
) -> None:
    read = batch * min(context, 2048 * queries)
    op = Op.of("sparse_mla", dtype, **MLA, batch=batch, kv=read, q=batch * queries, chosen=2048)
    for engine in ("any", "vllm", "sglang", "trtllm"):
        found = cost(op, machine, engine)
        assert found.expected_s / (1 + found.error) < us * 1e-6 < found.expected_s * (1 + found.error)


@pytest.mark.parametrize("machine", ["h100-sxm", "b200", "mi300x"])
def test_what_was_not_measured_is_named(machine: str) -> None:
    def reasons(op: Op) -> set[str]:
        return {
            why
            for why, which in beyond.beyond(ops.works([op]), load_hardware(machine), PriceContext())
            if which.any()
        }

    assert reasons(SCORES) == {"index_scores: assumed, no kernel of it was measured"}
    picked = Op.of("sparse_mla", "bf16", **MLA, batch=8, kv=8 * 2048, chosen=2048)
    whole = Op.of("mla_attention", "bf16", **MLA, batch=8, kv=8 * 2048)
    assert reasons(picked) - reasons(whole) == {
        "sparse_mla: coefficients of mla_attention, no kernel of its own was measured"
    }
