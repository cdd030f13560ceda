"""The in-process recorder: a window of steps of any PyTorch inference loop, with annotations, routing and
metadata.

Everything is undone when the window closes, however it closes, and what was captured until then is written.
Recorded is what runs in this process on the thread of the first step; other ranks are not.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from moetrace.errors import MoetraceError, OutputError, unknown
from moetrace.given import misfit
from moetrace.record import facts
from moetrace.record.counted import Counted
from moetrace.record.facts import StepFacts
from moetrace.record.files import check_output, staging
from moetrace.record.modules import PARTS, find_places, has_parts, other_models
from moetrace.record.settings import Settings
from moetrace.record.watch import Forward, Watch
from moetrace.record.window import Window
from moetrace.record.written import interrupts_held, write
from moetrace.run import PHASES

if TYPE_CHECKING:
    from torch import nn

_MOST_OUTSIDE = 10_000  # timings kept of steps outside of the window


class StepHandle:
    """An open step: ends with its ``with`` block or, if a plain call, at the next step or the window's
    end."""

    def __init__(self, recorder: Recorder, step: StepFacts) -> None:
        self._recorder = recorder
        self._step = step

    def __enter__(self) -> StepHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if self._recorder._open is self._step:
            self._recorder._end_step(complete=kind is None)


class Recorder:
    """A recording window; see `moetrace.record` for the arguments. `steps` lists what was recorded so far."""

    _running_one: ClassVar[Path | None] = None  # torch has one profiler and a module one set of hooks

    def __init__(self, out: str | os.PathLike[str], settings: Settings) -> None:
        self.out = Path(out)
        self.steps: list[StepFacts] = []
        self.outside: list[StepFacts] = []
        self.metadata: dict[str, Any] = dict(settings.metadata)
        self.files: dict[str, Path] = {}  # name in the recording -> what is copied there when it is written
        self.entered = False
        self.ended: str | None = None  # why what runs inside ended, where no exception says so here
        self.told: dict[str, Any] | None = None  # recording.json, once written
        self.found: str = ""  # the class of the model that was found, for who reports a failure
        self._settings = settings
        self._model = settings.model
        self._seen = 0
        self._manual = False
        self._open: StepFacts | None = None
        self._active = False
        self._began = 0.0
        self._watch: Watch | None = None
        self._window: Window

    def __enter__(self) -> Recorder:
        _need_torch()
        if Recorder._running_one is not None:
            raise MoetraceError(
                f"{self.out}: {Recorder._running_one} is being recorded in this process: end that first, recordings do not nest"
            )
        settings = self._settings
        if settings.parts and settings.model is None and not settings.experts_only:
            raise MoetraceError("record(parts=...) needs model= too, whose module names the patterns match")
        if self._model is not None and not hasattr(self._model, "modules"):
            raise MoetraceError(
                misfit(self._model, "model", "expected the torch.nn.Module that runs, or none to find it")
            )
        check_output(self.out, settings.force)
        self._staging = staging(self.out)
        self._window = Window(settings, self._recorded)
        try:
            self._watch = Watch(self._wanted, self._step_found, self._forward_ended, self._generate_ended)
            self._watch.end_steps_with_generate()
            if self._model is None:
                self._watch.find()
            elif self._wanted(self._model):
                if settings.detect:
                    self._watch.follow(self._model)
            else:
                raise MoetraceError(
                    f"{type(self._model).__name__}: no decoder layers found: name them with parts={{...}}"
                )
        except BaseException:
            self._undo()
            raise
        self.entered = True
        Recorder._running_one = self.out
        self._date = facts.now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        ended = self.ended if kind is None else kind.__name__
        try:
            self._end_step(complete=ended is None)
            self._close_window()
            if self.steps:
                self._save(ended or "complete")
            elif ended is None:
                raise OutputError(f"{self.out}: nothing was recorded: {self._why_nothing()}")
        finally:
            self._undo()

    def step(self, phase: str, *, batch: int, kv_tokens: int, tokens: int | None = None) -> StepHandle:
        """Begin a step, ending the one before; usable as a call or as a context manager.

        `phase` is prefill, decode, verify, mixed or draft; `batch` sequences; `tokens` new tokens in all (default `batch`,
        as in decode); `kv_tokens` KV-cache tokens that attention reads, summed over sequences, those of this
        step included. From the first call on steps are no longer told from the model's forwards, and what was
        recorded of those is dropped.
        """
        if phase not in PHASES:
            raise MoetraceError(unknown("phase", phase, PHASES))
        if tokens is None and phase != "decode":
            raise MoetraceError(
                f"rec.step({phase!r}): tokens= is needed, the number of new tokens of all sequences"
            )
        if not self._manual:
            self._manual = True
            self._forget()
        made = StepFacts(-1, phase, int(batch), int(batch if tokens is None else tokens), int(kv_tokens))
        self._begin_step(made)
        return StepHandle(self, made)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Mark a part that is not a module, such as ``sampling``; does nothing outside of a recorded step."""
        if name not in PARTS:
            raise MoetraceError(unknown("part", name, PARTS))
        if not self._active:
            yield
            return
        depth = self._window.ranges.push(f"moetrace.part:{name}")
        try:
            yield
        finally:
            self._window.ranges.close_to(depth)

    def _wanted(self, module: nn.Module) -> bool:
        """Whether a module is the model to record; if so its places are known from now on."""
        settings = self._settings
        given = settings.parts if settings.model is not None or has_parts(module, settings.parts) else None
        places = find_places(module, given)
        named = given is not None
        if not places or (settings.experts_only and not named and all(p.part != "moe" for p in places)):
            if places and not self.found:
                self.found = type(module).__name__
            return False
        self._model, self.found = module, type(module).__name__
        self._window.take(module, places)
        return True

    def _step_found(self, forward: Forward) -> None:
        if self._manual or not self._settings.detect:
            return
        made = StepFacts(-1, forward.phase, forward.batch, forward.tokens, forward.kv_tokens)
        self._begin_step(made)
        if self._window.tap is not None and made.index >= 0:
            self._window.tap.mask(made.index, forward.mask)

    def _forward_ended(self) -> None:
        """What runs between two forwards is sampling."""
        if self._active and not self._manual:
            self._window.ranges.close_to(self._window.base + 1)
            self._window.ranges.push("moetrace.part:sampling")

    def _generate_ended(self, whole: bool) -> None:
        if not self._manual:
            self._end_step(complete=whole)

    def _begin_step(self, made: StepFacts) -> None:
        self._end_step(complete=True)
        where = self._settings.window(self._seen)
        self._seen += 1
        if where in ("warmup", "active") and not self._window.is_open:
            self._window.open()
        if where == "active":
            self._window.start()
            made.index = len(self.steps)
            self.steps.append(made)
            self._window.ranges.push(made.range_name)
            self._active = True
        elif where == "after":
            self._close_window()
        self._open = made
        self._began = time.perf_counter()

    def _end_step(self, complete: bool) -> None:
        step = self._open
        if step is None:
            return
        step.seconds = round(time.perf_counter() - self._began, 6)
        step.complete = complete
        self._open, self._active = None, False
        if step.index < 0:
            if len(self.outside) < _MOST_OUTSIDE and not self._window.is_open:
                self.outside.append(step)
            return
        self._window.end_step(step.index, step.tokens)

    def _recorded(self) -> int | None:
        """The index of the recorded step that is open on this thread."""
        step = self._open
        return step.index if self._active and step is not None and self._window.on_thread() else None

    def _forget(self) -> None:
        """Drop steps that were told from forwards: the user marks them."""
        self._end_step(complete=False)
        self._seen = 0
        self.outside.clear()
        if self._window.is_open:
            self._window.forget()
            self.steps.clear()

    def _close_window(self) -> None:
        self._window.close(lambda: self._facts("open") | self.metadata)

    def _why_nothing(self) -> str:
        if self._model is None:
            other = f" ({self.found} ran, which has no experts)" if self.found else ""
            return (
                f"no model with decoder layers and experts ran{other}"
                if self._settings.experts_only
                else ("no model with decoder layers ran and no rec.step(...)")
            )
        return f"{self._seen} steps ran, none of them after the {self._settings.skip + self._settings.warmup} to leave out"

    def _undo(self) -> None:
        """Leave the model and torch as they were, also where the profiler fails to stop."""
        self._open, self._active = None, False
        try:
            self._window.stop()
        finally:
            self._window.take_off()
            if self._watch is not None:
                self._watch.remove()
            self._window.profiler = None
            if self.entered:
                Recorder._running_one = None
            shutil.rmtree(self._staging, ignore_errors=True)

    def _save(self, ended: str) -> None:
        tap = self._window.tap
        counted = tap.counted() if tap is not None else None
        for step in self.steps:
            step.padding = counted.padding(step.index) if counted is not None else 0
        with interrupts_held():
            self.told = write(
                self.out,
                self._staging,
                self._facts(ended, counted, self._others()) | self.metadata,
                counted=counted,
                profiler=self._window.profiler,
                others=self.files,
                force=self._settings.force,
            )

    def _others(self) -> list[str]:
        return other_models(self._model, () if self._watch is None else self._watch.generated)

    def _facts(
        self, ended: str, counted: Counted | None = None, others: Sequence[str] = ()
    ) -> dict[str, Any]:
        return facts.recording_facts(
            self._settings,
            run={"date": self._date, **facts.run_facts(ended, self.steps, self.outside)},
            model=self._model,
            nvtx=self._window.ranges.has_nvtx,
            annotated=self._window.annotated,
            marked=self._manual,
            counted=counted,
            others=others,
        )


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as missing:
        raise MoetraceError(f"recording needs {missing.name}: pip install 'moetrace[record]'") from missing
