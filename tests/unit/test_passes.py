"""Several forward passes in what counts as one step: each has the layers that it has alone, and absurd depths are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetrace.model import load_model
from moetrace.parse import parse, passes, placing
from moetrace.parse.passes import starts_of_passes
from moetrace.run import Run
from tests.made import LAYER, event, write

MODEL = load_model("olmoe-1b-7b").with_edits(layers=3)
EMBED, HEAD = "embedding_kernel", ["vllm::rms_norm_kernel", "nvjet_lm_head", "ArgMaxOps"]


def generation(path: Path, times: int, layers: int = 3) -> Run:
    """So many decode passes, each replayed by a graph, with one annotation around all of them."""
    return generations(path, [[layers] * times])


def generations(path: Path, steps: list[list[int]]) -> Run:
    """Annotated generations, each of decode passes of so many layers, which graphs replay."""
    events, at, graphs = [], 10, 0
    for passes_of in steps:
        begin = at - 10
        for layers in passes_of:
            kernels, graphs = [EMBED, *LAYER * layers, *HEAD], graphs + 1
            ids = {"correlation": graphs}
            events.append(event("cudaGraphLaunch", "cuda_runtime", at, 1, tid=7, **ids))
            for n, name in enumerate(kernels):
                when = at + 2 + 6 * n
                events.append(event(name, "kernel", when, 5, tid=3, pid=0, stream=3, device=0, **ids))
            at += 6 * len(kernels)
        name = "execute_context_0(0)_generation_4(4)"
        events.append(event(name, "user_annotation", begin, at + 10 - begin, tid=7))
        at += 1000
    return parse(write(path, events), model=MODEL)


def test_a_pass_among_many_has_what_it_has_alone(tmp_path: Path) -> None:
    columns = ["layer", "kind", "op", "kernel"]
    one = generation(tmp_path / "one.json", 1).to_pandas(columns).astype(object).fillna("")
    run = generation(tmp_path / "many.json", 5)
    many = run.to_pandas(columns).astype(object).fillna("")
    assert len(many) == 5 * len(one)
    for i in range(5):
        part = many.iloc[i * len(one) : (i + 1) * len(one)].reset_index(drop=True)
        assert (part == one).all().all(), i
    assert [n for n in run.meta.notes if n.startswith("a step holds up to 5 forward passes")]
    assert not [n for n in run.meta.notes if "not to be trusted" in n]


def test_passes_told_apart_in_one_step_do_not_hide_that_another_is_not(tmp_path: Path) -> None:
    notes = generations(tmp_path / "t.json", [[3, 3], [3, 3, 2]]).meta.notes
    assert [n for n in notes if n.startswith("a step holds up to 2 forward passes")]
    assert [n for n in notes if "shows 8 layers in a step" in n and "not to be trusted" in n]


def test_more_layers_than_any_model_has_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (passes, placing):
        monkeypatch.setattr(module, "MOST_LAYERS", 8)
    run = generation(tmp_path / "t.json", 2, layers=5)  # not a multiple of the model's
    assert run.column("layer").null_count == run.num_rows
    assert [n for n in run.meta.notes if "shows 10 layers in a step, which no forward pass has" in n]


def sizes(*layers: int) -> tuple[list[int], list[str]]:
    """(layer of each op, kinds) of layers of so many ops, with one op in front and one behind."""
    found = [-1, *(i for i, size in enumerate(layers) for _ in range(size)), -1]
    return found, ["x"] * len(found)


def test_where_passes_begin_is_told_by_what_lies_between_them() -> None:
    # Head of 3, then as in front of the first pass.
    layers, kinds = sizes(4, 4, 4, 3 + 1 + 4, 4, 4, 3 + 1 + 4, 4, 4)
    assert starts_of_passes(layers, kinds, depth=3) == [1 + 12 + 3, 1 + 12 + 16 + 3]
    kinds[1 + 12 + 3] = "y"  # the second pass begins with something else
    assert starts_of_passes(layers, kinds, depth=3) == []


@pytest.mark.parametrize(
    "layers",
    [(4, 4, 4), (4,) * 6, (4, 5) * 6, (4, 4, 4, 7, 4, 4, 8, 4, 4), (4, 4, 4, 7, 4), (4, 4, 4, 2, 4, 4)],
)
def test_no_passes_where_nothing_tells_them(layers: tuple[int, ...]) -> None:
    """One pass; layers alike, or in turn, with nothing between; passes that differ; no multiple; too short to begin again."""
    assert starts_of_passes(*sizes(*layers), depth=3) == []
