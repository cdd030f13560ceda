"""Made-up nsys exports: the tables that a reader needs, in the columns that it knows."""

from __future__ import annotations

import sqlite3

KERNEL_TABLE, API, NVTX = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"
GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
EPOCH = 1_700_000_000_000_000_000


def pid(process):
    return process << 24


def tid(process, thread=1):
    return pid(process) + thread


def save(path, **tables):
    """An SQLite file of tables given as lists of dicts; a column's type is what its first value has."""
    connection = sqlite3.connect(path)
    for name, rows in tables.items():
        columns = list(dict.fromkeys(c for row in rows for c in row))
        connection.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')
        values = [tuple(row.get(c) for c in columns) for row in rows]
        connection.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(columns))})', values)
    connection.commit()
    connection.close()
    return path


def kernel(start, correlation, process=1, name="gemm_kernel", **more):
    return {"start": start, "end": start + 10, "deviceId": 0, "streamId": 7, "correlationId": correlation,
            "globalPid": pid(process), "demangledName": name, **more}  # fmt: skip


def call(start, correlation, process=1, name="cudaLaunchKernel_v7000", thread=1):
    return {"start": start, "end": start + 2, "globalTid": tid(process, thread), "correlationId": correlation,
            "nameId": name}  # fmt: skip


def span(start, end, text, process=1, thread=1, kind=59, **more):
    return {
        "start": start,
        "end": end,
        "eventType": kind,
        "text": text,
        "globalTid": tid(process, thread),
        **more,
    }


def small(**more):
    """One step with one kernel, as a recent nsys exports it."""
    return {
        KERNEL_TABLE: [kernel(120, 5, name=1)],
        API: [call(105, 5, name=2)],
        NVTX: [span(100, 110, "execute_context_0(0)_generation_4(4)", textId=None, endGlobalTid=None)],
        "StringIds": [{"id": 1, "value": "nvjet_qkv"}, {"id": 2, "value": "cudaLaunchKernel_v7000"}],
        "TARGET_INFO_SESSION_START_TIME": [{"utcEpochNs": EPOCH}],
        **more,
    }
