"""Times the reading of long Kineto traces against other ways: CPU seconds and peak memory, each in a process of its own.

    python benchmarks/bench_parse.py [--trace STEP.json.gz] [--model NAME] [--mb 30 300 3000] [--ways parse json floor]
                                     [--envs FOLDER] [--repeat 1]

Builds traces of the asked size (of JSON, before gzip) by repeating one recorded trace in torch's own formatting, with
times and ids shifted on every repeat. Give `--trace` the trace of one graph-replayed decode step for hundreds of replays;
without it the shipped OLMoE trace is repeated, which was recorded on a CPU.

Ways of moetrace: `parse` (the command, trace to RUN directory on disk), `attribute` and `replay` (the commands, of that
RUN), `read` (the reader alone). Others: `hta` (HolisticTraceAnalysis with its kernel breakdown) from PyPI, in a virtual
environment that is made in the folder `--envs`; `tracelens` (TraceLens' TreePerfAnalyzer with its GPU timeline and ops), which
is not on PyPI, if that folder has an environment with it; `json` (json.load and pandas, as most scripts do it); `floor`
(gunzip and orjson.loads of the whole file, nothing kept). Ways that hold the whole file in memory are run up to 300 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bench_traces import KINDS, MB, build

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "traces" / "kineto" / "olmoe-1b-7b-l2-b16-cpu" / "trace.json.gz"
_MOST_WHOLE = 300  # MB of JSON for ways that hold all of it in memory


# -- ways ----------------------------------------------------------------------------------------------------------
def _command(*arguments: str) -> str:
    from moetrace.cli.main import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run(arguments)
    return "done" if status == 0 else f"status {status}"


def _run_of(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0] + ".run")


def _parse(path: Path) -> str:
    model = os.environ.get(MODEL)
    given = ("--model", model) if model else ()
    return _command("parse", str(path), *given, "-o", str(_run_of(path)), "--force")


def _attribute(path: Path) -> str:
    return _command("attribute", str(_run_of(path)), "--hw", "h100-sxm", "--force")


def _replay(path: Path) -> str:
    return _command("replay", str(_run_of(path)), "--hw", "h100-sxm")


def _tracelens(path: Path) -> str:
    from TraceLens import TreePerfAnalyzer

    analyser = TreePerfAnalyzer.from_file(str(path))
    analyser.get_df_gpu_timeline()
    return f"{len(analyser.get_df_kernel_launchers())} kernel launchers"


def _hta(path: Path) -> str:
    from hta.trace_analysis import TraceAnalysis

    analysis = TraceAnalysis(trace_files={0: str(path)})
    types, _ = analysis.get_gpu_kernel_breakdown(visualize=False)
    return f"{len(types)} kernel types"


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
    "parse": _parse, "attribute": _attribute, "replay": _replay, "read": _read, "tracelens": _tracelens, "hta": _hta,
    "json": _json, "floor": _floor,
}  # fmt: skip
PEERS = {"hta": "HolisticTraceAnalysis", "tracelens": ""}  # what PyPI calls them; "": it has none
WHOLE = {*PEERS, "json", "floor"}  # hold all of a file in memory
MODEL = "MOETRACE_BENCH_MODEL"
_NO_TRACELENS = (
    "tracelens is left out: AMD's TraceLens is not on PyPI, where an evaluation framework for AI agents has its name; to "
    "include it make a virtual environment {} with 'pip install git+https://github.com/AMD-AGI/TraceLens'"
)


def interpreter(way: str, envs: Path) -> str | None:
    """The Python that runs a way; that of a peer is made with the peer in it, None where that cannot be done."""
    if way not in PEERS:
        return sys.executable
    home = envs / way
    python = home / "bin" / "python"
    if not python.exists() and not PEERS[way]:
        print(_NO_TRACELENS.format(home), flush=True)
        return None
    if not python.exists():
        print(f"installing {PEERS[way]} in {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PEERS[way]], check=True)
    return str(python)


def measure(way: str, path: Path, python: str) -> dict[str, Any]:
    """One run of a way in a fresh process: CPU seconds, wall seconds, peak MB, what it got."""
    out = subprocess.run(
        [python, __file__, "--one", way, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, **({} if way in PEERS else {"PYTHONPATH": str(ROOT)})},
        check=False,
    )
    if out.returncode:
        nan = float("nan")
        return {"cpu": nan, "wall": nan, "peak": nan, "got": out.stderr.strip()[-120:]}
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
    parser.add_argument("--mb", type=float, nargs="+", default=[30, 300, 3000], help="sizes of JSON in MB")
    parser.add_argument("--kind", choices=KINDS, default="steps", help="what is repeated (bench_traces.py)")
    parser.add_argument("--model", help="the model that ran, for moetrace")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--envs", type=Path, default=Path("bench-envs"), help="folder of the peers' environments"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each way; the one with the least CPU time is shown"
    )
    parser.add_argument("--keep", type=Path, help="folder in which the built traces stay, to be used again")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        _one(args.one[0], Path(args.one[1]))
        return
    if args.model:
        os.environ[MODEL] = args.model
    with tempfile.TemporaryDirectory() as folder:
        home = args.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        print(f"{'JSON MB':>8} {'way':>9} {'CPU-s':>7} {'wall s':>7} {'peak MB':>8} {'MB/CPU-s':>9}  result")
        for size in args.mb:
            path = home / f"{args.kind}-{size:g}mb.json.gz"
            written = size * MB  # of one that was kept; the last repeat takes it a little further
            if not path.exists():
                _, written = build(args.trace, path, int(size * MB), args.kind)
            print(f"{written / MB:8.0f} {path.stat().st_size / MB:.1f} MB of gzip", flush=True)
            for way in args.ways:
                if way in WHOLE and size > _MOST_WHOLE:
                    continue
                if (python := interpreter(way, args.envs)) is None:
                    continue
                row = min((measure(way, path, python) for _ in range(args.repeat)), key=lambda r: r["cpu"])
                print(
                    f"{written / MB:8.0f} {way:>9} {row['cpu']:7.2f} {row['wall']:7.2f} {row['peak']:8.0f} "
                    f"{written / MB / row['cpu']:9.0f}  {row['got']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
