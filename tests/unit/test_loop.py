"""The loop of the built-in workload; its graph path with a stand-in that replays by calling again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moetrace.errors import MoetraceError
from moetrace.record.forced import Forcing
from moetrace.record.loop import Loop
from moetrace.record.modules import find_places
from tests.unit.test_forced import tiny
from tests.unit.test_record import FAMILIES

torch = pytest.importorskip("torch", reason="needs the record extra")
transformers = pytest.importorskip("transformers", reason="needs the record extra")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# What makes the host wait for the device: forbidden in a capture.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique", "masked_select", "bincount")


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert not name.startswith(WAITS), f"{name} in a captured step"
        return func(*args, **(kwargs or {}))


class StandIn:
    """Captures without running, as CUDA does, but for what Python does; replays what was captured."""

    made = 0

    def __init__(self, run: Callable[[], None]) -> None:
        StandIn.made += 1
        self._run = run

    def replay(self) -> None:
        with NoWaiting(), torch.no_grad():
            self._run()


class Traced(StandIn):
    """What a captured graph is: the tensor operations of one call, replayed without the Python around them."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__(run)
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.no_grad():
            self._run = make_fx(run)()  # runs it too; the loop then sets back what a step advances


def loop(family: str, graph: Any = None, routing: str = "", steps: int = 4) -> Loop:
    model = tiny(family)
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "grouped_mm"
    prompt = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
    cache = transformers.StaticCache(config=model.config, max_cache_len=5 + steps)
    forcing = Forcing(find_places(model), routing, model.config.num_experts_per_tok, 0) if routing else None
    return Loop(model, prompt, cache, steps, forcing=forcing, graph=graph)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt_oss", "llama4_text"}))
@pytest.mark.parametrize(("graph", "routing"), [(StandIn, ""), (Traced, "power_law:1.2")])
def test_a_replayed_step_chooses_the_same_tokens_and_waits_for_nothing(
    family: str, routing: str, graph: type[StandIn]
) -> None:
    plain, replayed = loop(family, routing=routing), loop(family, graph, routing)
    plain.run(None)
    StandIn.made = 0
    for _ in range(2):  # a later run replays what the first one captured
        replayed.run(None)
        assert replayed.chosen == plain.chosen
    assert StandIn.made == 1
    assert len(plain.chosen) == len(plain.seconds) == 5
    assert min(replayed.seconds) > 0


def test_a_loop_over_experts_would_wait() -> None:
    """Why --graph refuses it, and that the stand-in notices."""
    unfused = loop("mixtral", StandIn)
    unfused._model.config._experts_implementation = "eager"
    with pytest.raises(AssertionError, match="in a captured step"):
        unfused.run(None)


def test_the_loop_decodes_as_transformers_generate_does() -> None:
    ours = loop("mixtral")
    ours.run(None)
    prompt = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
    theirs = tiny("mixtral").generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.tensor(ours.chosen).T.tolist() == theirs[:, 5:].tolist()


def test_a_cache_that_counts_in_python_cannot_be_replayed() -> None:
    with pytest.raises(MoetraceError, match="sliding-window"):
        loop("gpt_oss", StandIn, steps=40)
