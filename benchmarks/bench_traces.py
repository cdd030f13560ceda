"""Long Kineto traces, made of one recorded trace: repeated in torch's own formatting, times and ids shifted on every repeat.

Three kinds. `steps`: repeats as they are. The others have nothing but operators, launches, kernels, copies and steps, so that
as much of the file as can be is kept. `step`: one annotation covers all repeats, as where somebody annotated a whole
generation. `names`: no two kernels, copies or operators of the file have one name.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

MB = 1_000_000
KINDS = ("steps", "step", "names")
_RANGES = ("user_annotation", "gpu_user_annotation")
_NAMED = ("kernel", "cpu_op", "gpu_memcpy")
_KEPT = (*_NAMED, *_RANGES, "cuda_runtime", "cuda_driver")
# Numbers that count up through a recording: their distance is shifted on every repeat. `id` is that of flow events.
COUNTED = (
    "External id",
    "correlation",
    "Record function id",
    "Ev Idx",
    "Python id",
    "Python parent id",
    "id",
)


class _Template:
    """One repeat as text with holes: for times (ns, printed as us with 3 decimals) and for counted ids."""

    def __init__(self, number_names: bool = False) -> None:
        self._number_names, self.named = number_names, 0
        self.parts: list[str] = []
        self.holes: list[tuple[str, int]] = []

    def add(self, text: str) -> None:
        self.parts.append(text.replace("%", "%%"))

    def hole(self, kind: str, value: int) -> None:
        self.parts.append("%d.%03d" if kind == "ts" else "%d")
        self.holes.append((kind, value))

    def event(self, event: dict[str, Any]) -> None:
        """An event as torch prints it: a key a line, the args below."""
        self.add("  {\n")
        for i, (key, value) in enumerate(event.items()):
            self.add((",\n" if i else "") + f"    {json.dumps(key)}: ")
            if key == "ts" and isinstance(value, (int, float)):
                self.hole("ts", round(value * 1000))
            elif key == "args" and isinstance(value, dict):
                self.args(value)
            elif key == "name" and self._number_names and event.get("cat") in _NAMED:
                self.add(json.dumps(value)[:-1] + " ")
                self.hole("name", self.named)
                self.add('"')
                self.named += 1
            else:
                self.value(key, value)
        self.add("\n  }")

    def args(self, args: dict[str, Any]) -> None:
        self.add("{\n      ")
        for i, (key, value) in enumerate(args.items()):
            self.add((", " if i else "") + f"{json.dumps(key)}: ")
            self.value(key, value)
        self.add("\n    }")

    def value(self, key: str, value: Any) -> None:
        if key in COUNTED and isinstance(value, int) and value >= 0:
            self.hole(key, value)
        else:
            self.add(json.dumps(value))


def build(source: Path, target: Path, size: int, kind: str = "steps") -> tuple[int, int]:
    """Writes a gzip trace of about `size` bytes of JSON made of repeats of `source`; (repeats, bytes of JSON)."""
    with gzip.open(source) as file:
        document = json.load(file)
    events = [e for e in document.pop("traceEvents") if e.get("ph") in ("X", "s", "f", "i")]
    steps = [e for e in events if e.get("cat") in _RANGES]
    if kind != "steps":
        events = [e for e in events if e.get("cat") in _KEPT and (kind == "names" or e not in steps)]
    template = _Template(kind == "names")
    for i, event in enumerate(events):
        template.add(",\n" if i else "")
        template.event(event)
    return _repeat(document, template, steps if kind == "step" else [], target, size)


def _repeat(
    document: dict[str, Any], template: _Template, around: list[dict[str, Any]], target: Path, size: int
) -> tuple[int, int]:
    """`template` until there are so many bytes, then the events `around` all of it."""
    text, holes = "".join(template.parts), template.holes
    times = [v for kind, v in holes if kind == "ts"]
    period = max(times) - min(times) + 1_000_000
    counted = [v for kind, v in holes if kind not in ("ts", "name")]
    stride = max(counted) - min(counted) + 1 if counted else 0
    strides = {"ts": period, "name": template.named}
    written = repeats = 0
    with target.open("wb") as file:
        pack = zlib.compressobj(6, wbits=31)

        def put(said: str) -> int:
            data = said.encode()
            file.write(pack.compress(data))
            return len(data)

        head = json.dumps(document, indent=2).rstrip("}").rstrip()
        written += put(head + ',\n  "traceEvents": [\n')
        while written < size:
            filled = _filled(holes, repeats, strides, stride)
            written += put((",\n" if repeats else "") + text % filled)
            repeats += 1
        for event in around:
            written += put(
                ",\n  " + json.dumps({**event, "dur": event["dur"] + (repeats - 1) * period / 1000})
            )
        written += put('\n  ],"traceName": "trace.json" }\n')
        file.write(pack.flush())
    return repeats, written


def _filled(
    holes: list[tuple[str, int]], repeat: int, strides: dict[str, int], stride: int
) -> tuple[int, ...]:
    out: list[int] = []
    for kind, value in holes:
        if kind == "ts":
            out += divmod(value + repeat * strides[kind], 1000)
        else:
            out.append(value + repeat * strides.get(kind, stride))
    return tuple(out)
