"""Real nsys exports, where they are at hand (they are third-party data and do not ship); else skipped, and said.

The folder is given by MOETRACE_TRACES, or found as ``shared/traces`` beside the checkout.
"""

from __future__ import annotations

import gzip
import os
import sqlite3
import struct
from pathlib import Path

import pytest

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats.events import DEVICE_CLASSES, KERNEL, LAUNCH, OPERATOR, RANGE
from moetrace.parse import parse, summary
from moetrace.parse.ranks import parse_ranks, ranks_of
from moetrace.run import Run

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


def both(name: str) -> list[Run]:
    """The runs of a file's two ranks."""
    assert formats.nsys_ranks(export(name)) == 2
    return [parse(export(name), gpu=i) for i in range(2)]


def test_two_h100_for_a_second(tmp_path):
    with ranks_of(export("2026.2-h100-2gpu-1s")) as (_, ranks):
        facts = parse_ranks(ranks, tmp_path / "out", jobs=1)
    assert any("1,632 of 3,442 kernels lie in an NVTX range" in note for note in facts["notes"])
    runs = [Run.load(tmp_path / "out" / f"rank-{i}") for i in range(2)]
    counted = [[r.meta.facts[n] for r in runs] for n in ("kernels", "kernels_launched", "kernels_in_ranges")]
    assert [sum(n) for n in counted] == [3442, 1632, 1632]
    assert sum(run.num_rows for run in runs) == 3442 + 904 + 22
    for i, run in enumerate(runs):
        frame = run.to_pandas(["rank", "device", "start_ns", "launch_ns"])
        assert set(frame["rank"]) == set(frame.device) == {i}
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

    found = {}
    for gpu in range(2):
        events = formats.read(export(name), gpu=gpu)
        rows = op_rows(events)
        start = rows.start - 1_779_630_014_975_716_426
        for at, device, operator in zip(
            start.tolist(), rows.device.tolist(), rows.operator.tolist(), strict=True
        ):
            found[at, device] = events.texts[operator] if operator >= 0 else None
    assert {key: found[key] for key in expected} == expected


def test_correlation_ids_are_joined_within_their_process(tmp_path):
    name = "2026-2gpu-nccl-nvtx"
    kernels = pairs = 0
    for gpu in range(2):
        events = formats.read(export(name), gpu=gpu)
        ran, launches = events.where(KERNEL), events.where(LAUNCH)
        keys = events.correlation[launches].tolist()
        kernels += len(ran)
        pairs += sum(keys.count(key) for key in events.correlation[ran].tolist() if key >= 0)
    assert (kernels, pairs) == (4010, 3986)
    careless = """SELECT COUNT(*) FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN CUPTI_ACTIVITY_KIND_RUNTIME r
                  ON r.correlationId = k.correlationId"""
    assert queried(name, careless, tmp_path) == [(4280,)]
    runs = both(name)
    assert sum(run.meta.facts["kernels_launched"] for run in runs) == 3986
    for run in runs:
        families = {f["family"]: f["share"] for f in summary(run)["families"]}
        assert families["communication"] > 0.02


def test_nccl_ranges_stay_ranges_and_operators_become_operators():
    events = formats.read(export("2026-2gpu-nccl-nvtx"), gpu=0)
    ranges = {events.texts[c] for c in events.name[events.where(RANGE)]}
    operators = {events.texts[c] for c in events.name[events.where(OPERATOR)]}
    assert {"ncclSend", "ncclRecv", "ncclGroupEnd"} <= ranges
    assert {"aten::copy_", "FlashAttnFunc"} <= operators
    assert not any("op_id" in text for text in ranges | operators)


def test_the_schemas_of_nccl_s_payloads_lay_out_what_is_sent(tmp_path):
    """The file has NCCL's payload schemas and calls but was cut before their bytes: those are put in, laid out by hand."""
    name = "2026-2gpu-nccl-nvtx"
    told = """SELECT DISTINCT schemaId, name, type, offset FROM NVTX_PAYLOAD_SCHEMA_ENTRIES
              WHERE schemaId IN (16777225, 16777226) ORDER BY schemaId, idx"""
    layout = [("NCCL communicator ID", 18, None), ("Message size [bytes]", 22, 8), ("Peer rank", 5, 16)]
    assert queried(name, told, tmp_path) == [(i, *field) for i in (16777225, 16777226) for field in layout]
    file = tmp_path / f"{name}.sqlite"
    with sqlite3.connect(file) as db:
        for call, schema in (("ncclSend", 16777226), ("ncclRecv", 16777225)):
            payload = struct.pack("<QQQQ", 1, schema, 24, 0) + struct.pack("<QQiI", 77, 4096, 1, 0)
            db.execute(
                """UPDATE NVTX_EVENTS SET binaryData = ? WHERE eventType = 59 AND
                   COALESCE(text, (SELECT value FROM StringIds WHERE id = textId)) = ?""",
                (payload, call),
            )
    texts = [set(parse(file, gpu=i).codes("op")[1]) for i in range(2)]
    assert all("send_recv bf16 bytes=8192" in told for told in texts)  # two sends in each group
    assert not any(
        "bytes" in text for run in both(name) for text in run.codes("op")[1] if "send_recv" in text
    )


def test_the_operator_around_sends_says_that_they_are_an_all_to_all():
    with ranks_of(export("2026-2gpu-nccl-nvtx")) as (_, files):
        facts = parse_ranks(files, jobs=1)
    assert [(c["collective"], c["count"]) for c in facts["collectives"]] == [("all_to_all", 32)]
    assert [r["clock_offset_s"] for r in facts["ranks"]] == [0.0, 0.0]
    waits = [r["wait_s"] for r in facts["ranks"]]
    assert waits == pytest.approx([10.9e-3, 2.5e-3], rel=0.05)
    assert any("share its clock" in note for note in facts["notes"])


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
        events = formats.read(path, gpu=0)
    except TraceError as err:
        assert "\n" not in str(err) and str(path) in str(err)
    else:
        assert len(events.where(*DEVICE_CLASSES)) > 0
        assert events.counts["damaged"] == 0
