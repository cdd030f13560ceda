"""Experts in fp8: near the same experts in bf16, one by one and grouped alike, and recorded as what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moetrace.errors import MoetraceError
from moetrace.parse import parse
from tests.integration.test_record_workload import CONFIG

torch = pytest.importorskip("torch", reason="needs the record extra")
transformers = pytest.importorskip("transformers", reason="needs the record extra")

from moetrace.record import fp8  # noqa: E402
from moetrace.record.build import build_config, build_model  # noqa: E402
from moetrace.record.workload import Workload, run_workload  # noqa: E402

CPU = torch.device("cpu")
IDS = torch.arange(12).reshape(3, 4)


def logits(expert_dtype: str | None, experts: str = "unfused", config: dict[str, Any] = CONFIG) -> Any:
    made = build_config(config)
    model = build_model(made, dtype="bf16", experts=experts, seed=0, device=CPU, expert_dtype=expert_dtype)
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def stand_in(x: Any, w: Any, each: Any, channels: Any, *, offs: Any, out_dtype: Any) -> Any:
    """What torch._scaled_grouped_mm computes on a GPU: x [n, k], w [E, k, n'] column-major, scales by row and channel."""
    assert (x.dtype, w.dtype) == (torch.float8_e4m3fn,) * 2 and w.stride(-2) == 1 and x.is_contiguous()
    assert (offs.dtype, each.shape, channels.shape) == (torch.int32, (len(x),), (w.shape[0], w.shape[2]))
    out, low = torch.zeros(len(x), w.shape[2], dtype=out_dtype), 0
    for expert, high in enumerate(offs.tolist()):
        whole = x[low:high].float() @ w[expert].float() * each[low:high, None] * channels[expert]
        out[low:high] = whole.to(out_dtype)
        low = high
    return out


def test_they_are_near_the_same_experts_in_bf16_and_another_number() -> None:
    plain, small = logits(None), logits("fp8")
    off = (plain - small).abs().max() / plain.abs().max()
    assert 0 < off < 0.1


def test_the_grouped_way_gives_what_one_by_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build_model.__globals__, "check_fused", lambda device: None)
    monkeypatch.setattr(torch, "_scaled_grouped_mm", stand_in)
    one, grouped = logits("fp8"), logits("fp8", "fused")
    assert torch.allclose(one, grouped, rtol=0.05, atol=0.02) and one.shape == grouped.shape


def test_a_row_of_zeros_stays_zero_and_the_largest_number_is_kept() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0e4, -1.0]], dtype=torch.bfloat16)
    stored, scale = fp8._scaled_rows(rows)
    again = stored.float() * scale
    assert again[0].tolist() == [0, 0] and again[1, 0].item() == pytest.approx(rows[1, 0].item(), rel=1e-5)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "tiny.json")


def test_a_recording_says_fp8_of_the_experts_alone(tiny: str, tmp_path: Path) -> None:
    work = Workload(
        tiny, layers=1, batch=3, context=6, steps=2, experts="unfused", expert_dtype="fp8", threads=1
    )
    told = run_workload(work, tmp_path / "out")
    assert told["tokens_equal"]
    run = parse(tmp_path / "out")
    assert run.meta.model is not None
    assert (run.meta.model.expert_dtype, run.meta.model.dtype) == ("fp8", "bf16")
    assert json.loads((tmp_path / "out" / "recording.json").read_text())["expert_dtype"] == "fp8"
    table = run.to_pandas()
    experts = table[(table.step == 1) & table.kind.isin(["expert_up", "expert_down"])]
    assert set(experts.op.str.split().str[1]) == {"fp8"}
    counted = run.routing.distinct()[1, 0] if run.routing is not None else 0
    assert len(experts) == 2 * counted  # one GEMM up and one down for each expert that has tokens
    others = table[table.kind.isin(["qkv_proj", "o_proj", "router"])]
    assert set(others.op.str.split().str[1]) == {"bf16"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"experts": "fused"}, "no grouped fp8 GEMM for cpu; give --experts unfused"),
        ({"experts": "batched"}, "experts run fused or unfused"),
        ({"experts": "unfused", "dtype": "fp32"}, "beside --dtype bf16"),
        ({"experts": "unfused", "expert_dtype": "int3"}, "expected fp8"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], said: str, tiny: str, tmp_path: Path) -> None:
    options = {"expert_dtype": "fp8", "layers": 1, "batch": 1, "context": 2, "steps": 1, **changed}
    with pytest.raises(MoetraceError, match=said):
        run_workload(Workload(tiny, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_experts_of_another_layout_are_refused(call: Callable[..., Any], tmp_path: Path) -> None:
    answer = call(
        "record", "--model", "gpt-oss-20b", "--layers", "1", "--n-e", "4", "--expert-width", "32", "--batch", "1",
        "--context", "2", "--steps", "1", "--expert-dtype", "fp8", "--experts", "unfused", "-o", tmp_path / "out",
    )  # fmt: skip
    assert answer.status == 2 and "have biases or another layout" in answer.err, answer.err
