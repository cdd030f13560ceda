"""Times the reading of long Kineto traces against other ways: CPU seconds and peak memory, each in a process of its own.

    python benchmarks/bench_parse.py [--trace STEP.json.gz] [--mb 30 300] [--ways parse json floor] [--repeat 1]

Builds traces of the asked size (of JSON, before gzip) by repeating one recorded trace in torch's own formatting, with
times and ids shifted on every repeat. Give `--trace` the trace of one graph-replayed decode step for hundreds of replays;
without it the shipped OLMoE trace is repeated, which was recorded on a CPU.

Ways: `parse` (moetrace.parse, to a Run in memory), `save` (that and the RUN directory), `read` (moetrace's reader alone),
`json` (json.load and pandas, as most scripts do it), `floor` (gunzip and orjson.loads of the whole file, nothing kept).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu" / "trace.json.gz"
MB = 1_000_000
# Numbers that count up through a recording: their distance is shifted on every repeat. `id` is that of flow events.
COUNTED = (
    "External id",
    "correlation",
    "Record function id",
    "Ev Idx",
    "Python id",
    "Python parent id",
    "id",
)


# -- building ------------------------------------------------------------------------------------------------------
class _Template:
    """One repeat as text with holes: for times (ns, printed as us with 3 decimals) and for counted ids."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.holes: list[tuple[str, int]] = []

    def add(self, text: str) -> None:
        self.parts.append(text.replace("%", "%%"))

    def hole(self, kind: str, value: int) -> None:
        self.parts.append("%d.%03d" if kind == "ts" else "%d")
        self.holes.append((kind, value))

    def event(self, event: dict[str, Any]) -> None:
        """An event as torch prints it: a key a line, the args below."""
        self.add("  {\n")
        for i, (key, value) in enumerate(event.items()):
            self.add((",\n" if i else "") + f"    {json.dumps(key)}: ")
            if key == "ts" and isinstance(value, (int, float)):
                self.hole("ts", round(value * 1000))
            elif key == "args" and isinstance(value, dict):
                self.args(value)
            else:
                self.value(key, value)
        self.add("\n  }")

    def args(self, args: dict[str, Any]) -> None:
        self.add("{\n      ")
        for i, (key, value) in enumerate(args.items()):
            self.add((", " if i else "") + f"{json.dumps(key)}: ")
            self.value(key, value)
        self.add("\n    }")

    def value(self, key: str, value: Any) -> None:
        if key in COUNTED and isinstance(value, int) and value >= 0:
            self.hole(key, value)
        else:
            self.add(json.dumps(value))


def build(source: Path, target: Path, size: int) -> tuple[int, int]:
    """Writes a gzip trace of about `size` bytes of JSON made of repeats of `source`; (repeats, bytes of JSON)."""
    with gzip.open(source) as file:
        document = json.load(file)
    events = [e for e in document.pop("traceEvents") if e.get("ph") in ("X", "s", "f", "i")]
    template = _Template()
    for i, event in enumerate(events):
        template.add(",\n" if i else "")
        template.event(event)
    text, holes = "".join(template.parts), template.holes
    times = [v for kind, v in holes if kind == "ts"]
    period = max(times) - min(times) + 1_000_000
    counted = [v for kind, v in holes if kind != "ts"]
    stride = max(counted) - min(counted) + 1 if counted else 0
    written = 0
    with target.open("wb") as file:
        pack = zlib.compressobj(6, wbits=31)

        def put(said: str) -> int:
            data = said.encode()
            file.write(pack.compress(data))
            return len(data)

        head = json.dumps(document, indent=2).rstrip("}").rstrip()
        written += put(head + ',\n  "traceEvents": [\n')
        repeats = 0
        while written < size:
            written += put((",\n" if repeats else "") + text % _filled(holes, repeats, period, stride))
            repeats += 1
        written += put('\n  ],"traceName": "trace.json" }\n')
        file.write(pack.flush())
    return repeats, written


def _filled(holes: list[tuple[str, int]], repeat: int, period: int, stride: int) -> tuple[int, ...]:
    out: list[int] = []
    for kind, value in holes:
        if kind == "ts":
            out += divmod(value + repeat * period, 1000)
        else:
            out.append(value + repeat * stride)
    return tuple(out)


# -- ways ----------------------------------------------------------------------------------------------------------
def _parse(path: Path) -> str:
    import moetrace

    run = moetrace.parse(path)
    return f"{run.num_rows:,} ops, {len(run.meta.steps):,} steps"


def _save(path: Path) -> str:
    import moetrace

    with tempfile.TemporaryDirectory() as folder:
        run = moetrace.parse(path).save(Path(folder) / "run")
        return f"{run.num_rows:,} ops saved"


def _read(path: Path) -> str:
    from moetrace import formats

    events = formats.read(path)
    return f"{len(events.cls):,} of {events.counts['events']:,} events kept"


def _json(path: Path) -> str:
    import pandas as pd

    with gzip.open(path) as file:
        frame = pd.DataFrame(json.load(file)["traceEvents"])
    return f"{len(frame):,} events in a DataFrame, args as dicts"


def _floor(path: Path) -> str:
    import orjson

    with path.open("rb") as file:
        data = gzip.decompress(_all(file))
    return f"{len(orjson.loads(data)['traceEvents']):,} events as dicts, nothing made of them"


def _all(file: BinaryIO) -> bytes:
    return file.read()


WAYS: dict[str, Callable[[Path], str]] = {
    "parse": _parse, "save": _save, "read": _read, "json": _json, "floor": _floor,
}  # fmt: skip


def measure(way: str, path: Path) -> dict[str, Any]:
    """One run of a way in a fresh process: CPU seconds, wall seconds, peak MB, what it got."""
    out = subprocess.run(
        [sys.executable, __file__, "--one", way, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if out.returncode:
        return {
            "cpu": float("nan"),
            "wall": float("nan"),
            "peak": float("nan"),
            "got": out.stderr.strip()[-120:],
        }
    return dict(json.loads(out.stdout.splitlines()[-1]))


def _one(way: str, path: Path) -> None:
    began = time.perf_counter()
    got = WAYS[way](path)
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "wall": wall, "peak": _peak() / MB, "got": got}))


def _peak() -> int:
    """Peak resident bytes of this process. Linux's ru_maxrss may be the parent's, from before the exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(
            int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=SHIPPED, help="the trace to repeat (.json.gz)")
    parser.add_argument("--mb", type=float, nargs="+", default=[30, 300], help="sizes of JSON in MB")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["parse", "json", "floor"])
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each way; the one with the least CPU time is shown"
    )
    parser.add_argument("--keep", type=Path, help="folder in which the built traces stay")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        _one(args.one[0], Path(args.one[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = args.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        print(f"{'JSON MB':>8} {'way':>6} {'CPU-s':>7} {'wall s':>7} {'peak MB':>8} {'MB/CPU-s':>9}  result")
        for size in args.mb:
            path = home / f"trace-{size:g}mb.json.gz"
            repeats, written = build(args.trace, path, int(size * MB))
            print(
                f"{written / MB:8.0f} {path.stat().st_size / MB:.1f} MB of gzip, {repeats} repeats",
                flush=True,
            )
            for way in args.ways:
                rows = sorted((measure(way, path) for _ in range(args.repeat)), key=lambda r: r["cpu"])
                row = rows[0]
                print(
                    f"{written / MB:8.0f} {way:>6} {row['cpu']:7.2f} {row['wall']:7.2f} {row['peak']:8.0f} "
                    f"{written / MB / row['cpu']:9.0f}  {row['got']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
