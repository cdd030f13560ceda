"""Scenarios answered together are answered as each alone; numbers in the place of one number behave as each alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.errors import MoetraceError
from moetrace.hardware import load_hardware
from moetrace.model import load_model
from moetrace.replay import simulate
from moetrace.replay.grid.shape import Case, Drafts
from moetrace.replay.grid.vector import Answers, Together
from moetrace.replay.lanes import Diverged, Lanes, Space, each
from moetrace.replay.scenario import Scenario
from moetrace.synthesize import Workload

NUMBERS = st.lists(st.integers(-50, 50), min_size=4, max_size=4)


def product(**values: list[int]) -> dict[str, np.ndarray]:
    grids = np.meshgrid(*values.values(), indexing="ij")
    return {name: grid.ravel().astype(np.int64) for name, grid in zip(values, grids, strict=True)}


def case(model: str, machine: str, *sets: str) -> Case:
    return Case(load_model(model), load_hardware(machine), Scenario.of(*sets))


def answers(asked: Case, columns: Mapping[str, np.ndarray]) -> Answers:
    out = Answers.empty(len(next(iter(columns.values()))))
    together = Together(out)
    together.add(asked, Drafts(columns), 0)
    together.settle()
    return out


def is_answered_alike(asked: Case, columns: Mapping[str, np.ndarray], together: Answers, row: int) -> None:
    """One scenario of many has the figures that simulate gives it alone."""
    texts = [
        *map(str, asked.scenario.settings),
        *(f"{name}={values[row]}" for name, values in columns.items()),
    ]
    try:
        alone = simulate(asked.model, Workload(1, 1, 1), asked.hw, Scenario.of(*texts)).summary
    except MoetraceError:
        assert together.problem[row]
        return
    assert not together.problem[row]
    for name, said in alone["metrics"].items():
        for part, found in zip(("value", "low", "high"), together.metrics[name][:, row], strict=True):
            assert found == pytest.approx(
                float("nan") if said[part] is None else said[part], rel=1e-12, nan_ok=True
            )
    memory = alone["memory"]
    assert together.fits[row] == (-1 if memory["fits"] is None else memory["fits"])
    for found, value in (
        (together.needed_bytes[row], memory["needed_bytes"]),
        (together.largest_batch[row], memory["largest_batch"]),
        (together.wafers[row], alone["wafers"]),
    ):
        assert np.isnan(found) if value is None else found == pytest.approx(value, rel=1e-12)
    for name, found in together.economics.items():
        value = alone["economics"][name]
        assert np.isnan(found[row]) if value is None else found[row] == pytest.approx(value, rel=1e-12)
    for family in alone["families"]:
        found = together.decode_s[family["family"]][row], together.prefill_s[family["family"]][row]
        assert found == pytest.approx((family["decode_s"], family["prefill_s"]), rel=1e-9, abs=1e-12)
    within = alone["context"]["within"]
    assert together.in_context[row] == (-1 if within is None else within)
    assert together.queued[row] == alone["queued"]
    assert together.words[together.beyond[row]] == alone["beyond_fit"]
    assert together.gpus[row] == alone["gpus"]


SGLANG = ("serving=continuous", "engine=sglang")
DRAFT = ("draft=qwen3-0.6b", "draft_tokens=3", "acceptance=0.7")


def of(batch: list[int], input: list[int], output: list[int], **more: list[int]) -> dict[str, np.ndarray]:
    return product(batch=batch, input_len=input, output_len=output, **more)


GRIDS = [
    (("qwen3-30b-a3b", "h100-sxm"), of([1, 2, 33], [1, 700], [1, 2, 3, 512], n_a=[1, 8])),
    (("deepseek-v2-lite", "h100-sxm-x4", "tp=4"), of([1, 16], [100], [1, 512], n_a=[6, 70])),
    (("gpt-oss-20b", "a100-sxm", "kv=fp8"), of([1, 64], [64, 2048], [10, 512])),
    (("olmoe-1b-7b", "h100-sxm-x4", "ep=4"), of([1, 5], [100], [64], n_a=[2, 8])),
    (("olmoe-1b-7b", "h100-sxm", "serving=continuous"), of([1, 2, 33], [100, 9000], [1, 64])),
    (("olmoe-1b-7b", "h100-sxm-x4", "dp=4", "ep=4"), of([4, 33], [100], [64])),
    (("olmoe-1b-7b", "h100-sxm-x4", "dp=4", "ep=4", "serving=continuous"), of([1, 33, 96], [100, 9000], [1, 40])),
    (("olmoe-1b-7b", "h100-sxm", "serving=continuous", "engine=sglang"), of([1, 2, 33], [100, 9000], [1, 2, 64])),
    (("olmoe-1b-7b", "h100-sxm-x4", "dp=4", "ep=4", *SGLANG), of([1, 96, 700], [100, 9000], [2, 40])),
    (("deepseek-v2-lite", "h100-sxm-x4", "dp=2", "tp=2", *SGLANG, "chunk=64"), of([1, 96], [300], [40])),
    (("olmoe-1b-7b", "h100-sxm-x4", "dp=4", *SGLANG, "tokens_per_step=2"), of([1, 700], [100], [40])),
    (("olmoe-1b-7b", "h100-sxm", *SGLANG[:1], "tokens_per_step=2.5", "chunk=256"), of([1, 33], [100, 4096], [2, 40])),
    (("olmoe-1b-7b", "h100-sxm-x4", "dp=4", *SGLANG, "chunk=64", *DRAFT), of([1, 33], [300], [40])),
    (("qwen3-8b", "h100-sxm", "serving=continuous", "engine=sglang", *DRAFT), of([1, 33], [300, 9000], [40])),
    (("deepseek-v2-lite", "h100-sxm-x4", "dp=2", "tp=2", "serving=continuous", "chunk=512"), of([1, 96], [300], [1, 40])),
    (("mixtral-8x7b", "h100-sxm"), of([1, 512], [2048], [2048])),
    (("qwen3-8b", "h100-sxm", "dtype=fp8"), of([1, 512], [2048], [2, 300])),
    (("olmoe-1b-7b", "h100-sxm-x8", "pp=4", "tp=2"), of([1, 3, 33], [1, 300, 3000], [40], n_a=[2, 8])),
    (("deepseek-v2-lite", "h100-sxm-x8", "pp=2", "tp=2", "dp=2", "ep=4"), of([1, 3, 64], [300], [40])),
    (("qwen3-30b-a3b", "h100-sxm-x4", "tp=4", "overlap=two_batch"), of([1, 2, 7, 64], [300], [1, 40])),
    (("olmoe-1b-7b", "h100-sxm-x4", "tp=2", "pp=2", "overlap=two_batch"), of([1, 3, 64], [300, 9000], [40])),
    (("mixtral-8x7b", "h100-sxm-x4", "dp=4", "ep=4", "overlap=two_batch"), of([1, 64], [300, 3000], [40])),
    (("mixtral-8x7b", "h100-sxm-x4", "dp=4", "ep=4", "overlap=two_batch", "serving=continuous"), of([1, 64], [9000], [40])),
    (("qwen3-30b-a3b", "h100-sxm-x16", "dp=16", "ep=16", "overlap=two_batch"), of([1, 170, 5000], [300, 900], [1, 40])),
    (("qwen3-30b-a3b", "h100-sxm-x16", "dp=16", "ep=16", "overlap=two_batch", "engine=vllm"), of([70, 5000], [300], [40])),
    (("olmoe-1b-7b", "cs3", "placement=own"), of([1, 8], [300], [1, 40], n_a=[2, 8])),
    (("deepseek-v3", "cs3", "placement=spread"), of([1, 64], [300, 60000], [1, 40])),
    (("qwen3-8b", "h100-sxm", *DRAFT), of([1, 8], [300], [1, 40])),
    (("qwen3-30b-a3b", "h100-sxm-x4", "tp=4", *DRAFT), of([1, 8], [300], [40])),
    (("qwen3-8b", "cs3", *DRAFT), of([1, 8], [300], [40])),
    (("qwen3-8b", "cs3", "placement=whole", *DRAFT), of([1, 8], [300], [40])),
    (("qwen3-8b", "h100-sxm", "serving=continuous", *DRAFT), of([1, 33], [300, 9000], [1, 40])),
    (("olmoe-1b-7b", "h100-sxm-x4", "dp=4", "ep=4", "serving=continuous", *DRAFT), of([1, 33], [300], [40])),
    (("qwen3-8b", "h100-sxm", "serving=continuous", "draft=olmoe-1b-7b", *DRAFT[1:]), of([1, 33], [300], [40])),
    (("qwen3-30b-a3b", "cs3", "draft=qwen3-14b", *DRAFT[1:]), of([1, 8], [300], [40])),
    (("qwen3-30b-a3b", "cs3", "placement=own", "tokens_per_step=2.5"), of([1, 8], [300], [40])),
    (("mixtral-8x7b", "a100-sxm-x8", "tp=8", "engine=vllm", "dtype=fp8"), of([1, 300], [300], [40], n_a=[1, 2])),
    (("olmoe-1b-7b", "cpu"), of([1, 8], [300], [1, 40])),
    (("olmoe-1b-7b", "h100-sxm", "host=5ms"), of([1, 8], [300], [1, 40])),
    (("olmoe-1b-7b", "h100-sxm", "layers=20"), of([1, 8], [300], [40])),
    (("olmoe-1b-7b", "h100-sxm-x4", "ep=4", "routing=skewed", "eplb=4"), of([1, 8], [300], [40], n_a=[2, 8])),
    (("olmoe-1b-7b", "h100-sxm", "graph=off"), of([1, 8, 300], [300], [1, 40], n_a=[2, 8])),
    (("gpt-oss-20b", "h100-sxm-x4", "graph=off", "tp=4"), of([1, 64], [64], [512])),
    (("llama-3.2-1b", "h100-sxm", "graph=off", "layers=20"), of([1, 64], [64], [40])),
    (("olmoe-1b-7b", "h100-sxm", "engine=sglang@0.5.6"), of([1, 8, 300], [20, 300, 9000], [2, 40], n_a=[2, 8])),
    (
        ("deepseek-v2-lite", "h100-sxm-x4", "serving=continuous", "engine=sglang", "tp=4"),
        of([8, 64], [300, 2048, 2049, 9000], [40]),
    ),
    (
        ("gpt-oss-20b", "h100-sxm-x4", "serving=continuous", "engine=sglang", "dp=4", "ep=4", "overlap=two_batch"),
        of([8, 64], [300, 4000], [40], n_a=[2, 4]),
    ),
    (
        ("olmoe-1b-7b", "b200", "serving=continuous", "engine=sglang@0.5.6", "draft=qwen3-0.6b", "draft_tokens=3"),
        of([8, 64], [300], [40]),
    ),
    (("olmoe-1b-7b", "h100-sxm-x4", "graph=off", "pp=2", "tp=2", "overlap=two_batch"), of([1, 8], [300], [40])),
    (("olmoe-1b-7b", "h100-sxm", "experts=unfused"), of([1, 8, 300], [300], [1, 40], n_a=[2, 8])),
    (("deepseek-v2-lite", "h100-sxm-x4", "experts=unfused", "graph=off", "ep=4"), of([1, 8], [300], [40], n_a=[2, 6])),
    (("qwen3-next-80b-a3b", "h100-sxm-x4", "tp=4"), of([1, 64], [300, 30000], [1, 40], n_a=[2, 10])),
    (("qwen3.5-35b-a3b", "h100-sxm-x4", "serving=continuous", "tp=2", "pp=2"), of([1, 33], [300, 9000], [40])),
    (("qwen3.5-35b-a3b", "h100-sxm", "layers=50", "graph=off", "kv=fp8"), of([1, 8], [300], [40])),
    (("qwen3.5-35b-a3b", "cs3", *DRAFT), of([1, 8], [300], [40])),
    (("olmoe-1b-7b", "cs3", "experts=unfused", "placement=own"), of([1, 8], [300], [40], n_a=[2, 8])),
    (("qwen3-30b-a3b", "h100-sxm", "engine=sglang"), of([1, 9, 12, 13, 17, 600], [300], [1, 40], n_a=[4, 8])),
    (("qwen3-30b-a3b", "h100-sxm-x4", "dp=4", "ep=4", "engine=vllm", "pad=routed"), of([1, 17, 67, 130], [300], [40])),
    (("qwen3-30b-a3b", "h100-sxm-x8", "dp=4", "tp=2", "pad=routed", "overlap=two_batch"), of([1, 17, 67], [300], [40])),
    (("qwen3-30b-a3b", "h100-sxm-x8", "pp=2", "tp=2", "dp=2", "engine=trtllm"), of([3, 17, 67, 290], [300], [40])),
    (("qwen3-30b-a3b", "h100-sxm-x4", "dp=4", "ep=4", "engine=vllm", "overlap=two_batch"), of([1, 127, 128, 132], [100], [40])),
    (("qwen3-30b-a3b", "h100-sxm-x4", "dp=4", "engine=trtllm"), of([1, 17, 63, 64, 66], [300], [40])),
    (("qwen3-8b", "h100-sxm", "engine=sglang", *DRAFT), of([1, 9, 17], [300], [40])),
    (("olmoe-1b-7b", "h100-sxm", "serving=continuous", "chunk=512", "pad=none"), of([17, 32, 33], [512], [32])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "columns"), GRIDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_each_scenario_of_many_is_answered_as_alone(
    asked: tuple[str, ...], columns: dict[str, np.ndarray]
) -> None:
    shape = case(*asked)
    together = answers(shape, columns)
    for row in range(together.fits.size):
        is_answered_alike(shape, columns, together, row)


@given(NUMBERS, NUMBERS, st.integers(1, 9))
def test_arithmetic_is_that_of_each_number(one: list[int], two: list[int], by: int) -> None:
    space = Space({"a": np.array(one), "b": np.array(two)})
    a, b = space.given["a"], space.given["b"]
    both = (a + b * 2 - by) // by + (by - a) * b - -a % by + round(b / by)
    assert isinstance(both, Lanes)
    for found, x, y in zip(both.spread().tolist(), one, two, strict=True):
        assert found == (x + y * 2 - by) // by + (by - x) * y - -x % by + round(y / by)
    assert each(lambda x, y: max(x, y), a, b).spread().tolist() == [
        max(x, y) for x, y in zip(one, two, strict=True)
    ]


@given(NUMBERS, NUMBERS)
def test_a_decision_parts_those_that_decide_differently(one: list[int], two: list[int]) -> None:
    space = Space({"a": np.array(one), "b": np.array(two)})
    true = [x < y for x, y in zip(one, two, strict=True)]
    try:
        decided = bool(space.given["a"] < space.given["b"])
    except Diverged as parted:
        assert parted.mask.tolist() == true and len(set(true)) == 2
    else:
        assert set(true) == {decided}


def test_a_number_is_had_only_where_all_agree() -> None:
    space = Space({"a": np.array([3, 3]), "b": np.array([3, 4])})
    assert int(space.given["a"]) == 3 and list(range(space.given["a"])) == [0, 1, 2]
    with pytest.raises(Diverged) as parted:
        int(space.given["b"])
    assert parted.value.mask.tolist() == [True, False]
    assert f"{space.given['b']:.0f}" == "3..4" and space.given["a"].is_integer()
    with pytest.raises(TypeError):
        space.given["a"] + "x"
