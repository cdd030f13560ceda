"""The campaign on one machine: whole traces, decode points and single ops, resumable, into one folder.

    python benchmarks/campaign/run.py -o campaign-h100                    # all of it, on CUDA
    python benchmarks/campaign/run.py -o campaign-h100 --minutes 8        # as much as fits; the next run goes on
    python benchmarks/campaign/run.py -o small --small                    # a few tiny points of each sort, on a CPU too

Every finished point is a line of points.jsonl; decode.parquet and ops.parquet are written anew at the end (docs/campaign.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plan
import torch
from clocks import Clocks
from decode import Built
from log import BrokenDeviceError, Log, NoKernelsError, pack
from ops import ops, time_op

from moetrace import __version__
from moetrace.hardware.match import match_device
from moetrace.record.device import NO_KERNELS, device_facts
from moetrace.record.workload import Workload, run_workload

PARTS = ("traces", "decode", "ops")
_SMALL_MODELS = ("olmoe-1b-7b",)


@dataclass(frozen=True, slots=True)
class Job:
    """A point of the campaign; jobs of one `build` run on the same model."""

    part: str
    key: str
    make: Callable[[], dict[str, Any]]
    build: tuple[object, ...] = ()


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not options.small:
        raise SystemExit("no CUDA device: give --small to try the campaign at reduced size")
    torch.manual_seed(0)
    models = tuple(options.model) or (_SMALL_MODELS if options.small else tuple(plan.FULL))
    with Clocks(device) as clocks:
        log = Log(options.output, options.minutes, _hardware(device), clocks)
        held = Held(device)
        jobs = [job for job in _jobs(options, models, device, held) if job.part in options.only]
        broken = _work(log, sorted(jobs, key=lambda job: log.tries(job.part, job.key)), held)
    log.tables()
    (options.output / "environment.json").write_text(json.dumps(_environment(device), indent=2) + "\n")
    if options.pack is not None:
        print("packed:", ", ".join(str(path) for path in pack(options.output, options.pack)))
    print(log.summary())
    if broken:
        raise SystemExit(f"stopped: {broken}; run it again, it goes on from here")


def _work(log: Log, jobs: list[Job], held: Held) -> str:
    """Does the jobs in their order; why it stopped before the end, if it did."""
    blind = False
    for job in jobs:
        if blind and job.part == "traces":
            continue
        if held.build != job.build:
            held.drop()
        try:
            log.point(job.part, job.key, job.make)
        except NoKernelsError as said:
            blind = True
            print(f"traces: {said}; no more traces are tried", file=sys.stderr, flush=True)
        except BrokenDeviceError as failure:
            return f"the device failed ({failure})"
    return ""


class Held:
    """The model that decode points run on, until another is needed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.build: tuple[object, ...] = ()
        self._built: Built | None = None
        self._cannot: dict[tuple[object, ...], str] = {}  # what is too large once is not tried for each point

    def of(self, point: plan.Point) -> Built:
        if self._built is None:
            if said := self._cannot.get(point.build):
                raise RuntimeError(said)
            self.build = point.build
            try:
                self._built = Built(point, self.device, "bf16")
            except RuntimeError as failure:
                self._cannot[point.build] = f"the model cannot be built: {str(failure).splitlines()[0]}"
                raise
        return self._built

    def drop(self) -> None:
        self._built, self.build = None, ()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _jobs(
    options: argparse.Namespace, models: tuple[str, ...], device: torch.device, held: Held
) -> Iterator[Job]:
    """By worth: traces, decode of every model at its own n_a, ops, the rest of decode."""
    graphs = device.type == "cuda"
    for name, work in plan.traces(models, options.small, graphs).items():
        yield Job("traces", name, partial(_trace, options.output, name, work))
    points = plan.decode_points(models, options.small, graphs)
    first = [p for p in points if p.is_first]
    for point in first:
        yield Job("decode", point.key, partial(_decode_row, point, held), point.build)
    for key, make in ops(device, options.small):
        yield Job("ops", key, partial(_op_row, make, device))
    for point in (p for p in points if not p.is_first):
        yield Job("decode", point.key, partial(_decode_row, point, held), point.build)


def _decode_row(point: plan.Point, held: Held) -> dict[str, Any]:
    model = Path(point.model).stem if point.model.endswith(".json") else point.model
    return {
        "model": model,
        "layers": point.layers,
        "batch": point.batch,
        "context": point.context,
        "expert_width": point.expert_width,
        "dtype": "bf16",
        "expert_dtype": point.expert_dtype or "bf16",
        "experts": point.experts,
        "graph": point.graph,
        "routing": point.routing,
        **held.of(point).time(point),
        "source": f"benchmarks/campaign, torch {torch.__version__}",
    }


def _op_row(make: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    timed = make()
    seconds = time_op(timed, device)
    return {
        "kind": timed.op.kind,
        "dtype": timed.op.dtype,
        **dict(timed.op.dims),
        "seconds": float(np.median(seconds)),
        "p10_s": float(np.quantile(seconds, 0.1)),
        "p90_s": float(np.quantile(seconds, 0.9)),
        "repeats": len(seconds),
        "engine": "torch",
        "kernel": timed.kernel,
        "source": f"benchmarks/campaign, torch {torch.__version__}",
    }


def _trace(folder: Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    out = folder / "traces" / name
    told = run_workload(Workload(**options), out, force=out.exists())
    if told["saw_no_kernel"]:
        shutil.rmtree(out)
        raise NoKernelsError(NO_KERNELS)
    return {"bytes": sum(path.stat().st_size for path in out.iterdir()), "tokens_equal": told["tokens_equal"]}


def _hardware(device: torch.device) -> str:
    """The profile of the machine, else its own name."""
    if device.type == "cpu":
        return "cpu"
    card = torch.cuda.get_device_properties(device)
    return match_device(card.name, card.total_memory, card.multi_processor_count) or card.name


def _environment(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "moetrace": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": device_facts(device),
    }
    return facts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for the results; an old one is gone on with"
    )
    parser.add_argument("--small", action="store_true", help="a few tiny points of each sort")
    parser.add_argument(
        "--model", action="append", default=[], help="instead of the four: a name or config.json; repeats"
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeats (default: all)")
    parser.add_argument("--minutes", type=float, help="begin no point after so long")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="also put all results there as tars of 15 MiB"
    )
    options = parser.parse_args()
    options.only = options.only or list(PARTS)
    return options


if __name__ == "__main__":
    main()
