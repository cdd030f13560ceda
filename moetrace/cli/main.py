"""The click group and the one place where an exception becomes a line on stderr and an exit status.

0: done. 1: done, and `doctor` found something missing or a gate of `diff` failed.
2: bad use or bad input, one line. 130: interrupted. 141: the reader of a pipe left. 143: terminated.
A bug keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from moetrace.cli import VERBS
from moetrace.errors import MoetraceError
from moetrace.signals import terminable

BAD_USE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Verbs(click.Group):
    """Loads a verb's file when the verb is used, so that the group's help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"moetrace.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        import moetrace

        click.echo(f"moetrace {moetrace.__version__}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Shows where the time of Mixture-of-Experts LLM decoding goes, and what would change it.

    \b
    moetrace parse trace.json.gz -o run
    moetrace attribute run --hw h100-sxm
    moetrace replay run --hw h100-sxm,cs3 --set n_a=8,6,4
    """


def run(arguments: Sequence[str]) -> int:
    """Runs the command line with these arguments and returns the exit status."""
    # Arrow's own allocators keep what was freed: 20 to 50 MB of the peak of a long run (docs/formats.md). Asked when it loads.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding lacks is no reason to die.
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable(), cli.make_context("moetrace", list(arguments) or ["--help"]) as ctx:
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return _flushed(done.exit_code)
    except BrokenPipeError:
        return _gone(PIPE_CLOSED)
    except (KeyboardInterrupt, click.Abort) as stop:
        return _fail(str(stop) or "interrupted", INTERRUPTED)
    except click.ClickException as err:
        return _fail(_usage(err), BAD_USE)
    except MoetraceError as err:
        return _fail(str(err), BAD_USE)
    except OSError as err:
        if err.filename is None and err.errno not in _FULL:  # not about a file that the user named
            raise
        if err.filename is None:
            return _full(err)
        return _fail(f"{os.fsdecode(err.filename)}: {err.strerror or err}", BAD_USE)
    return 0


def _usage(err: click.ClickException) -> str:
    message = " ".join(err.format_message().split()).rstrip(".")
    ctx = getattr(err, "ctx", None)
    return f"{message} (see '{ctx.command_path} --help')" if ctx else message


def _fail(message: str, status: int) -> int:
    from moetrace.report.tables import clean

    click.echo(f"moetrace: error: {clean(message)}", err=True)
    return status


def _flushed(status: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _gone(PIPE_CLOSED)
    except OSError as err:
        return _full(err)
    return status


def _full(err: OSError) -> int:
    """What is printed went into a file on a disk that has no room for it, or that broke."""
    return _gone(_fail(f"cannot write the output: {err.strerror or err}", BAD_USE))


def _gone(status: int) -> int:
    """Points stdout elsewhere, so that the interpreter's own flush at exit stays quiet too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
