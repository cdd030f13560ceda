"""Prescribed routing: what is asked for is what the routers of real architectures choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.errors import MoetraceError, RunError
from moetrace.record.forced import Forcing, Prescribed
from moetrace.record.modules import find_places
from moetrace.routing import Routing, RoutingBuilder
from tests.unit.test_record import FAMILIES, SMALL

torch = pytest.importorskip("torch", reason="needs the record extra")
transformers = pytest.importorskip("transformers", reason="needs the record extra")


def tiny(family: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family], **fields})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_the_routers_of_every_family_take_what_is_prescribed_and_are_given_back(family: str) -> None:
    model = tiny(family)
    prompt = torch.arange(12).reshape(2, 6)
    own = model(prompt).logits
    forcing = Forcing(find_places(model), "power_law:1.2", model.config.num_experts_per_tok, 0)
    assert torch.equal(model(prompt).logits, own)  # nothing is prescribed yet
    with forcing.comparing():
        forcing.prepare(0, 12)
        assert not torch.equal(model(prompt).logits, own)
    assert forcing.share_taken == 1.0
    forcing.remove()
    assert torch.equal(model(prompt).logits, own)


@torch.no_grad()
def test_a_router_that_chooses_among_groups_may_take_less_and_says_so() -> None:
    model = tiny("deepseek_v3", n_group=4, topk_group=1, num_experts_per_tok=2)
    forcing = Forcing(find_places(model), "uniform", 2, 0)
    with forcing.comparing():
        forcing.prepare(0, 12)
        model(torch.arange(12).reshape(2, 6))
    assert forcing.share_taken is not None
    assert 0.3 < forcing.share_taken < 0.9


@torch.no_grad()
def test_buffers_stay_in_place_so_that_a_graph_reads_the_next_step_from_them() -> None:
    model = tiny("olmoe")
    forcing = Forcing(find_places(model), "uniform", 3, 0)
    forcing.prepare(0, 12)
    before = {layer: bias.data_ptr() for layer, bias in forcing._now.items()}
    first = forcing._now[0].clone()
    forcing.prepare(1, 12)
    assert {layer: bias.data_ptr() for layer, bias in forcing._now.items()} == before
    assert not torch.equal(forcing._now[0], first)


def recorded(folder: Path, tokens: tuple[int, ...] = (40, 6, 6)) -> Path:
    """Skewed routing of 8 experts, 3 choices, 2 layers; the steps have so many tokens."""
    random, builder = np.random.default_rng(5), RoutingBuilder(8)
    for step, n in enumerate(tokens):
        for layer in range(2):
            score = random.gumbel(size=(n, 8)) + 2.0 * np.arange(8)[None, :] * (-1) ** layer
            builder.add(step, layer, np.argsort(-score, axis=1)[:, :3])
    builder.build().save(folder / "routing.parquet")
    return folder


def loads(ids: np.ndarray) -> list[int]:
    return np.bincount(ids.ravel(), minlength=8).tolist()


def counts(routing: Routing, step: int, layer: int, first: int = 3) -> list[int]:
    here = (routing.step == step) & (routing.layer == layer) & (routing.rank_of_choice <= first)
    return np.bincount(routing.expert[here], routing.count[here], 8).astype(int).tolist()


def test_a_step_of_a_recorded_size_gets_the_recorded_loads_and_others_its_popularity(tmp_path: Path) -> None:
    routing = Routing.load(recorded(tmp_path) / "routing.parquet")
    for path in (tmp_path, tmp_path / "routing.parquet"):
        asked = Prescribed(f"recorded:{path}", 8, 3, 0)
        for layer in range(2):
            assert loads(asked.ids(0, layer, 40)) == counts(routing, 0, layer)
            assert [loads(asked.ids(step, layer, 6)) for step in range(3)] == [
                counts(routing, step, layer) for step in (1, 2, 1)
            ]
            share = np.array(loads(asked.ids(0, layer, 20_000))) / 20_000
            assert np.abs(share - routing.popularity(layer)).max() < 0.02
    cut = Prescribed(f"recorded:{tmp_path}", 8, 2, 0)
    assert loads(cut.ids(0, 1, 6)) == counts(routing, 1, 1, first=2)


def test_the_same_experts_are_popular_in_all_steps_of_a_layer() -> None:
    asked = Prescribed("power_law:2", 8, 2, 0)
    per_step = np.array([loads(asked.ids(step, 0, 64)) for step in range(4)])
    assert len({tuple(np.argsort(-row, kind="stable")[:1]) for row in per_step}) == 1
    assert per_step.max() > 2 * per_step.mean()
    assert np.argmax(loads(asked.ids(0, 1, 64))) != np.argmax(per_step[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("skewed", "power_law:ALPHA"),
        ("power_law", "power_law"),
        ("power_law:x", "exponent"),
        ("power_law:-1", "exponent"),
        ("power_law:nan", "exponent"),
        ("recorded:", "recorded:FILE"),
        ("uniform:2", "uniform"),
    ],
)
def test_a_routing_that_is_not_one_is_refused(text: str, said: str) -> None:
    with pytest.raises(MoetraceError, match=said):
        Prescribed(text, 8, 2, 0)


def test_routing_of_another_model_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path)
    with pytest.raises(RunError, match="8 experts, the model has 16"):
        Prescribed(f"recorded:{tmp_path}", 16, 3, 0)
    with pytest.raises(RunError, match="first 3 choices"):
        Prescribed(f"recorded:{tmp_path}", 8, 4, 0)
    with pytest.raises(RunError, match="no routing was recorded for layer 7"):
        Prescribed(f"recorded:{tmp_path}", 8, 3, 0).ids(0, 7, 99)
    with pytest.raises(RunError, match="nowhere"):
        Prescribed(f"recorded:{tmp_path / 'nowhere'}", 8, 3, 0)
