"""Routing by token: what each token chose, on disk; kept on request only, for counts answer most questions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.files import table_facts
from moetrace.routing.distinct import IntArray

# name, type, meaning. The order is the order on disk. "Token" is a position in the batch, never what stood there.
TOKEN_ROUTING_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("step", pa.int32(), "index into the run's steps"),
    ("layer", pa.int32(), "decoder layer from 0"),
    ("token", pa.int32(), "position in the step, sequence by sequence; padding is left out and leaves a gap"),
    ("rank_of_choice", pa.int16(), "1: the expert with the token's highest router weight, 2: the next"),
    ("expert", pa.int32(), "expert from 0, over all ranks"),
)
_SCHEMA = pa.schema(
    [pa.field(n, t, nullable=False, metadata={"doc": d}) for n, t, d in TOKEN_ROUTING_COLUMNS]
)


def save_token_routing(
    path: Path, experts: int, parts: Iterable[tuple[int, int, IntArray, IntArray]]
) -> None:
    """Write (step, layer, tokens [n], expert ids [n, k]) parts as Parquet, one after the other."""
    schema = _SCHEMA.with_metadata(
        {**table_facts("routing_tokens", 1), "moetrace.routing.experts": str(experts)}
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for step, layer, tokens, ids in parts:
            n, k = ids.shape
            columns = (
                np.full(n * k, step),
                np.full(n * k, layer),
                np.repeat(tokens, k),
                np.tile(np.arange(1, k + 1), n),
            )
            arrays = [
                pa.array(v, type=t) for v, t in zip((*columns, ids.reshape(-1)), schema.types, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
