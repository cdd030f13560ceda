"""Traces -> Run: links kernels to launches and operators, finds steps and layers, names every op and records its work.

`parse` is the whole way; the files beside it are its stages: gather (events to rows, in batches of whole steps), rows (what
is an op), steps and places, parts (annotations), aside (what is no request's), order and period (what the sequence of kernels
says), expected (what the model says of it), capture (graphs), build (ops and their work), stages (all of these in turn),
summary (what was covered).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from inspect import Signature, signature
from pathlib import Path
from typing import Any

import orjson

from moetrace import formats
from moetrace.errors import RunError, TraceError
from moetrace.files import GRID_SUMMARY, is_run, lone_run, url_of
from moetrace.formats.where import traces_at
from moetrace.given import misfit
from moetrace.hardware import Hardware, load_hardware
from moetrace.model import ModelSpec, load_model
from moetrace.model.fields import is_whole
from moetrace.ops import Names, communication_names
from moetrace.parse import facts
from moetrace.parse.stages import Asked, resolved
from moetrace.parse.summary import summary
from moetrace.ranks import Ranks
from moetrace.ranks.remote import run_behind
from moetrace.routing import Routing, RoutingLog
from moetrace.run import Run

Progress = Callable[[float], object]
_HOW = ("progress", "scratch")  # options that say nothing of the trace
_RECORDING, _NSYS = "recording.json", "trace.sqlite"
# What the recorder calls a trace: its folder has the telling name.
_IN_RECORDING = ("trace.json.gz", "trace.json", _NSYS)
_CAPTURE = "capture.json.gz"  # and the trace of its graph's capture, if it replayed one


def open_run(path: str | os.PathLike[str] | formats.Export, **options: Any) -> Run:
    """The run at a path: a RUN directory, of one rank or of many, is loaded, anything else is parsed (options as in `parse`).

    A folder with nothing in it but one RUN stands for that one.
    A RUN behind a URL is copied into a temporary file without a name first.
    Raises RunError where an option about reading a trace is given with a RUN, which is read already.
    """
    if isinstance(path, formats.Export):
        return parse(path, **options)
    root = _path(path)
    behind = run_behind(url) if (url := url_of(root)) is not None else None
    root = root if url is not None else lone_run(root)
    if behind is None and not is_run(root):
        return parse(root, **options)
    said = [name for name, value in options.items() if value is not None and name not in _HOW]
    if said:
        raise RunError(f"{url or root} is parsed already: {', '.join(said)} can be given only with a trace")
    if behind is not None:
        return behind.load(options.get("progress"))
    return Run.load(root) if (root / "run.json").is_file() else Ranks.load(root)


def _path(given: object) -> Path:
    """The path that was given. Raises TraceError for a value that is none."""
    if not isinstance(given, str | os.PathLike):
        raise TraceError(misfit(given, "path", "expected that of a trace or a RUN"))
    return Path(given)


def _check_counts(**given: int | None) -> None:
    """Raises TraceError for an option that no run could have."""
    for option, number in given.items():
        if number is not None and not is_whole(number, 1):
            raise TraceError(f"{option} is {number}: expected a whole number from 1 that a run could have")


def parse(
    trace: str | os.PathLike[str] | formats.Export,
    *,
    model: str | os.PathLike[str] | ModelSpec | None = None,
    capture_trace: str | os.PathLike[str] | None = None,
    kv_len: int | None = None,
    ran_tp: int | None = None,
    ran_ep: int | None = None,
    hardware: Hardware | str | None = None,
    routing: Routing | RoutingLog | None = None,
    comm_table: str | os.PathLike[str] | Names | None = None,
    progress: Progress | None = None,
    scratch: Path | None = None,
    place: tuple[int, int] | None = None,
    gpu: int | None = None,
) -> Run:
    """The Run of a PyTorch-profiler trace file, or of a directory that `moetrace record` wrote.

    `model` (a built-in name or a config.json) supplies what a trace cannot; without it the recording's own model is
    taken, or the one catalogue entry that fits what is seen. `capture_trace` is the trace of the graphs' capture (or a
    folder of such), `kv_len` the KV tokens per sequence where annotations have none, `ran_tp` and `ran_ep` the sizes of tensor
    and expert parallelism where shapes do not show them, `hardware` the profile of the machine it ran on, `routing` which
    experts were chosen, in place of what lies beside the trace, `comm_table` a file of names
    of communication kernels that go before the built-in ones (docs/formats.md), `place` the rank and the number of ranks where
    it says neither, `gpu` which of the ranks of an nsys export that holds several (from 0, by GPU and process).
    A long trace is sorted in temporary files without a name, in the folder `scratch` or the system's, and so is its table of
    ops until it is saved.
    Raises TraceError, ModelError or ProfileError with one line.
    """
    _check_counts(kv_len=kv_len, ran_tp=ran_tp, ran_ep=ran_ep)
    if isinstance(trace, str | os.PathLike) and is_run(Path(trace)):
        raise TraceError(f"{os.fspath(trace)} is a RUN, which is parsed already: moetrace.load reads it")
    located = trace if isinstance(trace, formats.Export) else formats.located(_path(trace))
    file, recording, recorded = _locate(located)
    if capture_trace is None and recording and isinstance(file, Path) and file.with_name(_CAPTURE).is_file():
        capture_trace = file.with_name(_CAPTURE)
    given = None if model is None else load_model(model)
    if hardware is not None:
        known = load_hardware(hardware)
        hardware = known.name if isinstance(hardware, Hardware) else os.fspath(hardware)
    if not isinstance(routing, Routing | RoutingLog | None):
        raise RunError(misfit(routing, "Routing", "Routing.load reads one"))
    names = comm_table if isinstance(comm_table, Names | None) else communication_names(Path(comm_table))
    captures = traces_at(Path(capture_trace)) if capture_trace is not None else []
    events = formats.read(file, progress, formats.Spill(scratch), gpu)
    if place is not None:
        events = formats.placed(events, *place)
    own = isinstance(file, Path) and file.name in _IN_RECORDING
    name = file.resolve().parent.name if own and isinstance(file, Path) else file.name
    asked = Asked(given, kv_len, facts.Split(ran_tp, ran_ep), hardware, names)
    return resolved(
        events,
        file,
        facts.source_of(name),
        recording,
        recorded if routing is None else routing,
        asked,
        captures,
    )


def _locate(
    path: Path | formats.Remote | formats.Export,
) -> tuple[Path | formats.Remote | formats.Export, Mapping[str, Any], Routing | None]:
    """(trace file, the recorder's metadata, the recorded routing) of a file, a recording's directory or one with a trace."""
    own = path.path if isinstance(path, formats.Export) else path
    if not isinstance(own, Path):
        return path, {}, None
    if own is not path:  # a rank of an nsys file, or of a recording with one
        return path, *(_facts_in(own) if own.is_dir() else _facts_beside(own))
    if not own.is_dir():
        return path, *_facts_beside(own)
    path = own
    traces = [p for p in (path / name for name in _IN_RECORDING) if p.is_file()]
    if not traces:
        if runs := sorted(p.name for p in path.iterdir() if is_run(p)):
            raise TraceError(
                f"{path} holds the runs {', '.join(runs[:3])}{', ...' if runs[3:] else ''}: give one of them, or a trace"
            )
        if (path / GRID_SUMMARY).is_file():
            raise TraceError(
                f"{path} is a grid, whose scenarios are tables and no run: read {path / 'scenarios'} ('moetrace schema "
                "scenarios' lists their columns)"
            )
        return formats.trace_in(path), {}, None
    return traces[0], *_facts_in(path)


def _facts_beside(path: Path) -> tuple[Mapping[str, Any], Routing | None]:
    """The same of the recording that a trace lies in: given by its file or by its folder, it is the same run."""
    recorded = path.name in _IN_RECORDING and path.with_name(_RECORDING).is_file()
    return _facts_in(path.parent) if recorded else ({}, None)


def _facts_in(folder: Path) -> tuple[Mapping[str, Any], Routing | None]:
    """(the recorder's metadata, the recorded routing) in a recording's directory."""
    meta = folder / _RECORDING
    try:
        recording = orjson.loads(meta.read_bytes()) if meta.is_file() else {}
    except orjson.JSONDecodeError as err:
        raise TraceError(f"{meta} is damaged ({err}): record again") from err
    if not isinstance(recording, dict):
        raise TraceError(f"{meta} is damaged (expected an object with the recording's facts): record again")
    routing = folder / "routing.parquet"
    return recording, Routing.load(routing) if routing.is_file() else None


def _as_parse() -> Signature:
    """What `open_run` takes: a path, and the options of `parse`."""
    _, *options = signature(parse).parameters.values()
    path, *_ = signature(open_run).parameters.values()
    return Signature([path, *options], return_annotation="Run")


open_run.__signature__ = _as_parse()  # type: ignore[attr-defined]

__all__ = ["open_run", "parse", "summary"]
