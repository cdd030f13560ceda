"""A real nsys on the CPU: what it records of our NVTX ranges leads to the same tree as the Kineto trace of the same run.

Marked `debian`: nsys comes from a Debian package (`make test-all`), and NVTX from nvtx 0.2.11, the last whose ranges the
nsys of Debian 12 and 13 records.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moetrace import formats
from moetrace.formats.events import RANGE, Events
from moetrace.parse.parts import Marks
from moetrace.parse.places import Places
from moetrace.parse.rows import Rows, op_rows
from tests.conftest import REPO

pytestmark = pytest.mark.debian

SCRIPT = """
import torch, transformers
torch.manual_seed(1)
config = transformers.AutoConfig.for_model(
    "olmoe", vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    num_experts=8, num_experts_per_tok=3, intermediate_size=16, max_position_embeddings=64, pad_token_id=0, eos_token_id=1)
model = transformers.AutoModelForCausalLM.from_config(config).eval()
model.generate(torch.randint(2, 97, (3, 5)), max_new_tokens=6, min_new_tokens=6, do_sample=False)
raise SystemExit(7)
"""
STEPS = 4
CALL = ("start", "end", "eventClass", "globalTid", "correlationId", "nameId", "returnValue")
KERNEL = ("start", "end", "deviceId", "contextId", "streamId", "correlationId", "globalPid")
KERNEL = (*KERNEL, "demangledName", "shortName", "mangledName")
_OURS = re.compile(r"moetrace\.(step|layer|part)")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `moetrace record --nsys` makes of a script: on a CPU torch.profiler runs too, so it holds both captures."""
    assert shutil.which("nsys"), "no nsys on the PATH: run make test-all"
    folder = tmp_path_factory.mktemp("nsys")
    (folder / "generate.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "moetrace",
        "record",
        "--nsys",
        "--active",
        str(STEPS),
        "-o",
        "out",
        "generate.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "MOETRACE_CANARY": "sing-no-song"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "out: recorded" in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["generate.py", "out"]
    return folder / "out"


def ranges_of(events: Events) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(name, start, end) of our ranges, outermost first."""
    at = [i for i in events.where(RANGE) if _OURS.match(events.texts[events.name[i]])]
    start, end = events.start[at], events.start[at] + events.dur[at]
    order = np.lexsort((-end, start))
    return [events.texts[events.name[at[i]]] for i in order], start[order], end[order]


def tree(events: Events) -> list[tuple[str, ...]]:
    """The path of each of our ranges, in order of time."""
    found: list[tuple[str, ...]] = []
    open_: list[tuple[str, int]] = []
    for name, start, end in zip(*ranges_of(events), strict=True):
        while open_ and open_[-1][1] <= start:
            open_.pop()
        open_.append((name, end))
        found.append(tuple(n for n, _ in open_))
    return found


def launch_all(database: Path, rows: Rows, events: Events) -> None:
    """Gives nsys's file a launch and a kernel for each operator of the Kineto trace, in tables as nsys makes them.

    There is no GPU here, so nsys saw no launch; when the operators ran is known from the other capture of the same run.
    """
    with sqlite3.connect(database) as db:
        began, ended = np.array(
            db.execute(
                "SELECT start, end FROM NVTX_EVENTS e JOIN StringIds s ON s.id = e.textId "
                "WHERE eventType = 59 AND value != 'moetrace.window' ORDER BY start, end DESC"
            ).fetchall()
        ).T
        _, start, end = ranges_of(events)
        # NVTX opens before and closes after the profiler's range of the same name; the clocks are not quite one.
        shift = round((np.median(began - start) + np.median(ended - end)) / 2)
        (thread,) = db.execute("SELECT globalTid FROM NVTX_EVENTS WHERE eventType = 59").fetchone()
        names = {text: i for i, text in db.execute("SELECT id, value FROM StringIds")}
        for text in {"cudaLaunchKernel_v7000", *(events.texts[c] for c in rows.kernel)} - set(names):
            names[text] = max(names.values()) + 1
            db.execute("INSERT INTO StringIds VALUES (?, ?)", (names[text], text))
        db.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME ({', '.join(CALL)})")
        db.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL ({', '.join(KERNEL)})")
        for i, (code, at, dur) in enumerate(zip(rows.kernel, rows.start, rows.dur, strict=True), 1):
            moment = int(at) + shift
            call = {
                "start": moment,
                "end": moment + 1,
                "eventClass": 0,
                "globalTid": thread,
                "correlationId": i,
                "returnValue": 0,
            }
            call["nameId"] = names["cudaLaunchKernel_v7000"]
            kernel = {
                "start": moment,
                "end": moment + int(dur),
                "deviceId": 0,
                "contextId": 1,
                "streamId": 7,
                "correlationId": i,
            }
            kernel |= dict.fromkeys(("demangledName", "shortName", "mangledName"), names[events.texts[code]])
            kernel["globalPid"] = thread & -16777216
            for table, row in (("RUNTIME", call), ("KERNEL", kernel)):
                marks = ", ".join("?" * len(row))
                insert = f"INSERT INTO CUPTI_ACTIVITY_KIND_{table} ({', '.join(row)}) VALUES ({marks})"
                db.execute(insert, tuple(row.values()))


def placed(events: Events) -> list[tuple[str, str, int, str]]:
    """(op, step, layer, part) of every row, as `parse` projects ranges onto ops."""
    rows, marks, places = op_rows(events), Marks(events.texts), Places(events)
    marks.saw(RANGE, events.name[events.where(RANGE)])
    assert marks.layer_source == "annotation"
    marks.place(rows, events)
    places.weigh(rows)
    step_of, names, _ = places.choose()
    return [
        (events.texts[code], str(names[s]) if s >= 0 else "", int(layer), marks.labels[p] if p >= 0 else "")
        for code, s, layer, p in zip(rows.kernel, step_of(rows), rows.layer, rows.part, strict=True)
    ]


def test_nsys_and_kineto_say_the_same_step_layer_and_part_of_every_op(
    recording: Path, tmp_path: Path
) -> None:
    kineto = formats.read(recording / "trace.json.gz")
    database = Path(shutil.copy(recording / "trace.sqlite", tmp_path / "seen.sqlite"))
    launch_all(database, op_rows(kineto), kineto)
    nsys = formats.read(database)
    assert tree(nsys) == tree(kineto)
    assert len(tree(nsys)) == STEPS * (1 + 1 + 2 * 7 + 3)
    expected = placed(kineto)
    assert placed(nsys) == expected
    assert {part for *_, part in expected} >= {"router", "experts", "attention", "lm_head", "sampling"}
    assert len({step for _, step, *_ in expected} - {""}) == STEPS


def test_no_environment_path_or_user_is_in_the_export(recording: Path) -> None:
    kept = (recording / "trace.sqlite").read_bytes()
    for secret in (
        "sing-no-song",
        str(recording.parent),
        "generate.py",
        getpass.getuser() + "@",
        socket.gethostname(),
    ):
        assert secret.encode() not in kept


def test_a_report_is_exported_by_the_real_nsys(tmp_path: Path) -> None:
    """Without a GPU it holds ranges alone: that they are counted shows that its export was read."""
    nsys = shutil.which("nsys")
    assert nsys, "no nsys on the PATH: run make test-all"
    script = "import nvtx\nfor i in range(7):\n    with nvtx.annotate(f'range {i}'):\n        pass\n"
    flags = ["-t", "nvtx", "--sample=none", "--cpuctxsw=none", "-f", "true", "-o", "r"]
    profile = [nsys, "profile", *flags, sys.executable, "-c", script]
    done = subprocess.run(profile, cwd=tmp_path, capture_output=True, text=True)
    report = tmp_path / "r.nsys-rep"
    assert report.is_file(), done.stdout + done.stderr
    command = [sys.executable, "-m", "moetrace", "parse", report.name]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"moetrace: error: r\.nsys-rep holds 7 NVTX range\(s\) and no GPU work: .*\n", done.stderr
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.nsys-rep"]
