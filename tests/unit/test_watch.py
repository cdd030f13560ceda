"""What a step is, told from the arguments of a model's forward: its phase, its KV tokens and its padding."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

import moetrace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from moetrace.record.watch import read_forward  # noqa: E402

PROMPT, PADDED = 6, (3, 1, 0)  # tokens of each sequence, and how many of them stand for nothing


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=97, hidden_size=32, intermediate_size=16, num_experts=8, num_experts_per_tok=2,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padding_is_left_out_with_either_cache(
    cache: str, attention: str, model: Any, tmp_path: Path
) -> None:
    """A static cache has `generate` hand the model a causal mask of four dimensions, of bools or of numbers to add."""
    model.set_attn_implementation(attention)
    ids, mask = torch.full((len(PADDED), PROMPT), 5), torch.ones(len(PADDED), PROMPT, dtype=torch.long)
    for row, n in enumerate(PADDED):
        ids[row, :n], mask[row, :n] = 0, 0
    static = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    with moetrace.record(tmp_path / "out", model=model, nvtx=False):
        length = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        model.generate(input_ids=ids, attention_mask=mask, **length, **static)
    real, batch = int(mask.sum()), len(PADDED)
    steps = json.loads((tmp_path / "out/recording.json").read_text())["steps"]
    assert [s["phase"] for s in steps] == ["prefill", "decode", "decode"]
    assert [s["padding"] for s in steps] == [sum(PADDED), 0, 0]
    assert [s["kv_tokens"] for s in steps] == [real, real + batch, real + 2 * batch]
    counts = pq.read_table(tmp_path / "out/routing.parquet").to_pandas()
    first = counts[(counts.layer == 0) & (counts.rank_of_choice == 1)]
    assert first.groupby("step")["count"].sum().tolist() == [real, batch, batch]


def test_a_cache_whose_length_lies_on_the_device_is_asked_for_it() -> None:
    """As a static cache's does on a GPU: without it every decode would be taken as the prefill of an empty cache."""

    class Length:
        device = SimpleNamespace(type="cuda")

        def __int__(self) -> int:
            return 40

    cache = SimpleNamespace(get_seq_length=Length)
    told = read_forward((), {"input_ids": torch.ones(3, 1, dtype=torch.long), "past_key_values": cache})
    assert told is not None
    assert (told.phase, told.kv_tokens) == ("decode", 3 * 41)


def test_a_cache_is_not_asked_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Length:
        device = SimpleNamespace(type="cuda")

        def __int__(self) -> int:
            raise AssertionError("this would end the capture")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cache = SimpleNamespace(get_seq_length=Length)
    assert read_forward((), {"input_ids": torch.ones(3, 1, dtype=torch.long), "past_key_values": cache})


@pytest.mark.parametrize("shape", [(1, 1, 2, 8), (3, 1, 2, 6), (3, 1, 1, 8)])
def test_a_mask_that_does_not_tell_padding_is_left_alone(shape: tuple[int, ...]) -> None:
    """One for all sequences, keys of a sliding window alone, or not of these tokens."""
    kwargs = {
        "input_ids": torch.ones(3, 2, dtype=torch.long),
        "past_key_values": SimpleNamespace(get_seq_length=lambda: 6),
        "attention_mask": torch.zeros(shape, dtype=torch.bool),
    }
    told = read_forward((), kwargs)
    assert told is not None
    assert (told.mask, told.kv_tokens) == (None, 3 * 8)


def test_of_masks_by_kind_of_layer_the_full_one_counts() -> None:
    full = torch.ones(2, 1, 2, 4, dtype=torch.bool).tril()
    full[0, :, :, 0] = False  # the first token of the first sequence is padding
    masks = {"sliding_attention": torch.ones(2, 1, 2, 2, dtype=torch.bool), "full_attention": full}
    told = read_forward((), {"input_ids": torch.ones(2, 2, dtype=torch.long), "attention_mask": masks})
    assert told is not None
    assert told.mask is not None
    assert told.mask.tolist() == [False, True, True, True]
    assert told.kv_tokens == 3
