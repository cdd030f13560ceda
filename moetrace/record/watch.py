"""Steps without a mark in the user's code: the model is found at its first forward, and each forward begins a step.

A step runs from one forward of the model to the next, so that sampling counts to it; the last of a
transformers ``generate`` ends with that call. Not seen: the replay of a CUDA graph and a forward compiled as a
whole, which call no module. A forward of several new tokens per sequence is taken as a prefill, also where it
verifies drafted tokens.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from moetrace.record.modules import find_places

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Forward:
    """What the arguments of a model's forward say of the step; `mask` [batch, new tokens]: 0 for padding, if told."""

    phase: str
    batch: int
    tokens: int
    kv_tokens: int
    mask: torch.Tensor | None = None


def read_forward(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Forward | None:
    """The step that a forward with these arguments is; None where no tokens [batch, new tokens] are among them.

    KV tokens come from the cache, else from the attention mask; padding counts as tokens, and among the KV tokens
    where the mask lies on a GPU, for to look would be to wait. The mask is one of two dimensions, or the causal one of four
    (or several by kind of layer) that transformers makes of it for a static cache.
    """
    tokens = _first((kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args))
    if tokens is None or tokens.dim() < 2:
        return None
    batch, new = int(tokens.shape[0]), int(tokens.shape[1])
    mask = _first((kwargs.get("attention_mask"),))
    flat = mask if mask is not None and mask.dim() == 2 and mask.shape[1] >= new else None
    past = _past(kwargs.get("past_key_values"))
    if past is None:
        past = int(flat.shape[1]) - new if flat is not None else 0
    kept, seen = (
        _from_flat(flat, new, past) if flat is not None else _from_causal(_causal(kwargs, batch), new, past)
    )
    kv_tokens = batch * (past + new)
    if seen is not None and seen.device.type == "cpu":
        kv_tokens = int(seen.sum())
    phase = "decode" if new == 1 and past else "prefill"
    return Forward(phase, batch, batch * new, kv_tokens, None if kept is None else kept.reshape(-1))


def _first(values: tuple[object, ...]) -> Any:
    return next((v for v in values if hasattr(v, "shape") and hasattr(v, "dim")), None)


def _from_flat(mask: torch.Tensor, new: int, past: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(which new tokens are no padding, [batch, new]; which of all tokens are none, [batch, past + new], or None)."""
    real = mask != 0
    return real[:, -new:], real if mask.shape[1] == past + new else None


def _causal(kwargs: Mapping[str, object], batch: int) -> torch.Tensor | None:
    """The causal mask [batch, 1, new, keys] among the arguments; of full attention, where there are several.

    None where all sequences share one, which tells no padding.
    """
    given = kwargs.get("attention_mask")
    if isinstance(given, dict):
        given = given.get("full_attention")
    mask = _first((given,))
    return mask if mask is not None and mask.dim() == 4 and mask.shape[0] == batch else None


def _from_causal(
    mask: torch.Tensor | None, new: int, past: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """As `_from_flat`, of a mask of bools, or of numbers to add: a token attends to itself unless it is padding.

    (None, None) where its keys are not those of all tokens from the first on, as those of a sliding window.
    """
    if mask is None or mask.shape[2] != new or past + new > mask.shape[3]:
        return None, None
    import torch

    attends = mask[:, 0]
    attends = attends > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else attends != 0
    own = attends[:, :, past : past + new].diagonal(dim1=1, dim2=2)
    return own, attends[:, -1, : past + new]


def _past(cache: object) -> int | None:
    """Tokens in a cache; None if it does not say, or would have to be waited for while a CUDA graph is captured.

    A static cache keeps its length on the device, so a decode on a GPU waits for it here, before the step begins.
    """
    if cache is None:
        return None
    length = getattr(cache, "get_seq_length", None)
    if length is None:  # the tuples of older models: keys [batch, heads, tokens, dim]
        first = cache[0][0] if isinstance(cache, (tuple, list)) and cache and cache[0] else None
        shape = getattr(first, "shape", None)
        return int(shape[-2]) if shape else None
    told = length()
    return None if _is_captured(told) else int(told)


def _is_captured(value: object) -> bool:
    """Whether to read `value` would break the capture of a CUDA graph."""
    device = getattr(value, "device", None)
    if device is None or device.type == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


class Watch:
    """Finds the model and follows it: `began(forward)` before and `ended()` after each outermost forward.

    `wanted(module)` says whether a module that is called is the model; it is asked once per module, outermost
    first, until it agrees. `done(whole)` is called when a transformers ``generate`` returns or raises. Only the thread of the
    first forward is followed.
    """

    def __init__(
        self,
        wanted: Callable[[nn.Module], bool],
        began: Callable[[Forward], None],
        ended: Callable[[], None],
        done: Callable[[bool], None],
    ) -> None:
        self._wanted = wanted
        self._began = began
        self._ended = ended
        self._done = done
        self._asked: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._handles: list[Any] = []
        self._finding: list[Callable[[], None]] = []
        self._patched: list[Callable[[], None]] = []
        self._depth = 0
        self._thread: int | None = None
        self._followed: nn.Module | None = None
        self.generated: set[str] = set()  # classes of other models with experts whose ``generate`` was called

    def find(self) -> None:
        """Ask of each module that is called whether it is the model, until one is."""
        from torch.nn import Module

        plain = Module.__call__

        # Not a global hook: hooks that are placed while hooks run would miss this call, which is the prefill.
        @functools.wraps(plain)
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._finding and module not in self._asked:
                self._asked.update(module.modules())
                if self._wanted(module):
                    self._stop_finding()
                    self.follow(module)
            return plain(module, *args, **kwargs)

        def undo() -> None:
            Module.__call__ = plain

        Module.__call__ = call
        self._finding.append(undo)

    def _stop_finding(self) -> None:
        while self._finding:
            self._finding.pop()()

    def follow(self, model: nn.Module) -> None:
        """Take the forwards of `model` as steps."""
        self._followed = model
        self._handles.append(model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._after, always_call=True))

    def end_steps_with_generate(self) -> None:
        """Have a step end where a transformers ``generate`` returns: from now on, or once a model is built."""
        from torch.nn.modules.module import register_module_module_registration_hook

        if self._patch_generate():
            return

        def built(*_: object) -> None:
            if self._patch_generate():
                handle.remove()

        handle = register_module_module_registration_hook(built)
        self._handles.append(handle)

    def _patch_generate(self) -> bool:
        """Wrap `generate`; False while transformers is not loaded."""
        mixin = getattr(sys.modules.get("transformers.generation.utils"), "GenerationMixin", None)
        if mixin is None:
            return False
        plain = mixin.generate

        @functools.wraps(plain)
        def generate(*args: Any, **kwargs: Any) -> Any:
            whole = False
            self._note_other(args[0] if args else None)
            try:
                answer = plain(*args, **kwargs)
                whole = True
            finally:
                if self._thread == threading.get_ident():
                    self._done(whole)
            return answer

        mixin.generate = generate
        self._patched.append(lambda: setattr(mixin, "generate", plain))
        return True

    def _note_other(self, model: object) -> None:
        followed = self._followed
        if followed is None or not hasattr(model, "modules") or model is followed:
            return
        if not any(m is followed for m in model.modules()) and any(
            p.part == "moe" for p in find_places(cast("nn.Module", model))
        ):
            self.generated.add(type(model).__name__)

    def _before(self, _module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        import torch

        if (
            torch.compiler.is_compiling()
        ):  # a hook inside a compiled forward would run once, at the compilation
            return
        if self._thread is None:
            self._thread = threading.get_ident()
        if self._thread != threading.get_ident():
            return
        self._depth += 1
        forward = read_forward(args, kwargs) if self._depth == 1 else None
        if forward is not None:
            self._began(forward)

    def _after(self, _module: nn.Module, _args: object, _output: object) -> None:
        if self._depth and self._thread == threading.get_ident():
            self._depth -= 1
            if not self._depth:
                self._ended()

    def remove(self) -> None:
        """Leave everything as it was found."""
        self._stop_finding()
        while self._patched:
            self._patched.pop()()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
