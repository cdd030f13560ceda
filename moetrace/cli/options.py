"""Every option and argument, defined once; a verb's file lists those it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from moetrace.formats import Export
    from moetrace.hardware import Hardware
    from moetrace.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
_ALIAS = "alias_"
_SET_HELP = (
    "Edit of the run (see 'moetrace knobs'); repeatable. A comma separates scenarios, a colon the layers "
    "of one value: n_a=8,6,4 or n_a=6x13:4x13. Several swept knobs give every combination."
)

run_argument = click.argument("source", metavar="RUN|TRACE", type=PATH)
runs_argument = click.argument("sources", metavar="RUN|TRACE...", type=PATH, nargs=-1, required=True)
trace_argument = click.argument("trace", metavar="TRACE", type=PATH)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def _be_quiet(_ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    from moetrace.report.terminal import quiet

    quiet.set(wanted)


quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_be_quiet, help="Show no progress."
)
force_option = click.option("--force", is_flag=True, help="Replace an output that exists.")


def output_option(metavar: str, help: str, required: bool = False) -> Callable[[Command], Command]:
    """``-o``, with what it names for this verb."""
    return click.option("-o", "--output", metavar=metavar, type=PATH, required=required, help=help)


def hardware_option(help: str) -> Callable[[Command], Command]:
    """``--hw`` of one machine."""
    return click.option("--hw", "hardware", metavar="NAME", help=help)


machines_option = click.option(
    "--hw",
    "machines",
    metavar="NAME[,NAME]",
    multiple=True,
    required=True,
    help="Machines to predict for (see 'moetrace profiles'); repeatable, or separated by commas.",
)


predicted_option = click.option(
    "--compare",
    "predicted",
    metavar="NAME[,NAME]",
    multiple=True,
    help="Machines to predict it on; the default is the one it ran on, H100 and CS-3.",
)


def named_machines(machines: Sequence[str]) -> list[Hardware | str] | None:
    """The machines of `predicted_option`, None where it was not given. Raises as `load_machines` does."""
    return list(load_machines(machines)) if machines else None


def names_in(text: str) -> list[str]:
    """The names between commas, with or without a space behind each."""
    return [name.strip() for name in text.split(",")]


def load_machines(machines: Sequence[str]) -> list[Hardware]:
    """The machines of `machines_option`. Raises ProfileError if there is no such one, or one is named twice."""
    from moetrace import load_hardware
    from moetrace.errors import ProfileError

    hardware = [load_hardware(name) for names in machines for name in names_in(names)]
    names = [machine.name for machine in hardware]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ProfileError(f"{','.join(machines)}: {twice} is named twice")
    return hardware


def scenario_options(without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """``--set``, and ``--n-a VALUE`` for ``--set n_a=VALUE`` and so on, one per knob but for those in `without`."""
    from moetrace.replay.knobs import knob_table

    def add(command: Command) -> Command:
        for name, meaning, _grammar in reversed(knob_table()):
            if name not in without:
                command = click.option(
                    f"--{name.replace('_', '-')}",
                    f"{_ALIAS}{name}",
                    metavar="VALUE",
                    multiple=True,
                    help=f"Same as --set {name}=VALUE: {meaning}.",
                )(command)
        return click.option("--set", "sets", metavar="NAME=VALUE", multiple=True, help=_SET_HELP)(command)

    return add


def edits(sets: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> list[str]:
    """All NAME=VALUE texts of a command line, those of ``--set`` first."""
    named = ((name.removeprefix(_ALIAS), values) for name, values in aliases.items())
    return [*sets, *(f"{name}={value}" for name, values in named for value in values)]


_READING = (
    click.option(
        "--model",
        metavar="NAME|FILE",
        help="The model that ran: a name from 'moetrace models' or a Hugging Face config.json.",
    ),
    click.option(
        "--capture-trace",
        metavar="FILE|DIR",
        type=PATH,
        help="Trace of the graphs' capture, or a folder of such, to name the kernels of replayed graphs.",
    ),
    click.option(
        "--kv-len",
        metavar="N",
        type=click.IntRange(min=1),
        help="KV tokens per sequence in the decode steps, if the trace does not say.",
    ),
    click.option(
        "--ran-tp",
        metavar="N",
        type=click.IntRange(min=1),
        help="Ranks that shared each layer's widths when it ran, if shapes do not show it.",
    ),
    click.option(
        "--ran-ep",
        metavar="N",
        type=click.IntRange(min=1),
        help="Ranks that shared out whole experts when it ran.",
    ),
)
_READ = ("model", "capture_trace", "kv_len", "ran_tp", "ran_ep")  # what these are called in `parse`


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a trace cannot say by itself; taken by every verb that reads one, as one `reading` for `open_source`."""

    @wraps(command)
    def gathered(**options: Any) -> Any:
        return command(reading={name: options.pop(name) for name in _READ}, **options)

    made: Callable[..., Any] = gathered
    for option in reversed(_READING):
        made = option(made)
    return made


def open_source(
    source: Path | Export, *, routing: Path | None = None, output: Path | None = None, **options: Any
) -> Run:
    """The run of a RUN directory, or of a trace that is parsed first, with the options of `parse`; temporary files lie
    beside `output`.

    Raises RunError where an option about reading a trace is given with a RUN, which is read already.
    """
    from moetrace.parse import open_run
    from moetrace.record.routing_files import read_routing
    from moetrace.report.terminal import progress

    chosen = read_routing(routing) if routing is not None else None
    with progress(f"reading {source.name}{_size(source)}") as tell:
        return open_run(
            source,
            **options,
            routing=chosen,
            progress=tell,
            scratch=next((p for p in output.absolute().parents if p.is_dir()), None) if output else None,
        )


def _size(source: Path | Export) -> str:
    """What the progress says of a file's size, or of that of a RUN behind a URL, which is copied here."""
    from moetrace.files import url_of

    if isinstance(source, Path) and (url := url_of(source)) is not None:
        from moetrace.ranks.remote import run_behind

        behind = run_behind(url)
        return f", copied here ({behind.size / 1e6:,.1f} MB)" if behind is not None else ""
    return f" ({source.stat().st_size / 1e6:,.0f} MB)" if source.is_file() else ""


def shown(source: Path) -> str:
    """How a source is written: a Path has one slash less than its URL."""
    from moetrace.files import url_of

    return url_of(source) or str(source)
