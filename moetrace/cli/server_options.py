"""The options of ``moetrace record`` that describe a running server to profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from moetrace.cli.options import PATH

Command = TypeVar("Command", bound=Callable[..., Any])
# Options of the built-in workload that describe the load of a server too.
SHARED = frozenset(("model", "batch", "context", "steps", "seed"))

_OPTIONS = (
    click.option(
        "--server",
        metavar="URL",
        help="Profile the vLLM or SGLang server there instead of a model of our own.",
    ),
    click.option(
        "--trace-dir",
        metavar="DIR",
        type=PATH,
        help="Where the server writes its traces: for vLLM its torch_profiler_dir.",
    ),
    click.option(
        "--live",
        "live_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="Send nothing: record so long what others send.",
    ),
    click.option(
        "--prompts",
        metavar="FILE",
        type=PATH,
        help="Prompts, one on each line or JSON lines with 'prompt'.  [default: random tokens]",
    ),
    click.option(
        "--profile-option",
        "profile_options",
        metavar="NAME=VALUE",
        multiple=True,
        help="For SGLang's /start_profile: num_steps, start_step, profile_by_stage, with_stack, record_shapes; repeatable.",
    ),
    click.option(
        "--capture-trace",
        metavar="FILE",
        type=PATH,
        help="The server's trace of its graph capture, to keep too.",
    ),
    click.option(
        "--expert-dir",
        metavar="DIR",
        type=PATH,
        help="Where SGLang writes its expert distribution, to record routing.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        show_default=True,
        help="For each answer of the server, and for its trace to appear.",
    ),
    click.option(
        "--api-key-env",
        "key_variable",
        metavar="NAME",
        default="",
        help="Environment variable with the server's API key.",
    ),
)
SERVER_ONLY = frozenset(
    (
        "trace_dir",
        "live_s",
        "prompts",
        "profile_options",
        "capture_trace",
        "expert_dir",
        "timeout_s",
        "key_variable",
    )
)


def server_options(command: Command) -> Command:
    """Adds the options; ``--server`` is None where none is to be profiled."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
