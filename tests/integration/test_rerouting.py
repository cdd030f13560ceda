"""How far the first recorded choices are from what a model chooses that is run with fewer experts: docs/report.md says it."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.routing import RoutingBuilder

LAYERS, EXPERTS, BATCH, LENGTH, STEPS = 5, 64, 16, 24, 8


@pytest.fixture(scope="module")
def chosen() -> dict[int, np.ndarray]:
    """Experts in the order of their router weight, [step, layer, token, expert], of one model run with n_a 8 and with 6."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    def model(n_a: int) -> OlmoeForCausalLM:
        shape = {
            "hidden_size": 128,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        }
        config = OlmoeConfig(
            vocab_size=500, num_hidden_layers=LAYERS, num_experts=EXPERTS, num_experts_per_tok=n_a,
            initializer_range=0.1, eos_token_id=0, **shape,
        )  # fmt: skip
        return OlmoeForCausalLM(config).eval()

    torch.manual_seed(0)
    models = {8: model(8), 6: model(6)}
    models[6].load_state_dict(models[8].state_dict())
    words = 1 / np.arange(1, 501)
    rng = np.random.default_rng(0)
    texts = rng.choice(500, size=(STEPS, BATCH, LENGTH), p=words / words.sum())
    out = {}
    for n_a, found in models.items():
        with torch.no_grad():
            logits = [found(torch.tensor(t), output_router_logits=True).router_logits for t in texts]
        last = [[x.reshape(BATCH, LENGTH, EXPERTS)[:, -1] for x in step] for step in logits]
        out[n_a] = np.array([[x.argsort(descending=True).numpy() for x in step] for step in last])
    return out


def test_recut_counts_are_those_of_a_rerun_within_the_stated_spread(chosen):
    builder = RoutingBuilder(EXPERTS)
    for step in range(STEPS):
        for layer in range(LAYERS):
            builder.add(step, layer, chosen[8][step, layer, :, :8])
    routing = builder.build()
    recut, spread = routing.distinct(6), routing.recut_spread(6)
    off = {at: len(np.unique(chosen[6][at[0], at[1], :, :6])) - count for at, count in recut.items()}
    later = [at for at in off if at[1] > 0]
    assert all(off[at] == 0 for at in off if at[1] == 0)  # no expert has touched what reaches the first layer
    assert any(off[at] for at in later)  # and what reaches the others did change
    assert np.std([off[at] for at in later]) < np.mean([spread[at] for at in later])
    assert abs(np.mean([off[at] for at in later])) < 0.02 * np.mean([recut[at] for at in later])
