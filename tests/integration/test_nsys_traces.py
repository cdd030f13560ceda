"""Real nsys exports, where they are at hand (they are third-party data and do not ship); else skipped, and said.

The folder is given by MOETRACE_TRACES, or found as ``shared/traces`` beside the checkout.
"""

from __future__ import annotations

import gzip
import os
import sqlite3
from pathlib import Path

import pytest

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats.events import DEVICE_CLASSES, KERNEL, LAUNCH, OPERATOR, RANGE
from moetrace.parse import parse, summary

FOLDER = Path(os.environ.get("MOETRACE_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no real traces at {FOLDER} (set MOETRACE_TRACES)"
)


def export(name: str) -> Path:
    return FOLDER / f"nsys-{name}.sqlite.gz"


def queried(name: str, query: str, folder: Path) -> list[tuple]:
    """What SQL says of a trace: the second opinion."""
    file = folder / f"{name}.sqlite"
    file.write_bytes(gzip.decompress(export(name).read_bytes()))
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_two_h100_for_a_second():
    run = parse(export("2026.2-h100-2gpu-1s"))
    facts = run.meta.facts
    assert (facts["kernels"], facts["kernels_launched"], facts["kernels_in_ranges"]) == (3442, 1632, 1632)
    assert any("1,632 of 3,442 kernels lie in an NVTX range" in note for note in summary(run)["notes"])
    assert any("2 process(es) on 2 GPU(s)" in note for note in run.meta.notes)
    assert run.num_rows == 3442 + 904 + 22
    frame = run.to_pandas(["device", "kernel", "start_ns", "launch_ns"])
    assert frame.device.value_counts().index.tolist() == [0, 1]
    assert (frame.launch_ns.dropna() <= frame.start_ns[frame.launch_ns.notna()]).all()
    assert frame.start_ns.min() > 1_779_630_014_975_716_426
    assert summary(run)["coverage"]["named_share"] == pytest.approx(1, abs=1e-3)


def test_every_kernel_has_the_operator_that_a_quadratic_join_finds(tmp_path):
    """The innermost covering range is the one that starts last (NVIDIA's own projection, as SQL)."""
    name = "2026.2-h100-2gpu-1s"
    query = """
        SELECT k.start, k.deviceId, n.text, MAX(n.start)
        FROM CUPTI_ACTIVITY_KIND_KERNEL k
        JOIN CUPTI_ACTIVITY_KIND_RUNTIME r
          ON r.correlationId = k.correlationId AND (r.globalTid & -16777216) = k.globalPid
        JOIN NVTX_EVENTS n ON n.globalTid = r.globalTid AND n.start <= r.start AND n.end >= r.end
        WHERE k.start % 10 = 0 GROUP BY k.rowid"""
    expected = {
        (start, device): text.split(", op_id")[0] for start, device, text, _ in queried(name, query, tmp_path)
    }
    assert len(expected) > 80
    from moetrace.parse.rows import op_rows

    events = formats.read(export(name))
    rows = op_rows(events)
    found = {
        (int(start), int(device)): events.texts[operator] if operator >= 0 else None
        for start, device, operator in zip(
            rows.start - 1_779_630_014_975_716_426, rows.device, rows.operator, strict=True
        )
    }
    assert {key: found[key] for key in expected} == expected


def test_correlation_ids_are_joined_within_their_process(tmp_path):
    name = "2026-2gpu-nccl-nvtx"
    events = formats.read(export(name))
    kernels, launches = events.where(KERNEL), events.where(LAUNCH)
    keys = events.correlation[launches].tolist()
    pairs = sum(keys.count(key) for key in events.correlation[kernels].tolist() if key >= 0)
    assert (len(kernels), pairs) == (4010, 3986)
    careless = """SELECT COUNT(*) FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN CUPTI_ACTIVITY_KIND_RUNTIME r
                  ON r.correlationId = k.correlationId"""
    assert queried(name, careless, tmp_path) == [(4280,)]
    run = parse(export(name))
    assert run.meta.facts["kernels_launched"] == 3986
    families = {f["family"]: f["share"] for f in summary(run)["families"]}
    assert families["communication"] > 0.04


def test_nccl_ranges_stay_ranges_and_operators_become_operators():
    events = formats.read(export("2026-2gpu-nccl-nvtx"))
    ranges = {events.texts[c] for c in events.name[events.where(RANGE)]}
    operators = {events.texts[c] for c in events.name[events.where(OPERATOR)]}
    assert {"ncclSend", "ncclRecv", "ncclGroupEnd"} <= ranges
    assert {"aten::copy_", "FlashAttnFunc"} <= operators
    assert not any("op_id" in text for text in ranges | operators)


def test_an_old_schema():
    run = parse(export("2022-a100-saxpy-mpi"))
    assert run.meta.device == "NVIDIA A100-SXM4-40GB"
    assert run.num_rows == 5 + 15
    frame = run.to_pandas(["kernel", "kind", "dur_ns", "launch_ns"])
    assert set(frame.kernel) == {
        "saxpy(double *, double *, double *, double, int)",
        "Memcpy HtoD",
        "Memcpy DtoH",
    }
    assert frame.launch_ns.notna().all()
    assert run.meta.facts["kernels_in_ranges"] == 5


@pytest.mark.parametrize("name", ["2022.4-cpu-nvtx", "2023.4-cpu-nvtx"])
def test_ranges_without_a_gpu_are_nothing_to_attribute(name):
    with pytest.raises(TraceError, match=r"19 NVTX range.*nothing to attribute") as caught:
        parse(export(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("nsys-*")) if FOLDER.is_dir() else [], ids=lambda p: p.name
)
def test_every_file_is_read_or_says_why_not(path):
    try:
        events = formats.read(path)
    except TraceError as err:
        assert "\n" not in str(err) and str(path) in str(err)
    else:
        assert len(events.where(*DEVICE_CLASSES)) > 0
        assert events.counts["damaged"] == 0
