"""The campaign on one machine: decode points, single ops and whole traces, resumable, into one folder.

    python benchmarks/campaign/run.py -o campaign-h100                    # all of it, on CUDA
    python benchmarks/campaign/run.py -o campaign-h100 --minutes 8        # as much as fits; the next run goes on
    python benchmarks/campaign/run.py -o small --small                    # a few tiny points of each sort, on a CPU too

Every finished point is a line of points.jsonl; decode.parquet and ops.parquet are written anew at the end (docs/campaign.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plan
import pyarrow as pa
import torch
from decode import Built
from ops import ops, time_op

from moetrace import __version__
from moetrace.errors import MoetraceError
from moetrace.files import write_parquet
from moetrace.hardware.match import match_device
from moetrace.record.capture import device_facts
from moetrace.record.workload import Workload, run_workload

PARTS = ("ops", "decode", "traces")
_SMALL_MODELS = ("olmoe-1b-7b",)


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graphs = device.type == "cuda"
    if not graphs and not options.small:
        raise SystemExit("no CUDA device: give --small to try the campaign at reduced size")
    torch.manual_seed(0)
    log = Log(options.output, options.minutes, _hardware(device))
    models = tuple(options.model) or (_SMALL_MODELS if options.small else tuple(plan.FULL))
    if "ops" in options.only:
        for key, make in ops(device, options.small):
            log.point("ops", key, lambda make=make: _op_row(make, device))
    if "decode" in options.only:
        _decode(log, plan.decode_points(models, options.small, graphs), device)
    if "traces" in options.only:
        for name, work in plan.traces(models, options.small, graphs).items():
            log.point("traces", name, lambda name=name, work=work: _trace(options.output, name, work))
    log.tables()
    (options.output / "environment.json").write_text(json.dumps(_environment(device), indent=2) + "\n")
    print(log.summary())


class Log:
    """points.jsonl: what is done is not done again; what failed says why, and is tried again by the next run."""

    def __init__(self, folder: Path, minutes: float | None, hardware: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.hardware = folder, hardware
        self._path = folder / "points.jsonl"
        text = self._path.read_text() if self._path.exists() else ""
        if text and not text.endswith("\n"):  # a run was killed while it wrote
            self._path.write_text(text[: text.rfind("\n") + 1])
        self.rows = {(row["part"], row["key"]): row for row in _whole(text.splitlines())}
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.made, self.left = 0, 0

    def wanted(self, part: str, key: str) -> bool:
        """Whether a point is still to be done, and there is time for it."""
        row = self.rows.get((part, key))
        if row is not None and "error" not in row:
            return False
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.left += 1
            return False
        return True

    def point(self, part: str, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Do a point and write it down; one that the machine cannot do is written down with its error."""
        if not self.wanted(part, key):
            return
        row: dict[str, Any] = {"part": part, "key": key, "hardware": self.hardware}
        try:
            row |= make()
        except (RuntimeError, ValueError, NotImplementedError, MoetraceError) as failure:
            row["error"] = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.rows[part, key] = row
        self.made += 1
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{part}: {key}: {row.get('error') or _told(row)}", flush=True)

    def tables(self) -> None:
        """decode.parquet and ops.parquet from all that was done so far."""
        for part in ("decode", "ops"):
            rows = [row for (where, _), row in self.rows.items() if where == part and "error" not in row]
            if rows:
                frame = pd.DataFrame(rows).drop(columns=["part", "key"])
                meta = {"moetrace.campaign": f"{part}/1", "moetrace": __version__}
                write_parquet(
                    pa.Table.from_pandas(frame, preserve_index=False), self.folder / f"{part}.parquet", meta
                )

    def summary(self) -> str:
        failed = sum("error" in row for row in self.rows.values())
        return f"{self.folder}: {self.made} points now, {len(self.rows)} in all, {failed} failed, {self.left} left"


def _whole(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The lines that were written to their end."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "key" in row and "part" in row:
            yield row


def _told(row: dict[str, Any]) -> str:
    return f"{1e6 * row['seconds']:.1f} us" if "seconds" in row else str(row.get("bytes", "done"))


def _decode(log: Log, points: list[plan.Point], device: torch.device) -> None:
    """Points in their order, grouped by the model that they run on, which is built once."""
    groups: dict[tuple[Any, ...], list[plan.Point]] = {}
    for point in points:
        groups.setdefault(point.build, []).append(point)
    for group in groups.values():
        held: list[Built] = []
        for point in group:
            log.point("decode", point.key, lambda point=point, held=held: _decode_row(point, held, device))
        held.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _decode_row(point: plan.Point, held: list[Built], device: torch.device) -> dict[str, Any]:
    if not held:
        held.append(Built(point, device, "bf16"))
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
        **held[0].time(point),
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
    run_workload(Workload(**options), out, force=True)
    return {"bytes": sum(path.stat().st_size for path in out.iterdir())}


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
    if device.type == "cuda" and (smi := shutil.which("nvidia-smi")):
        asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
        done = subprocess.run(
            [smi, f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True, check=False
        )
        facts["nvidia_smi"] = done.stdout.splitlines()
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
    options = parser.parse_args()
    options.only = options.only or list(PARTS)
    return options


if __name__ == "__main__":
    main()
