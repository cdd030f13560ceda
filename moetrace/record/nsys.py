"""``--nsys``: a program recorded by Nsight Systems, with our NVTX ranges, and its export without what is private.

nsys runs `moetrace record` once more, inside. There the ranges are opened and, where torch sees a GPU, torch.profiler
stays off, for both would want the GPU's counters. Not run on a GPU so far; on a CPU with nsys 2022.4.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import orjson

from moetrace.errors import MoetraceError, OutputError
from moetrace.record import capture
from moetrace.record.files import NSYS_FILE, RECORDING_FILE, check_output, publish, staging
from moetrace.record.window import WINDOW

INSTALL = (
    "install Nsight Systems: 'apt-get install nsight-systems' (Debian: component non-free; NVIDIA's own repository has newer "
    "ones), or developer.nvidia.com/nsight-systems"
)
# Graphs by node, or their kernels are missing; nothing of the CPU but our ranges; from the first recorded step to the last.
FLAGS = (
    *("--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node"),
    *("--capture-range=nvtx", f"--nvtx-capture={WINDOW}@moetrace", "--capture-range-end=stop"),
    *("--force-overwrite=true", "--stats=false"),
)
_LAST_OLD_NVTX, _FIRST_NEW_NSYS = (0, 2, 11), 2024
# What is copied out of an export. All else may name people, hosts, paths or hold the environment.
_KEPT = re.compile(
    r"NVTX_EVENTS|CUPTI_ACTIVITY_KIND_\w+|CUDA_GRAPH_\w+|TARGET_INFO_(GPU|CUDA_DEVICE|SESSION_START_TIME)|NVTX_PAYLOAD_SCHEMA_ENTRIES"
)
_TEXT_IDS = ("textId", "nameId", "name", "demangledName", "shortName", "mangledName")


def find_nsys() -> str:
    """Path of the user's nsys. Raises MoetraceError if there is none, or none that sees the ranges of the nvtx package."""
    nsys = shutil.which("nsys")
    if nsys is None:
        raise MoetraceError(f"--nsys: no nsys is on the PATH: {INSTALL}")
    nvtx = capture.version("nvtx")
    if nvtx is None:
        raise MoetraceError("--nsys needs the nvtx package: pip install 'moetrace[record]'")
    done = subprocess.run([nsys, "--version"], capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    year = re.search(r"\b(20\d\d)\.\d+", done.stdout)
    if year is None:
        raise MoetraceError(f"--nsys: {nsys} --version says no version: {INSTALL}")
    release = tuple(int(n) for n in re.findall(r"\d+", nvtx)[:3])
    if int(year[1]) < _FIRST_NEW_NSYS and release > _LAST_OLD_NVTX:
        raise MoetraceError(
            f"--nsys: nsys {year[0]} records no range of nvtx {nvtx}: pip install nvtx==0.2.11, or take nsys from "
            f"{_FIRST_NEW_NSYS} on"
        )
    return nsys


def record_under_nsys(inner: Sequence[str], out: Path, force: bool) -> int:
    """Run ``moetrace record`` with the arguments `inner` under nsys and gather both into `out`; returns its exit status.

    `inner` lacks only ``-o``. Raises MoetraceError if there is no fit nsys or it made no report, OutputError if `out`
    cannot be written. Nothing is written where the program failed before its first recorded step.
    """
    nsys = find_nsys()
    check_output(out, force)
    made = staging(out)
    try:
        report, inside = made / "report", made / "recording"
        own = [sys.executable, "-m", "moetrace", "record", "--under-nsys", "-o", str(inside), *inner]
        status = subprocess.run([nsys, "profile", *FLAGS, "-o", str(report), *own], check=False).returncode  # noqa: S603
        if not (inside / RECORDING_FILE).is_file():
            if not status:
                raise OutputError(f"{out}: nothing was recorded")
            return status
        _export(nsys, report.with_suffix(".nsys-rep"), made / "export.sqlite")
        _keep(made / "export.sqlite", inside / NSYS_FILE)
        told = orjson.loads((inside / RECORDING_FILE).read_bytes()) | {"nsys": " ".join(FLAGS)}
        (inside / RECORDING_FILE).write_bytes(
            orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        publish(inside, out, force)
    except OSError as failure:
        raise OutputError(
            f"{out}: the recording could not be written: {failure.strerror or failure}"
        ) from failure
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return status


def _export(nsys: str, report: Path, target: Path) -> None:
    if not report.is_file():
        raise MoetraceError("--nsys: nsys left no report; its own messages say why")
    command = [nsys, "export", "--type=sqlite", "--force-overwrite=true", f"--output={target}", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode or not target.is_file():
        said = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1][:200]
        raise MoetraceError(f"--nsys: the report could not be exported (status {done.returncode}: {said})")


def _keep(export: Path, target: Path) -> None:
    """Copy ranges, launches, kernels and the names they use into `target`. Raises MoetraceError if it has no range of ours."""
    with closing(sqlite3.connect(target)) as db:
        db.execute("ATTACH ? AS export", (str(export),))
        tables = [
            name for (name,) in db.execute("SELECT name FROM export.sqlite_master WHERE type = 'table'")
        ]
        used = ["SELECT NULL"]
        for table in tables:
            if not _KEPT.fullmatch(table):
                continue
            columns = [
                row[1] for row in db.execute(f"PRAGMA export.table_info('{table}')") if row[1] != "uuid"
            ]
            listed = ", ".join(f'"{column}"' for column in columns)
            db.execute(f'CREATE TABLE "{table}" AS SELECT {listed} FROM export."{table}"')  # noqa: S608  names of tables
            used += [f'SELECT "{c}" FROM "{table}"' for c in columns if c in _TEXT_IDS]  # noqa: S608
        if "StringIds" in tables:
            ids = " UNION ".join(used)
            named = f"SELECT id, value FROM export.StringIds WHERE id IN ({ids})"  # noqa: S608
            db.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")  # a reader looks ids up
            db.execute(f"INSERT INTO StringIds {named}")
        db.commit()
        if "NVTX_EVENTS" not in tables:
            raise MoetraceError(
                "--nsys: nsys saw no NVTX range: its version and that of the nvtx package do not fit"
            )
