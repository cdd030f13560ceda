"""Runs for reports: a long one made of a recording's own steps, one of very many shapes, and one full of hostile names."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moetrace.run import Run, Step

SCRIPT = "<script>window.hacked = 1</script>"
HOSTILE = (
    f'</script>{SCRIPT}"\'><img src=x onerror="window.hacked=1">',
    "{{ 7 * 7 }} {% raw %} ${alert(1)} <!-- --> ]]> &lt;b&gt; &#60;",
    "\x1b[31mred\x07\x00\r\n\u2028\u2029\u202e\x9b31m",
    "javascript:window.hacked=1",
)


def tiled(run: Run, steps: int) -> Run:
    """The run with its decode steps repeated until there are `steps` of them, one after another in time."""
    decode = [s for s in run.meta.steps if s.phase == "decode"]
    other = [s for s in run.meta.steps if s.phase != "decode"]
    table = run.table()
    index = np.asarray(pc.fill_null(table.column("step"), -1).to_numpy())
    span = max(s.end_ns for s in decode) - min(s.start_ns for s in decode) + 1_000_000
    parts = [table.filter(pa.array(np.isin(index, [s.index for s in other])))]
    made: list[Step] = list(other)
    next_index = max(s.index for s in run.meta.steps) + 1
    for lap in range(-(-steps // len(decode))):
        for step in decode[: steps - lap * len(decode)]:
            rows = table.filter(pa.array(index == step.index))
            number = step.index if lap == 0 else next_index
            next_index += lap > 0
            rows = rows.set_column(
                rows.schema.get_field_index("step"),
                "step",
                pa.array(np.full(rows.num_rows, number), pa.int32()),
            )
            moved = pc.add(rows.column("start_ns"), lap * span)
            rows = rows.set_column(rows.schema.get_field_index("start_ns"), "start_ns", moved)
            parts.append(rows)
            made.append(
                Step(
                    number,
                    f"decode {number}",
                    "decode",
                    step.start_ns + lap * span,
                    step.end_ns + lap * span,
                    step.batch,
                    step.tokens,
                    step.kv_tokens,
                )
            )
    whole = pa.concat_tables([p.unify_dictionaries() for p in parts]).unify_dictionaries()
    return Run(run.meta, whole, run.routing).with_meta(steps=tuple(made))


def many_shapes(run: Run, shapes: int) -> Run:
    """A run of one step with `shapes` distinct ops, all of them dense GEMMs."""
    rows = run.table().filter(pc.equal(run.column("kind"), "o_proj")).slice(0, 1)
    table = rows.take(pa.array(np.zeros(shapes, dtype=np.int64)))
    number = np.arange(shapes)
    m, n = number % 400 + 1, number // 400 + 1
    texts = [f"o_proj bf16 m={a} n={16 * b} k=2048" for a, b in zip(m.tolist(), n.tolist(), strict=True)]
    columns = {
        "op": pa.array(texts).dictionary_encode(),
        "flops": pa.array(2.0 * m * 16 * n * 2048),
        "weight_bytes": pa.array(2.0 * 16 * n * 2048),
        "act_bytes": pa.array(2.0 * m * (2048 + 16 * n)),
        "dur_ns": pa.array((5000 + 2.0 * m * 16 * n * 2048 / 150).astype(np.int64)),
        "step": pa.array(np.ones(shapes), pa.int32()),
    }
    columns["start_ns"] = pa.array(
        np.concatenate(([0], np.cumsum(columns["dur_ns"].to_numpy())[:-1])).astype(np.int64)
    )
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, values.cast(field.type))
    end = int(columns["start_ns"].to_numpy()[-1] + columns["dur_ns"].to_numpy()[-1])
    return Run(run.meta, table, None).with_meta(steps=(Step(1, "decode 1", "decode", 0, end, 16, 16, 4096),))


def hostile_events(events: list[dict], long: int) -> list[dict]:
    """The events of a trace with hostile texts in the names and arguments of kernels and annotations, one `long` bytes long."""
    out = []
    for place, event in enumerate(events):
        bad = HOSTILE[place % len(HOSTILE)]
        if event["cat"] == "kernel" and place % 5 == 0:
            name = event["name"] + bad + ("A" * long if place == 0 or (long and place % 50 == 0) else "")
            event = {**event, "name": name, "args": {**event["args"], bad: bad}}
        elif event["cat"] == "user_annotation":
            event = {**event, "args": {**event["args"], "note": bad}}
        out.append(event)
    return [
        *out,
        *(
            {"ph": "M", "name": "process_name", "pid": i, "args": {"name": bad}}
            for i, bad in enumerate(HOSTILE)
        ),
    ]


def facts_of(page: str, run: int = 0) -> dict:
    """The facts that a page holds as JSON."""
    found = re.search(rf'<script type="application/json" id="facts-{run}">(.*?)</script>', page, re.DOTALL)
    assert found, "the page holds no facts"
    return json.loads(found[1])


def bulk_of(page: str, run: int = 0) -> dict:
    """The packed columns that a page holds: steps, distinct ops, the heat map."""
    found = re.search(rf'<script type="text/plain" id="bulk-{run}">(.*?)</script>', page, re.DOTALL)
    assert found, "the page holds no bulk data"
    return json.loads(zlib.decompress(base64.b64decode(found[1])))
