"""What runs while steps are recorded: profiler, annotations and the routing tap; undone however it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from moetrace.record import capture
from moetrace.record.modules import ModuleHooks, Place, Ranges
from moetrace.record.routing_hooks import RoutingTap
from moetrace.record.settings import Settings

if TYPE_CHECKING:
    from torch import nn
    from torch.profiler import _KinetoProfile

WINDOW = "moetrace.window"  # the range that nsys waits for
_KNOWN_LATER = ("ended", "routing", "models_not_recorded")  # of recording.json, when the trace is closed


class Window:
    """From the first warm-up step to the last recorded one. `step()` is the index of the recorded step that is open, or None.

    `is_open`: profiler and hooks run. Only the thread that opened it is annotated.
    """

    def __init__(self, settings: Settings, step: Callable[[], int | None]) -> None:
        self._settings = settings
        self._step = step
        self.ranges = Ranges(settings.nvtx)
        self.is_open = False
        self.base = 0  # depth of a step's range
        self.profiler: _KinetoProfile | None = None
        self.tap: RoutingTap | None = None
        self._hooks: ModuleHooks | None = None
        self._model: nn.Module | None = None
        self._places: tuple[Place, ...] = ()
        self._running = False
        self._thread = threading.get_ident()

    @property
    def annotated(self) -> bool:
        """Whether the model's modules got their ranges."""
        return self._hooks is not None

    def take(self, model: nn.Module, places: tuple[Place, ...]) -> None:
        """The model to record is known, and where its ranges go."""
        self._model, self._places = model, places
        if self.is_open:
            self._attach()
        elif self._settings.graph_tokens is not None:
            self._tap_routing()  # before the capture, which comes before the window

    def open(self) -> None:
        """From here on the profiler and the hooks run, for warm-up steps too."""
        import torch

        self._thread = threading.get_ident()
        cuda, nsys = torch.cuda.is_available(), self._settings.nsys
        if not (cuda and nsys):  # a GPU's counters serve one of them
            elsewhere = threading.current_thread() is not threading.main_thread()
            self.profiler = capture.prepared_profiler(cuda, elsewhere)
        self.is_open = True
        self.base = self.ranges.push(WINDOW) + 1 if nsys else 0
        if self._places:
            self._attach()

    def start(self) -> None:
        """The first recorded step: what the profiler sees is kept from here on."""
        if not self._running:
            self._running = True
            if self.profiler is not None:
                self.profiler.start_trace()

    def end_step(self, index: int, tokens: int) -> None:
        """A recorded step ended."""
        self.ranges.close_to(self.base)
        if self._hooks is not None:
            self._hooks.forget()
        if self.tap is not None:
            self.tap.end_step(index, tokens)

    def on_thread(self) -> bool:
        """Whether this is the thread that is annotated."""
        return threading.get_ident() == self._thread

    def forget(self) -> None:
        """Drop what was recorded so far."""
        self.stop()
        self.profiler = None
        if self.tap is not None:
            self.tap.forget()

    def close(self, told: Callable[[], Mapping[str, Any]]) -> None:
        """Stop profiling, with what is `told` of the run in the trace, and take the hooks off; what was captured stays."""
        if self.is_open and self.profiler is not None and self._running:
            inside = {key: value for key, value in told().items() if key not in _KNOWN_LATER}
            self.profiler.add_metadata_json("moetrace", orjson.dumps(inside, default=str).decode())
        self.stop()
        self.take_off()

    def stop(self) -> None:
        """End the ranges and the profiler."""
        if not self.is_open:
            return
        self.ranges.close_to(0)
        self.is_open = False
        if self.profiler is not None and self._running:
            self.profiler.stop_trace()
        self._running = False

    def take_off(self) -> None:
        """Remove every hook."""
        for hooks in (self._hooks, self.tap):
            if hooks is not None:
                hooks.remove()

    def _attach(self) -> None:
        if self._hooks is None:
            self._hooks = ModuleHooks(self._places, self.ranges, lambda: self._step() is not None)
            self._tap_routing()

    def _tap_routing(self) -> None:
        settings = self._settings
        if settings.routing and self.tap is None:
            given = settings.model_config
            self.tap = RoutingTap(
                self._places,
                self._step,
                getattr(self._model, "config", None) if given is None else given,
                extra=settings.router_extra,
                tokens=settings.token_ids,
                graph_tokens=settings.graph_tokens,
            )
