"""The options of ``moetrace record`` that are about a program run under the recorder.

``--token-ids`` and ``--router-extra`` are the built-in workload's too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_ANY = click.IntRange(min=0)
_OPTIONS = (
    click.argument("program", metavar="[-- SCRIPT [ARGS]...]", nargs=-1, type=click.UNPROCESSED),
    click.option("-m", "--module", metavar="NAME", help="Run a module instead of a script, as 'python -m' does."),
    click.option("--skip", metavar="N", type=_ANY, default=0, show_default=True, help="First steps that are only timed."),
    click.option(
        "--warmup",
        metavar="N",
        type=_ANY,
        default=0,
        show_default=True,
        help="Steps then that run under the profiler and are dropped.",
    ),
    click.option(
        "--active",
        metavar="N",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Steps then that are recorded; the rest is only timed.",
    ),
    click.option("--token-ids", is_flag=True, help="Keep also which experts each token chose, not counts alone."),
    click.option(
        "--router-extra",
        metavar="M",
        type=_ANY,
        default=0,
        show_default=True,
        help="Keep also the router's next M choices, for n_a above the model's.",
    ),
    click.option(
        "--part",
        "parts",
        metavar="PART=PATTERN",
        multiple=True,
        help="Modules whose names differ from those in transformers: router=model.layers.*.ff.gate; repeatable.",
    ),
    click.option("--nsys", is_flag=True, help="Record the GPU with Nsight Systems instead of torch.profiler."),
    click.option("--under-nsys", is_flag=True, hidden=True, help="What --nsys gives the recorder inside of nsys."),
)  # fmt: skip

PROGRAM = frozenset(("skip", "warmup", "active", "token_ids", "router_extra", "parts", "nsys", "under_nsys"))


def program_options(command: Command) -> Command:
    """The program itself and its options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class ProgramCommand(click.Command):
    """Leaves all that follows ``-m NAME`` to the program, as python does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if "-m" in args[:end]:
            at = args.index("-m") + 2
            if at <= len(args):
                rest = args[at:]
                args = [*args[:at], "--", *(rest[1:] if rest[:1] == ["--"] else rest)]
        return super().parse_args(ctx, args)
