"""Throws mutated traces at the parser: each must become a Run, or an error of one line; nothing else, and nothing slow.

    python -m tests.fuzz [--count 100000] [--whole 8] [--seed 1] [--keep FOLDER]

All are read into events, one in `--whole` is parsed to a Run.

Prints what became of them. An input that crashed is kept in the folder; the exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from moetrace import formats
from moetrace.errors import MoetraceError
from moetrace.formats import kineto, kineto_text
from moetrace.parse import parse
from tests.made import decode_trace, event

SLOW_S = 5.0
_TOKENS = (b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\x00", b"\xff", b"\n", b"null", b"NaN", b"Infinity", b"-1",
           b"1e308", b"99999999999999999999", b'"x"', b"{}", b"[]", b"true",
           b'"ph": "X"', b'"traceEvents": [', b"]}")  # fmt: skip
_BLOCKS = (5, *(64, 1000, 1 << 19) * 3)


def seeds() -> list[bytes]:
    """Small traces of several dialects and layouts."""
    dims = {"Input Dims": [[16, 64], [64, 32]], "Input type": ["c10::BFloat16"] * 2}
    cpu = [event("aten::mm", "cpu_op", 10 * i, 8, tid=1, **{"External id": i, **dims}) for i in range(6)]
    served = decode_trace(layers=1, steps=1) + cpu
    graph = decode_trace(layers=1, steps=2, graph=True)
    old = [{**e, "cat": e["cat"].replace("cuda_runtime", "Runtime").title(), "ts": 1_650_000_000_000_000 + int(e["ts"])}
           for e in decode_trace(layers=1, steps=1)]  # fmt: skip
    top = {"schemaVersion": 1, "baseTimeNanoseconds": 10**18, "distributedInfo": {"rank": 0, "world_size": 2},
           "deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132}]}  # fmt: skip
    return [
        json.dumps({**top, "traceEvents": served}).encode(),
        json.dumps({**top, "traceEvents": graph, "traceName": "a ]} b"}, indent=1).encode(),
        json.dumps(old, separators=(",", ":")).encode(),
        json.dumps({"traceEvents": cpu, **top}, indent=2).encode(),
    ]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _put(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice(_TOKENS) + data[at + rng.choice((0, 0, 1, 3)) :]


def _lose(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 400) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at : at + rng.randrange(1, 400)] * 2 + data[at:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    low, high = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:low] + data[high : high + 100] + data[low:high]


def _value(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere becomes another one."""
    places = [i for i in range(len(data)) if data[i : i + 1] == b":"]
    if not places:
        return data
    at = rng.choice(places) + 1
    end = at
    while end < len(data) and data[end] not in b",}\n":
        end += 1
    return data[:at] + rng.choice(_TOKENS) + data[end:]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut,
    _flip,
    _put,
    _lose,
    _repeat,
    _swap,
    _value,
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data after one to three mutations, and packed (and then perhaps damaged again) one time in four."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(data, rng) or b" "
    if rng.random() < 0.25:
        data = gzip.compress(data, 1)
        if rng.random() < 0.7:
            data = rng.choice((_cut, _flip))(data, rng)
    return data


def fuzz(count: int, seed: int, keep: Path, whole: int = 1) -> Counter[str]:
    """What became of so many mutated traces: parsed, read, refused, crashed or slow."""
    rng, became, base = random.Random(seed), Counter[str](), seeds()
    block = kineto.BLOCK
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.json"
        for number in range(count):
            data = mutated(rng.choice(base), rng)
            file.write_bytes(data)
            kineto.BLOCK = kineto_text.BLOCK = rng.choice(_BLOCKS)
            began = time.process_time()
            try:
                if number % whole:
                    word = "read" if isinstance(formats.read(file), formats.Events) else "crashed"
                else:
                    word = "parsed" if parse(file).num_rows else "crashed"
            except MoetraceError as error:
                word = "refused" if "\n" not in str(error) and len(str(error)) < 1000 else "crashed"
            except Exception:  # the whole point
                word = "crashed"
            finally:
                kineto.BLOCK = kineto_text.BLOCK = block
            if time.process_time() - began > SLOW_S:
                word = "slow"
            became[word] += 1
            if word in ("crashed", "slow"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{word}-{seed}-{number}.json").write_bytes(data)
    return became


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--whole", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="where inputs that failed are put"
    )
    args = parser.parse_args()
    began = time.process_time()
    became = fuzz(args.count, args.seed, args.keep, args.whole)
    print(f"{args.count:,} mutated traces, seed {args.seed}, {time.process_time() - began:.0f} CPU-s: "
          + ", ".join(f"{n:,} {word}" for word, n in sorted(became.items())))  # fmt: skip
    sys.exit(1 if became["crashed"] or became["slow"] else 0)


if __name__ == "__main__":
    main()
