"""The options of ``moetrace record`` that describe the built-in workload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from moetrace.cli.options import PATH

Command = TypeVar("Command", bound=Callable[..., Any])
COUNT = click.IntRange(min=1)

_OPTIONS = (
    click.option("--model", metavar="NAME|FILE", help="A built-in model, or a Hugging Face config.json."),
    click.option("--layers", metavar="N", type=COUNT, help="Build only the first N layers.  [default: all]"),
    click.option("--batch", metavar="N", type=COUNT, default=16, show_default=True, help="Sequences."),
    click.option(
        "--context",
        metavar="N",
        type=COUNT,
        default=512,
        show_default=True,
        help="Prompt tokens of each sequence.",
    ),
    click.option("--steps", metavar="N", type=COUNT, default=4, show_default=True, help="Decode steps."),
    click.option("--n-a", metavar="K", type=COUNT, help="Experts per token.  [default: the model's]"),
    click.option(
        "--dtype",
        type=click.Choice(["bf16", "fp16", "fp32"]),
        default="bf16",
        show_default=True,
        help="Element type of weights and activations.",
    ),
    click.option(
        "--expert-dtype",
        type=click.Choice(["fp8"]),
        help="Weights of the experts in this type, and the rows they get.  [default: as --dtype]",
    ),
    click.option("--n-e", metavar="N", type=COUNT, help="Experts of each layer.  [default: the model's]"),
    click.option(
        "--expert-width",
        metavar="N",
        type=COUNT,
        help="Intermediate size of each expert.  [default: the model's]",
    ),
    click.option(
        "--experts",
        type=click.Choice(["fused", "batched", "unfused"]),
        default="fused",
        show_default=True,
        help="One grouped GEMM for all experts, one batched over copied weights, or a loop over experts.",
    ),
    click.option(
        "--routing",
        metavar="HOW",
        default="",
        help="Bias the routers: uniform, power_law:ALPHA, or recorded:FILE.  [default: their own choice]",
    ),
    click.option(
        "--weights",
        metavar="DIR",
        type=PATH,
        help="A local folder of the model's safetensors.  [default: random weights]",
    ),
    click.option("--graph", is_flag=True, help="Replay the decode step as one CUDA graph."),
    click.option(
        "--prefill/--no-prefill", default=True, show_default=True, help="Record the prefill step too."
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to run; auto takes a GPU if there is one.",
    ),
    click.option("--threads", metavar="N", type=COUNT, help="CPU threads of torch.  [default: torch's]"),
    click.option(
        "--seed", metavar="N", type=int, default=0, show_default=True, help="Of the weights and the prompt."
    ),
)


WORKLOAD = frozenset(
    (
        *("model", "layers", "batch", "context", "steps", "n_a", "n_e", "expert_width", "dtype", "experts"),
        *("expert_dtype",),
        *("routing", "weights", "graph", "prefill", "device", "threads", "seed", "token_ids", "router_extra"),
    )
)


def workload_options(command: Command) -> Command:
    """Adds the options, which are the fields of `moetrace.record.workload.Workload`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
