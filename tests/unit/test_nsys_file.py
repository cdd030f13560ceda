"""nsys exports that mean no good, lack anything, or take long: bounded, interruptible, one line."""

from __future__ import annotations

import signal
import sqlite3
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace import formats
from moetrace.errors import TraceError
from moetrace.formats import nsys_file, nsys_names, nsys_reader
from moetrace.formats.events import KERNEL, LAUNCH, RANGE
from moetrace.parse import parse
from tests.made_nsys import API, GRAPHS, KERNEL_TABLE, NVTX, call, kernel, save, small, span
from tests.unit.test_nsys_graphs import captured
from tests.unit.test_nsys_nccl import CALL, ENTRIES, INIT, packed, size

GPU = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "totalMemory": 85 << 30, "smCount": 132}
COPY = {**kernel(900, 6), "bytes": 64, "copyKind": 1}


def everything():
    """An export with a row in every table that is read."""
    tables = captured(layers=2, replays=2)
    tables[NVTX] = [*tables[NVTX], INIT, span(9_990, 9_999, "ncclAllReduce", binaryData=packed(CALL, size(64)), textId=None,
                    endGlobalTid=None, jsonText=None, jsonTextId=None)]  # fmt: skip
    tables[KERNEL_TABLE] = [
        *tables[KERNEL_TABLE],
        kernel(9_999, 4, name="ncclDevKernel_AllReduce", shortName=1),
    ]
    tables[API] = [*tables[API], call(9_991, 4)]
    return {
        **tables,
        **small(CUPTI_ACTIVITY_KIND_MEMCPY=[COPY], CUPTI_ACTIVITY_KIND_MEMSET=[COPY], TARGET_INFO_GPU=[GPU]),
        **tables,
        GRAPHS: [kernel(950, 6)],
        "NVTX_PAYLOAD_SCHEMA_ENTRIES": ENTRIES,
        "TARGET_INFO_CUDA_DEVICE": [{"gpuId": 0, "cudaId": 0, "pid": 1}],
    }


PLACES = [(t, c) for t, rows in everything().items() for c in dict.fromkeys(k for r in rows for k in r)]


@settings(max_examples=60)
@given(
    st.sets(st.sampled_from(sorted({t for t, _ in PLACES})), max_size=12),
    st.sets(st.sampled_from(PLACES), max_size=25),
)
def test_any_tables_and_columns_may_be_absent_together(tmp_path_factory, tables, columns):
    """What an export of any age may lack: read, or refused in one line that says why."""
    made = {
        name: [{c: v for c, v in row.items() if (name, c) not in columns} for row in rows]
        for name, rows in everything().items()
        if name not in tables
    }
    made = {name: [row for row in rows if row] for name, rows in made.items()}
    path = save(
        tmp_path_factory.mktemp("lacks") / "t.sqlite", **{n: rows for n, rows in made.items() if rows}
    )
    try:
        ranks = formats.nsys_ranks(path)
        runs = [parse(path, gpu=i) for i in range(max(1, ranks))]
    except TraceError as err:
        assert "\n" not in str(err) and str(path) in str(err)
    else:
        assert all(run.num_rows for run in runs)


def test_an_interrupt_ends_a_long_query(tmp_path):
    """Python looks at signals only between its own steps, of which a query in SQLite takes none."""
    assert threading.current_thread() is threading.main_thread()
    path = save(tmp_path / "t.sqlite", **small())
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt), nsys_file.opened(path, (NVTX,)) as db:
            db.connection.execute(endless).fetchone()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_index_that_lies_is_not_asked(tmp_path):
    """It says that it holds all rows by their type, and is empty; another would have an expression evaluated."""
    path = save(tmp_path / "t.sqlite", **small())
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE INDEX odd ON {NVTX} (eventType, abs(start)) WHERE eventType = -1")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_master SET sql = replace(sql, ' WHERE eventType = -1', '') WHERE name = 'odd'"
    )
    connection.commit()
    connection.close()
    with sqlite3.connect(path) as careless:
        assert careless.execute(f"SELECT count(*) FROM {NVTX} WHERE eventType = 59").fetchone() == (0,)
    assert len(formats.read(path).where(RANGE)) == 1


def test_triggers_and_generated_columns_are_never_run(tmp_path):
    path = save(tmp_path / "t.sqlite", **small())
    connection = sqlite3.connect(path)
    connection.execute(
        f"CREATE TRIGGER odd AFTER INSERT ON {NVTX} BEGIN SELECT load_extension('nothing'); END"
    )
    connection.execute(f"ALTER TABLE {KERNEL_TABLE} RENAME COLUMN streamId TO own")
    connection.execute(
        f"ALTER TABLE {KERNEL_TABLE} ADD COLUMN streamId GENERATED ALWAYS AS (zeroblob(1 << 30))"
    )
    connection.commit()
    connection.close()
    events = formats.read(path)
    assert events.lane[events.where(KERNEL)].tolist() == [0]


def test_many_long_texts_take_little_memory(tmp_path):
    """Names and payloads of 20,000 bytes: what is cut off a name, and a payload that none has, is not held."""
    ranges = [span(i, i + 1, f"{i:06} " + "x" * 20_000) for i in range(2_000)]
    blobs = [span(i, i + 1, "ncclAllReduce", binaryData=bytes(20_000)) for i in range(2_000)]
    path = save(tmp_path / "t.sqlite", **small(**{NVTX: [*ranges, *blobs]}))
    tracemalloc.start()
    events = formats.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(map(len, events.texts))
    assert kept >= 2_000 * 16_384 and peak < 2 * kept + (100 << 20)


def test_too_many_different_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nsys_names, "_MAX_TEXTS", 1 << 20)
    ranges = [span(i, i + 1, f"{i:06} " + "x" * 20_000) for i in range(100)]
    with pytest.raises(TraceError, match="more than 1 million characters of different names"):
        formats.read(save(tmp_path / "t.sqlite", **small(**{NVTX: ranges})))


def test_numbered_names_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(nsys_names, "_REMEMBERED", 100)
    numbers = range(10, 3_000)
    strings = [
        {"id": i, "value": f"aten::mm, op_id = {i}, sizes = [[2, 4], [4, {1 + i % 3}]]"} for i in numbers
    ]
    path = tmp_path / "t.sqlite"
    tables = small(**{NVTX: [span(i, i + 1, None, textId=i) for i in numbers]})
    tables["Other"] = [*tables["StringIds"], *strings]
    save(path, **tables)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE StringIds")
    connection.execute("CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute("INSERT INTO StringIds SELECT id, value FROM Other")
    connection.commit()
    connection.close()
    events = formats.read(path)
    assert (
        sorted(events.texts) == ["aten::mm", "cudaLaunchKernel", "nvjet_qkv"] and len(events.tensor_sets) == 3
    )


@pytest.mark.parametrize("column", ["globalPid", "deviceId"])
def test_more_ranks_than_there_can_be(tmp_path, column):
    kernels = [{**kernel(1 + i, i), column: i << 24} for i in range(5_000)]
    with pytest.raises(TraceError, match="names more than 4,096 processes and GPUs"):
        formats.nsys_ranks(save(tmp_path / "t.sqlite", **{KERNEL_TABLE: kernels}))


def test_a_table_without_row_numbers(tmp_path):
    path = save(tmp_path / "t.sqlite", **small())
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE other (start INTEGER PRIMARY KEY, end, globalTid, correlationId, nameId) WITHOUT ROWID"
    )
    connection.execute(f"INSERT INTO other SELECT start, end, globalTid, correlationId, nameId FROM {API}")
    connection.execute(f"DROP TABLE {API}")
    connection.execute(f"ALTER TABLE other RENAME TO {API}")
    connection.commit()
    connection.close()
    told = []
    assert len(formats.read(path, told.append).where(LAUNCH)) == 1
    assert told == sorted(told) and told[-1] <= 1


def test_a_database_is_closed_whatever_happens(tmp_path, monkeypatch):
    path = save(tmp_path / "t.sqlite", **small())
    opened = []
    plain = nsys_file._connect
    monkeypatch.setattr(nsys_file, "_connect", lambda file: opened.append(plain(file)) or opened[-1])
    monkeypatch.setattr(nsys_reader, "FAR", "no number")
    with pytest.raises((TypeError, sqlite3.Error, TraceError)):
        formats.read(path)
    with pytest.raises(sqlite3.ProgrammingError):
        opened[-1].execute("SELECT 1")


@pytest.mark.parametrize("few", [0, 100])
def test_strings_whose_ids_cannot_be_looked_up(tmp_path, monkeypatch, few):
    monkeypatch.setattr(nsys_file, "_FEW", few)
    events = formats.read(save(tmp_path / "t.sqlite", **small()))
    assert sorted(events.texts)[1:] == ["execute_context_0(0)_generation_4(4)", "nvjet_qkv"]
