"""The in-process recorder: a window of steps of any PyTorch inference loop, with annotations, routing and
metadata.

Everything is undone when the window closes, however it closes, and what was captured until then is written.
Recorded is what runs in this process on this thread; other ranks, threads and CUDA graphs' insides are not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import orjson

from moetrace import __version__
from moetrace.errors import MoetraceError, OutputError, unknown
from moetrace.record import capture
from moetrace.record.files import RECORDING_FILE, ROUTING_FILE, check_output, publish, staging
from moetrace.record.modules import PARTS, ModuleHooks, Ranges, find_places
from moetrace.record.routing_hooks import RoutingTap

if TYPE_CHECKING:
    from torch import nn
    from torch.profiler import profile

RECORDING_VERSION = 1
PHASES = ("prefill", "decode", "mixed")


@dataclass(slots=True)
class _Step:
    """One recorded step, as in recording.json. `kv_tokens`: KV-cache tokens read, summed over sequences."""

    index: int
    phase: str
    batch: int
    tokens: int
    kv_tokens: int
    complete: bool = False

    @property
    def range_name(self) -> str:
        sizes = f"batch={self.batch} tokens={self.tokens} kv={self.kv_tokens}"
        return f"moetrace.step#{self.index} {self.phase} {sizes}"


class StepHandle:
    """An open step: ends with its ``with`` block or, if a plain call, at the next step or the window's
    end."""

    def __init__(self, recorder: Recorder, step: _Step | None) -> None:
        self._recorder = recorder
        self._step = step

    def __enter__(self) -> StepHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self._recorder._end_step(self._step, complete=kind is None)


class Recorder:
    """A recording window; see `moetrace.record` for the arguments. `steps` lists what was recorded so far."""

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        model_config: object = None,
        model_name: str = "",
        parts: Mapping[str, str] | None = None,
        warmup: int = 0,
        routing: bool = True,
        nvtx: bool = True,
        force: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.out = Path(out)
        self.steps: list[_Step] = []
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.files: dict[str, Path] = {}  # name in the recording -> what is copied there when it is written
        self._model = model
        self._config = model_config
        self._name = model_name
        self._parts = parts
        self._warmup = warmup
        self._want_routing = routing
        self._nvtx = nvtx
        self._force = force
        self._open: _Step | None = None
        self._seen: set[int] = set()
        self._finder: Any = None
        self._hooks: ModuleHooks | None = None
        self._tap: RoutingTap | None = None
        self._profiler: profile | None = None

    def __enter__(self) -> Recorder:
        _need_torch()
        if self._parts and self._model is None:
            raise MoetraceError("record(parts=...) needs model= too, whose module names the patterns match")
        check_output(self.out, self._force)
        self._staging = staging(self.out)
        try:
            self._ranges = Ranges(self._nvtx)
            if self._model is not None and not find_places(self._model, self._parts):
                raise MoetraceError(
                    f"{type(self._model).__name__}: no decoder layers found: name them with parts={{...}}"
                )
        except BaseException:
            self._undo()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            self._end_step(self._open, complete=kind is None)
            self._ranges.close_to(0)
            self._detach()
            if self._profiler is not None:
                self._save("complete" if kind is None else kind.__name__)
            elif kind is None:
                raise OutputError(
                    f"{self.out}: nothing was recorded: no rec.step(...) ran after the warm-up steps"
                )
        finally:
            self._undo()

    def step(self, phase: str, *, batch: int, kv_tokens: int, tokens: int | None = None) -> StepHandle:
        """Begin a step, ending the one before; usable as a call or as a context manager.

        `phase` is prefill, decode or mixed; `batch` sequences; `tokens` new tokens in all (default `batch`,
        as in decode); `kv_tokens` KV-cache tokens that attention reads, summed over sequences, those of this
        step included.
        """
        if phase not in PHASES:
            raise MoetraceError(unknown("phase", phase, PHASES))
        if tokens is None and phase != "decode":
            raise MoetraceError(
                f"rec.step({phase!r}): tokens= is needed, the number of new tokens of all sequences"
            )
        if self._open is not None:
            self._end_step(self._open, complete=True)
        if self._warmup > 0:
            self._warmup -= 1
            return StepHandle(self, None)
        if self._profiler is None:
            self._begin()
        made = _Step(
            len(self.steps), phase, int(batch), int(batch if tokens is None else tokens), int(kv_tokens)
        )
        self._ranges.push(made.range_name)
        self.steps.append(made)
        self._open = made
        return StepHandle(self, made)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Mark a part that is not a module, such as ``sampling``; does nothing outside of a step."""
        if name not in PARTS:
            raise MoetraceError(unknown("part", name, PARTS))
        if self._open is None:
            yield
            return
        depth = self._ranges.push(f"moetrace.part:{name}")
        try:
            yield
        finally:
            self._ranges.close_to(depth)

    def _begin(self) -> None:
        import torch

        self._profiler = capture.start_profiler(torch.cuda.is_available())
        if self._model is not None:  # not before: a warm-up step pays for no hook
            self._attach(self._model)
        else:
            register = torch.nn.modules.module.register_module_forward_pre_hook
            self._finder = register(self._find)

    def _find(self, module: nn.Module, _args: object) -> None:
        """Global hook until a model with decoder layers is first called."""
        if id(module) not in self._seen and self._open is not None:
            self._seen.update(id(m) for m in module.modules())
            if self._attach(module):
                self._finder.remove()

    def _attach(self, model: nn.Module) -> bool:
        places = find_places(model, self._parts)
        if not places:
            return False
        self._model = model
        self._config = getattr(model, "config", None) if self._config is None else self._config
        self._hooks = ModuleHooks(places, self._ranges, lambda: self._open is not None)
        if self._want_routing:
            self._tap = RoutingTap(places, self._open_index, self._config)
        return True

    def _open_index(self) -> int | None:
        return None if self._open is None else self._open.index

    def _end_step(self, step: _Step | None, complete: bool) -> None:
        if step is None or step is not self._open:
            return
        self._ranges.close_to(0)
        step.complete = complete
        self._open = None
        if self._hooks is not None:
            self._hooks.forget()
        if self._tap is not None:
            self._tap.flush()

    def _detach(self) -> None:
        self._open = None
        for hooks in (self._finder, self._hooks, self._tap):
            if hooks is not None:
                hooks.remove()

    def _undo(self) -> None:
        self._detach()
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        shutil.rmtree(self._staging, ignore_errors=True)

    def _save(self, ended: str) -> None:
        profiler = self._profiler
        if profiler is None:
            return
        facts = self._facts(ended)
        profiler.add_metadata_json("moetrace", orjson.dumps(facts, default=str).decode())
        profiler.stop()
        self._profiler = None
        try:
            facts["trace"] = capture.export_trace(profiler, self._staging)
            routing = self._tap.routing() if self._tap is not None else None
            if routing is not None:
                routing.save(self._staging / ROUTING_FILE)
            for name, path in self.files.items():
                shutil.copyfile(path, self._staging / name)
            text = orjson.dumps(facts, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            (self._staging / RECORDING_FILE).write_bytes(text)
            publish(self._staging, self.out, self._force)
        except OSError as failure:
            raise OutputError(
                f"{self.out}: the recording could not be written: {failure.strerror}"
            ) from failure

    def _facts(self, ended: str) -> dict[str, Any]:
        import torch

        weight = None if self._model is None else next(self._model.parameters(), None)
        config = getattr(self._model, "config", None)
        fields = capture.config_facts(self._config)
        facts: dict[str, Any] = {
            "schema": RECORDING_VERSION,
            "moetrace": __version__,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "ended": ended,
            "model": self._name or fields.get("model_type", ""),
            "model_config": fields,
            "native_layers": fields.get("num_hidden_layers"),
            "dtype": None if weight is None else capture.dtype_name(weight.dtype),
            "weights": "given",
            "experts_implementation": getattr(config, "_experts_implementation", None),
            "attention_implementation": getattr(config, "_attn_implementation", None),
            "torch": torch.__version__,
            "transformers": _version("transformers"),
            "device": capture.device_facts(None if weight is None else weight.device),
            "nvtx": self._ranges.has_nvtx,
            "annotations": self._hooks is not None,
            "batch": max(step.batch for step in self.steps),
            "steps": [asdict(step) for step in self.steps],
            "routing": self._routing_facts(),
        }
        return facts | self.metadata

    def _routing_facts(self) -> dict[str, Any]:
        if self._tap is None:
            return {"source": "none"}
        source = ", ".join(sorted(self._tap.sources())) or "none"
        return {"source": source, "order": "descending router score", "tokens": "all tokens of each step"}


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as missing:
        raise MoetraceError(f"recording needs {missing.name}: pip install 'moetrace[record]'") from missing


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
