"""Serving engines are read in one way wherever one is stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from moetrace.cost import cost
from moetrace.engines import engine_among, stated
from moetrace.errors import ScenarioError
from moetrace.replay import Scenario
from moetrace.validate.measured import measured_table
from tests.conftest import Answer

OPS = {"op": ["moe_module fp8 tokens=8 hidden=4096 inter=1536 experts=128 topk=8 distinct=50"]}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        *((t, ("vllm", "0.19")) for t in ("vLLM 0.19", "vllm@0.19", "vLLM v0.19", "vllm==0.19", "VLLM-0.19", "vllm_v0.19")),
        *((t, ("sglang", "0.5.6")) for t in ("sglang-0.5.6", "SGLang@v0.5.6", " SGLang 0.5.6 ")),
        *((t, ("trtllm", "1.3.0rc10")) for t in ("TensorRT-LLM 1.3.0rc10", "TensorRT LLM-1.3.0rc10", "trtllm@1.3.0rc10")),
        *((t, ("trtllm", "")) for t in ("TensorRT_LLM", "TensorRTLLM", "trt-llm", "tensorrt-llm", "trtllm")),
        ("SGLang", ("sglang", "")),
        ("vllm 1", ("vllm", "1")),
        ("vllm-v1", ("vllm_v1", "")),  # may be a name: no version without a dot there
        ("sglang_triton", ("sglang_triton", "")),
        *((t, None) for t in ("", "our fork = best", "vllm@", "vllm@main", "vllm0.19", "0.19")),
    ],
)  # fmt: skip
def test_names_as_people_write_them(text: str, read: tuple[str, str] | None) -> None:
    assert stated(text) == read


def test_a_scenario_says_the_engine_by_its_key() -> None:
    assert Scenario.of("engine=SGLang-0.5.6").texts() == {"engine": "sglang@0.5.6"}
    assert Scenario.of("engine=SGLang") == Scenario.of("engine=sglang")
    assert Scenario.of("engine=TensorRT-LLM").get("engine") == "trtllm"
    with pytest.raises(ScenarioError, match="a value is given twice"):
        Scenario.of("engine=vllm,vLLM")
    with pytest.raises(ScenarioError, match="unknown value of engine 'vlm': did you mean 'vllm'"):
        Scenario.of("engine=vLM 0.19")
    for text in ("any@1", "vllm 0.19+cu128", "vllm@latest"):
        with pytest.raises(
            ScenarioError, match=r"expected an engine and its version, such as .*, or the engine alone"
        ):
            engine_among(("any", "vllm"), "engine", text)


def test_ops_are_priced_alike_however_their_engine_is_written() -> None:
    assert cost(OPS, "h100-sxm", engine="SGLang").equals(cost(OPS, "h100-sxm", engine="sglang"))
    assert cost(OPS, "h100-sxm", engine="vLLM-0.11.2").equals(cost(OPS, "h100-sxm", engine="vllm@0.11.2"))
    with pytest.raises(ScenarioError, match="unknown value of engine 'our fork'"):
        cost(OPS, "h100-sxm", engine="our fork")


def test_a_scored_table_is_priced_by_the_engine_that_it_says(tmp_path: Path) -> None:
    """By no engine's in particular before, without a word, where it was not written as a key."""
    file = tmp_path / "mine.parquet"
    said = {}
    for engine in ("vllm", "vLLM-0.19.0", "any"):
        pd.DataFrame({**OPS, "engine": engine, "hardware": "h100-sxm", "seconds": [1e-4]}).to_parquet(file)
        said[engine] = measured_table(file)["predicted"].to_pylist()
    assert said["vLLM-0.19.0"] == said["vllm"] != said["any"]


def test_doctor_takes_the_engine_however_it_is_written(shipped: Path, call: Callable[..., Answer]) -> None:
    spelt = {"SGLang 0.5.6": "sglang", "trtllm": "tensorrt-llm", "TensorRT-LLM": "tensorrt-llm"}
    for text, name in spelt.items():
        assert f'"engine": "{name}"' in call("doctor", shipped, "--engine", text, "--json").out
    done = call("doctor", shipped, "--engine", "sglag")
    assert done.status == 2 and "did you mean 'sglang'" in done.err
