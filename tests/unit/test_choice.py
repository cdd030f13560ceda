"""Which experts were chosen and which would be next; the same through buffers that a graph would fill; at another n_a."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace
from moetrace.errors import MoetraceError, RunError
from moetrace.replay import replay
from moetrace.routing import Routing
from tests.unit.test_record import BATCH, CONTEXT, FAMILIES, build, facts_of, generate, prompt

torch = pytest.importorskip("torch", reason="needs the record extra")
transformers = pytest.importorskip("transformers", reason="needs the record extra")

from moetrace.record.choice import UNKNOWN, chosen_experts  # noqa: E402

ROUTER = torch.nn.Identity()


def test_the_next_choices_follow_the_chosen() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    weights, ids = logits.softmax(-1).topk(3)
    plain = logits.argsort(dim=1, descending=True)
    for given in ((None, None), (weights, ids), (None, ids)):
        found = chosen_experts(logits, given[0], given[1], ROUTER, 3, extra=2)
        assert found is not None and torch.equal(found, plain[:, :5])
    assert chosen_experts(None, weights, ids, ROUTER, 3, extra=2).shape == (50, 3)  # type: ignore[union-attr]
    assert chosen_experts(logits, None, None, ROUTER, 0) is None


def test_what_would_be_next_is_unknown_where_the_choice_is_not_the_top_of_the_scores() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    ids = torch.tensor([[0, 1], [2, 3]])  # the second token was held to the group of experts 2 and 3
    found = chosen_experts(logits, None, ids, ROUTER, 2, extra=1)
    assert found is not None and found.tolist() == [[0, 1, 2], [2, 3, UNKNOWN]]


def test_of_equal_scores_the_router_may_have_taken_either() -> None:
    logits = torch.tensor([[4.0, 3.0, 3.0, 1.0]])
    for taken, other in ((1, 2), (2, 1)):
        found = chosen_experts(logits, None, torch.tensor([[0, taken]]), ROUTER, 2, extra=9)
        assert found is not None and found.tolist() == [[0, taken, other, 3]]


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "gpt_oss", "llama4_text", "phimoe"])
def test_with_extra_the_chosen_are_the_same_and_counted_by_default(family: str, tmp_path: Path) -> None:
    model = build(family)
    with moetrace.record(tmp_path / "plain", model=model):
        generate(model)
    with moetrace.record(tmp_path / "extra", model=model, router_extra=2, token_ids=True):
        generate(model)
    plain, extra = (Routing.load(tmp_path / name / "routing.parquet") for name in ("plain", "extra"))
    k = FAMILIES[family]["num_experts_per_tok"]
    assert (plain.topk, extra.topk, extra.chosen) == (k, k + 2, k)
    assert extra.distinct() == plain.distinct() == extra.distinct(k)
    assert all(extra.distinct(k + 2)[at] >= n for at, n in plain.distinct().items())
    tokens = pd.read_parquet(tmp_path / "extra" / "routing_tokens.parquet")
    assert not tokens.duplicated(["step", "layer", "token", "expert"]).any()
    counts = tokens.groupby(["step", "layer", "expert", "rank_of_choice"]).size().sort_index()
    kept = (
        extra.table()
        .to_pandas()
        .set_index(["step", "layer", "expert", "rank_of_choice"])["count"]
        .sort_index()
    )
    assert counts.to_dict() == kept.to_dict()


def test_a_router_that_chooses_within_groups_has_no_next_choice(tmp_path: Path) -> None:
    model = build("deepseek_v3")
    for module in model.modules():
        if hasattr(module, "topk_group"):
            module.topk_group = 1
    with moetrace.record(tmp_path / "out", model=model, router_extra=2):
        generate(model)
    assert facts_of(tmp_path / "out")["routing"]["layers_without_extra"] == [1]
    assert Routing.load(tmp_path / "out" / "routing.parquet").topk == 3


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_buffers_that_a_graph_would_fill_hold_what_hooks_see(family: str, tmp_path: Path) -> None:
    """A replay calls no module. Here a step that calls none finds in the buffers what the last forward wrote."""
    model = build(family)
    inputs = prompt()
    with moetrace.record(tmp_path / "eager", model=model) as rec, torch.no_grad():
        rec.step("prefill", batch=BATCH, tokens=inputs.numel(), kv_tokens=inputs.numel())
        model(inputs)
    with (
        moetrace.record(tmp_path / "graph", model=model, graph_tokens=BATCH * CONTEXT, detect=False) as rec,
        torch.no_grad(),
    ):
        model(inputs[:, :2])  # a warm-up before the capture
        model(inputs)  # the capture
        model(torch.cat((inputs, inputs)))  # an eager forward of more tokens than the buffers hold
        with rec.step("prefill", batch=BATCH, tokens=inputs.numel(), kv_tokens=inputs.numel()):
            pass  # the replay
    eager, graph = (Routing.load(tmp_path / name / "routing.parquet") for name in ("eager", "graph"))
    assert graph.equals(eager)
    assert facts_of(tmp_path / "graph")["graph_mode"] == "cuda graph"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_buffers_need_the_model_before_the_capture(tmp_path: Path) -> None:
    with pytest.raises(MoetraceError, match="needs model="):
        moetrace.record(tmp_path / "out", graph_tokens=4)


def wide(n_a: int) -> Any:
    """The same weights of an OLMoE with 16 experts in 3 layers at any n_a."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(
        "olmoe", vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        num_experts=16, num_experts_per_tok=n_a, intermediate_size=16, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Recordings at n_a 8 and 4 of the same weights, fed the same tokens."""
    folder = tmp_path_factory.mktemp("forced")
    ids = torch.randint(2, 97, (6, 16), generator=torch.Generator().manual_seed(5))
    for n_a in (8, 4):
        model = wide(n_a)
        cache = transformers.DynamicCache(config=model.config)
        with moetrace.record(folder / str(n_a), model=model), torch.no_grad():
            model(input_ids=ids[:, :8], past_key_values=cache)
            for i in range(8, 16):
                model(input_ids=ids[:, i : i + 1], past_key_values=cache)
    return {n_a: folder / str(n_a) for n_a in (8, 4)}


def test_recut_to_a_smaller_n_a_is_exact_in_the_first_layer_and_an_estimate_after(
    forced: dict[int, Path],
) -> None:
    at8, at4 = (Routing.load(forced[n_a] / "routing.parquet") for n_a in (8, 4))
    cut, real, spread = at8.distinct(4), at4.distinct(), at8.recut_spread(4)
    first = {at for at in real if at[1] == 0}
    assert {at: cut[at] for at in first} == {at: real[at] for at in first}
    rows = at8.table().to_pandas().query("layer == 0 and rank_of_choice <= 4").reset_index(drop=True)
    assert rows.equals(at4.table().to_pandas().query("layer == 0").reset_index(drop=True))
    off = np.array([cut[at] - real[at] for at in real if at not in first], dtype=float)
    stated = np.array([spread[at] for at in real if at not in first])
    assert np.abs(off).max() > 0  # hidden states do differ
    assert {spread[at] for at in first} == {0.0}
    assert (stated > 0).all()
    assert np.sqrt(np.mean((off / stated) ** 2)) < 1.5  # the stated spread is of the size of what it states
    assert set(at8.recut_spread(8).values()) == {0.0}
    with pytest.raises(RunError, match="n_a is 9"):
        at8.recut_spread(9)


def test_a_replay_at_another_n_a_states_the_spread_of_its_recut(forced: dict[int, Path]) -> None:
    said = " ".join(
        replay(moetrace.parse(forced[8]), "h100-sxm", moetrace.Scenario.of("n_a=4")).run.meta.notes
    )
    spread = Routing.load(forced[8] / "routing.parquet").recut_spread(4)
    assert "counted among each token's first n_a recorded choices" in said
    typical = np.median([value for (_, layer), value in spread.items() if layer])
    assert f"{typical:.1f} experts" in said
