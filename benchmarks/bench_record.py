"""What recording costs a decode step: outside of the recorded window, and inside of it.

    python benchmarks/bench_record.py [--layers 4] [--hidden 512] [--batch 4] [--steps 40] [--rounds 15]

One transformers OLMoE with random weights decodes blocks of steps, in turn without a recorder, within one whose window
is not open (only the hook pair that tells steps is there), and within one that records, so that what else the machine does
falls on all alike. Told are the median step of each and the ratio, and what the hook pair takes by itself, which does
not depend on the model: on a step of 10 ms, 1 % is 100 us.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers

import moetrace

SKIP_ALL = 1 << 30


class _Empty(torch.nn.Module):
    """A model whose forward does nothing: what is left is the recorder."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.Module()
        layer.self_attn = torch.nn.Identity()
        self.layers = torch.nn.ModuleList([layer])

    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return input_ids


def decode(model: Any, steps: int, batch: int) -> list[float]:
    """Seconds of each decode step after a prefill, waiting for the device in each as a greedy loop does."""
    cache = transformers.DynamicCache(config=model.config)
    inputs, seconds = torch.ones(batch, 64, dtype=torch.long), []
    with torch.no_grad():
        for _ in range(steps + 1):
            began = time.perf_counter()
            inputs = model(input_ids=inputs, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
            inputs.tolist()
            seconds.append(time.perf_counter() - began)
    return seconds[1:]


def hook_pair(rounds: int) -> float:
    """Seconds that a step outside of the window takes more than none, of a forward that does nothing."""
    model, ids, calls = _Empty(), torch.ones(4, 1, dtype=torch.long), 2000
    took = {}
    for name in ("plain", "watched"):
        best = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                window: AbstractContextManager[Any] = nullcontext()
                if name == "watched":
                    window = _Quiet(moetrace.record(Path(folder) / "out", model=model, skip=SKIP_ALL))
                with window:
                    began = time.perf_counter()
                    for _ in range(calls):
                        model(input_ids=ids)
                    best.append((time.perf_counter() - began) / calls)
        took[name] = min(best)
    return took["watched"] - took["plain"]


class _Quiet(AbstractContextManager[None]):
    """A recorder that is told to record nothing says so with an error, which is what is wanted here."""

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        self._recorder.__enter__()

    def __exit__(self, *failure: Any) -> None:
        try:
            self._recorder.__exit__(*failure)
        except moetrace.MoetraceError as told:
            if "nothing was recorded" not in str(told):
                raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 4), ("hidden", 512), ("batch", 4), ("steps", 40), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "olmoe", vocab_size=1024, hidden_size=asked.hidden, intermediate_size=asked.hidden // 2, num_experts=64,
        num_experts_per_tok=8, num_hidden_layers=asked.layers, num_attention_heads=8, num_key_value_heads=8,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    decode(model, asked.steps, asked.batch)
    took: dict[str, list[float]] = {"plain": [], "outside": [], "inside": []}
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            took["plain"] += decode(model, asked.steps, asked.batch)
            with _Quiet(moetrace.record(Path(folder) / "a", model=model, skip=SKIP_ALL)):
                took["outside"] += decode(model, asked.steps, asked.batch)
            with moetrace.record(Path(folder) / "b", model=model):
                took["inside"] += decode(model, asked.steps, asked.batch)
    step = {name: statistics.median(seconds) for name, seconds in took.items()}
    pair = hook_pair(asked.rounds)
    print(
        json.dumps(
            {
                "steps_each": len(took["plain"]),
                "plain_step_ms": round(1e3 * step["plain"], 3),
                "outside_ratio": round(step["outside"] / step["plain"], 4),
                "inside_ratio": round(step["inside"] / step["plain"], 4),
                "hook_pair_us": round(1e6 * pair, 2),
                "hook_pair_share_of_plain_step": round(pair / step["plain"], 5),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
