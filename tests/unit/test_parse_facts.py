"""parse.facts: whose model a recording is of, and in which element type."""

from __future__ import annotations

import pytest

from moetrace.parse.facts import model_of

CONFIG = {
    "model_type": "olmoe", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "recorded", "expected"),
    [(None, "fp32", "fp32"), (None, "bf16", "bf16"), ("float16", "fp32", "fp16"), (None, None, "bf16")],
)
def test_the_config_states_the_element_type_else_the_recording_does(
    stated: str | None, recorded: str | None, expected: str
) -> None:
    config = {**CONFIG, "torch_dtype": stated} if stated else CONFIG
    model, source, _ = model_of({}, {"model_config": config, "dtype": recorded, "model": "tiny"}, None)
    assert model is not None and (model.dtype, source) == (expected, "recorded")
