"""PyTorch profiler (Kineto) traces: Chrome trace JSON, plain or gzip, of the dialects since 2021, CUDA and ROCm.

Read whole: memory grows with the file. Not read: flow events (links come from correlation ids, which are complete where
flows dangle), python_function events other than module calls, counters, memory events, host names and user names.
`ts` and `dur` are always microseconds, whatever displayTimeUnit says; baseTimeNanoseconds makes them absolute.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from moetrace.errors import TraceError
from moetrace.formats.events import (
    DEVICE_RANGE,
    KERNEL,
    LAUNCH,
    MEMCPY,
    MEMSET,
    MODULE,
    OPERATOR,
    RANGE,
    Events,
    EventsBuilder,
    Tensors,
)  # fmt: skip

SUFFIXES = (".json", ".json.gz", ".trace", ".pt.trace.json", ".pt.trace.json.gz", ".tmp")

_CLASS = {
    "kernel": KERNEL, "gpu_memcpy": MEMCPY, "memcpy": MEMCPY, "gpu_memset": MEMSET, "memset": MEMSET,
    "cuda_runtime": LAUNCH, "cuda_driver": LAUNCH, "runtime": LAUNCH, "driver": LAUNCH,
    "cpu_op": OPERATOR, "operator": OPERATOR,
    "user_annotation": RANGE, "gpu_user_annotation": DEVICE_RANGE, "python_function": MODULE,
}  # fmt: skip
_DTYPE = {
    "float": "fp32", "double": "fp64", "c10::BFloat16": "bf16", "c10::Half": "fp16", "long int": "int64", "long": "int64",
    "int": "int32", "c10::Float8_e4m3fn": "fp8", "c10::Float8_e4m3fnuz": "fp8", "c10::Float8_e5m2": "fp8",
    "unsigned char": "int8", "signed char": "int8", "bool": "int8", "short": "fp16",
}  # fmt: skip
# Times beyond are damage: the year 2043 in ns, so that sums and differences of times stay within 64 bits.
_FAR = 1 << 61
_BOM = b"\xef\xbb\xbf"
_NCCL_DTYPE = {
    "Float": 4,
    "Double": 8,
    "BFloat16": 2,
    "Half": 2,
    "Long": 8,
    "Int": 4,
    "Byte": 1,
    "Char": 1,
    "Float8_e4m3fn": 1,
}


def sniff(head: bytes) -> bool:
    """Whether the first bytes of a file (decompressed) look like a Chrome trace."""
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    return text[:1] in (b"{", b"[")


def read(path: Path, progress: Callable[[float], object] | None = None) -> Events:
    """All events of a trace file. Raises TraceError with one line if it is not one, is empty, cut off or damaged."""
    document = _decode(_bytes(path), path)
    top: Mapping[str, Any] = document if isinstance(document, dict) else {}
    raw = document if isinstance(document, list) else top.get("traceEvents")
    if not isinstance(raw, list):
        raise TraceError(
            f"{path} is JSON but not a trace: it has no 'traceEvents' list (expected a PyTorch profiler export)"
        )
    builder, counts = EventsBuilder(), {"events": len(raw), "damaged": 0}
    base, lanes = _whole(top.get("baseTimeNanoseconds")), _Lanes()
    for i, event in enumerate(raw):
        if progress is not None and not i & 0xFFFF:
            progress(i / max(1, len(raw)))
        if not isinstance(event, dict) or not _add(builder, event, base, lanes):
            counts["damaged"] += 1
    info = top.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    devices = top.get("deviceProperties")
    return builder.build(
        rank=_whole(info.get("rank")),
        world_size=max(1, _whole(info.get("world_size"), 1)),
        devices=tuple(d for d in devices if isinstance(d, dict)) if isinstance(devices, list) else (),
        metadata=_own_metadata(top),
        counts=counts,
    )


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if not data:
        raise TraceError(f"{path} is empty")
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise TraceError(
            f"{path} is a damaged or truncated gzip file ({err}): copy it again or record again"
        ) from err


def _decode(data: bytes, path: Path) -> Any:
    if not sniff(data[:64]):
        raise TraceError(
            f"{path} is not a PyTorch profiler trace: expected JSON (.json or .json.gz) beginning with '{{' or '['"
        )
    data = data.removeprefix(_BOM)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # Infinity, control characters and bad UTF-8 are written by real exporters; the slower reader takes them
    try:
        return json.loads(data.decode("utf-8", "replace"), strict=False)
    except json.JSONDecodeError as err:
        cut = (
            "truncated" if err.pos >= len(data) - 2 or not data.rstrip().endswith((b"}", b"]")) else "damaged"
        )
        raise TraceError(
            f"{path} is {cut} JSON (at character {err.pos} of {len(data)}: {err.msg}): record again; "
            "torch 2.13 writes invalid JSON when a name holds a quote, its use_python_export=True does not"
        ) from err
    except RecursionError:
        raise TraceError(f"{path} is not a trace: its JSON is nested too deeply") from None
    except ValueError as err:  # a number of thousands of digits
        raise TraceError(f"{path} is damaged JSON ({err}): record again") from err


class _Lanes:
    """Dense codes for (pid, tid), which may be numbers or texts."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], int] = {}

    def __call__(self, event: Mapping[str, Any]) -> int:
        return self._codes.setdefault((str(event.get("pid")), str(event.get("tid"))), len(self._codes))


def _add(builder: EventsBuilder, event: Mapping[str, Any], base: int, lanes: _Lanes) -> bool:
    """Adds one event if it is of a class that matters; False if it is damaged."""
    if event.get("ph") != "X":
        return True
    cls = _CLASS.get(str(event.get("cat", "")).lower())
    name = event.get("name")
    if cls is None or not isinstance(name, str) or (cls == MODULE and not name.startswith("nn.Module")):
        return cls is None or isinstance(name, str)
    start, dur = _ns(event.get("ts")), _ns(event.get("dur", 0))
    if start is None or dur is None or abs(base + start) >= _FAR or dur >= _FAR:
        return False
    args = event.get("args")
    args = args if isinstance(args, dict) else {}
    external = _whole(args.get("External id", args.get("external id")), -1)
    correlation = _whole(args.get("correlation"), -1)
    if cls in (KERNEL, MEMCPY, MEMSET):
        builder.add(
            cls, name, base + start, max(0, dur), _stream(args, event), _whole(args.get("device"), 0), correlation, external,
            _message(args), _whole(args.get("bytes"), 0),
        )  # fmt: skip
    elif cls == LAUNCH:
        launched = args.get("kernel")
        builder.add(
            cls, name, base + start, max(0, dur), lanes(event), -1, correlation, external,
            launched=launched if isinstance(launched, str) else None,
        )  # fmt: skip
    elif cls == OPERATOR:
        builder.add(cls, name, base + start, max(0, dur), lanes(event), -1, -1, external, _tensors(args))
    else:
        builder.add(cls, name, base + start, max(0, dur), lanes(event), external=external)
    return True


def _ns(value: Any) -> int | None:
    """Microseconds as whole nanoseconds. Split before scaling: exact for floats below 2^43 us."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    whole = math.floor(value)
    return whole * 1000 + round((value - whole) * 1000)


def _whole(value: Any, default: int = 0) -> int:
    """An int from an int, an integral float or digits (ROCm writes bytes as text); else the default."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 20 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and abs(value) < 1 << 63 else default


def _stream(args: Mapping[str, Any], event: Mapping[str, Any]) -> int:
    return _whole(args.get("stream", event.get("tid")), 0)


def _tensors(args: Mapping[str, Any]) -> Tensors | None:
    dims = args.get("Input Dims", args.get("Input dims"))
    if not isinstance(dims, list):
        return None
    types = args.get("Input type")
    types = types if isinstance(types, list) else []
    pairs = list(_flat(dims, types))
    return Tensors(tuple(s for s, _ in pairs), tuple(t for _, t in pairs))


def _flat(dims: list[Any], types: list[Any]) -> Iterator[tuple[tuple[int, ...], str]]:
    """(shape, dtype) per input; a list of tensors becomes its members."""
    for i, shape in enumerate(dims):
        dtype = _DTYPE.get(str(types[i]), "") if i < len(types) else ""
        if not isinstance(shape, list):
            yield (), ""
        elif shape and isinstance(shape[0], list):
            yield from (
                (tuple(_whole(n) for n in member), dtype) for member in shape if isinstance(member, list)
            )
        else:
            yield tuple(_whole(n) for n in shape), dtype


def _message(args: Mapping[str, Any]) -> Tensors | None:
    """What NCCL kernels say of their message."""
    if "Collective name" not in args:
        return None
    width = _NCCL_DTYPE.get(str(args.get("dtype")), 0)
    elements = max(_whole(args.get("In msg nelems")), _whole(args.get("Out msg nelems")))
    return Tensors(
        nbytes=elements * width, group=_whole(args.get("Group size")), collective=str(args["Collective name"])
    )


def _own_metadata(top: Mapping[str, Any]) -> Mapping[str, Any]:
    """What moetrace's recorder stored in the trace, if it did."""
    own = top.get("moetrace")
    if isinstance(own, str):
        try:
            own = orjson.loads(own)
        except orjson.JSONDecodeError:
            own = None
    return own if isinstance(own, dict) else {}
