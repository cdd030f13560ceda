"""``moetrace record -- SCRIPT``: runs a user's program under the recorder and tells what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moetrace.record.script import Program


def program_of(words: tuple[str, ...], module: str | None) -> Program | None:
    from moetrace.record.script import Program

    if module is None and words[:1] == ("-m",):
        if len(words) < 2:
            raise click.UsageError("-m: the module's name is missing")
        return Program(words[1], words[2:], is_module=True)
    if module is not None:
        return Program(module, words, is_module=True)
    return Program(words[0], words[1:]) if words else None


def run_program_recorded(
    program: Program, output: Path, force: bool, as_json: bool, options: dict[str, Any]
) -> None:
    """Records a program and leaves with its exit status."""
    parts = dict(_part(text) for text in options.pop("parts"))
    under, nsys = options.pop("under_nsys"), options.pop("nsys")
    if nsys:
        from moetrace.record.nsys import record_under_nsys

        named = [f"--part={part}={pattern}" for part, pattern in parts.items()]
        flags = ["--token-ids"] * options.pop("token_ids")
        counts = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        status = record_under_nsys([*counts, *flags, *named, "--", *program.command()], output, force)
        if output.is_dir():
            _said(
                {"output": str(output), "status": status},
                as_json,
                f"{output}: recorded; next: moetrace parse {output}",
            )
        sys.exit(status)
    from moetrace.record.device import NO_KERNELS, saw_no_kernel
    from moetrace.record.script import run_program
    from moetrace.record.settings import Settings

    settings = Settings(experts_only=True, parts=parts or None, force=force, nsys=under, **options)
    ran = run_program(program, output, settings)
    _show_end(ran.error)
    if ran.said:
        click.echo(f"moetrace: error: {ran.said}", err=True)
        sys.exit(ran.status or 2)
    if ran.recording is not None and not under:
        told = ("ended", "model", "overhead", "overhead_unknown", "routing", "models_not_recorded")
        facts = {key: ran.recording[key] for key in told}
        if others := ran.recording["models_not_recorded"]:
            click.echo(
                f"moetrace: note: one model is recorded, the first with experts that is called; not {', '.join(others)}, "
                "which this program holds or called too (moetrace.record(model=...) records another)",
                err=True,
            )
        if saw_no_kernel(ran.recording):
            click.echo(f"moetrace: note: {NO_KERNELS}", err=True)
        steps = len(ran.recording["steps"])
        _said(
            {"output": str(output), "status": ran.status, "steps": steps, **facts},
            as_json,
            _told(output, ran.recording),
        )
    sys.exit(ran.status)


def _part(text: str) -> tuple[str, str]:
    part, sign, pattern = text.partition("=")
    if not sign or not pattern:
        raise click.UsageError(
            f"--part {text!r}: expected PART=PATTERN, such as router=model.layers.*.ff.gate"
        )
    return part, pattern


def _told(output: Path, recording: dict[str, Any]) -> str:
    phases = [step["phase"] for step in recording["steps"]]
    counts = " and ".join(f"{phases.count(p)} {p}" for p in dict.fromkeys(phases))
    cost = recording["overhead"]
    said = (
        f"a decode step took {1e3 * cost['recorded_step_s']:.1f} ms recorded and {1e3 * cost['unprofiled_step_s']:.1f} ms "
        "unrecorded (medians)"
        if cost
        else f"what recording cost is not known: {recording['overhead_unknown']}"
    )
    return f"{output}: recorded {counts} step(s) of {recording['model_class']}; {said}; next: moetrace parse {output}"


def _said(facts: dict[str, Any], as_json: bool, line: str) -> None:
    """The program's output is its own: a line of ours goes to stderr."""
    click.echo(
        json.dumps({"schema": "moetrace.record/1", **facts}) if as_json else f"moetrace: {line}",
        err=not as_json,
    )


def _show_end(error: BaseException | None) -> None:
    """What python prints when a program ends by an exception, without the frames that are ours."""
    if isinstance(error, SystemExit):
        if error.code is not None and not isinstance(error.code, int):
            click.echo(str(error.code), err=True)
    elif error is not None:
        import traceback

        trace, ours = (
            error.__traceback__,
            (str(Path(__file__).parents[1]), "<frozen runpy>", "<frozen importlib"),
        )
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith(ours):
            trace = trace.tb_next
        sys.stdout.flush()
        traceback.print_exception(type(error), error, trace)
