"""Where the annotations go: from a Hugging Face style module tree to named ranges, and the hooks that open
and close them.

Placed by attribute names that transformers uses (OLMoE, Mixtral, Qwen2/3-MoE, DeepSeek-V2/V3, gpt-oss,
Phi-3.5-MoE, Llama-4 and others of that shape); what a model names otherwise the user maps. Not supported:
parts that are not modules (they are marked by hand with ``rec.part``), and modules inside a compiled or
captured graph, whose hooks do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from moetrace.errors import MoetraceError, unknown

if TYPE_CHECKING:
    from torch import nn

PARTS = (
    "embedding",
    "input_norm",
    "attention",
    "post_norm",
    "moe",
    "router",
    "experts",
    "shared_expert",
    "dense_mlp",
    "final_norm",
    "lm_head",
    "sampling",
)

# Attribute names, best first, of the children of a decoder layer, of its MoE block and of the model around
# the layers.
_ATTENTION = ("self_attn", "attention", "attn", "self_attention")
_FEED_FORWARD = ("mlp", "block_sparse_moe", "feed_forward", "moe", "ffn")
_LAYER_CHILDREN = {
    "input_norm": ("input_layernorm", "attention_norm", "ln_1", "norm1"),
    "attention": _ATTENTION,
    "post_norm": ("post_attention_layernorm", "pre_feedforward_layernorm", "ffn_norm", "ln_2", "norm2"),
}
_EXPERTS = ("experts",)
_ROUTER = ("gate", "router")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp", "shared_expert_gate")
_AROUND = {
    "embedding": ("embed_tokens", "wte", "tok_embeddings"),
    "final_norm": ("norm", "final_layernorm", "ln_f"),
}
_HEAD = ("lm_head", "embed_out", "output")


@dataclass(frozen=True, slots=True)
class Place:
    """A module that gets a range. `part`: one of PARTS, or ``layer``; `layer`: its decoder layer, -1: in
    none."""

    module: nn.Module
    part: str
    layer: int = -1

    @property
    def range_name(self) -> str:
        return f"moetrace.layer#{self.layer}" if self.part == "layer" else f"moetrace.part:{self.part}"


def find_places(model: nn.Module, parts: Mapping[str, str] | None = None) -> tuple[Place, ...]:
    """The modules of `model` that get a range; empty where nothing is recognised.

    `parts` maps a part (or ``layer``) to a pattern of qualified module names (``model.layers.*.ff.gate``) and
    replaces what would be found for that part. Raises MoetraceError for an unknown part or a pattern that
    matches nothing.
    """
    found = [*_around(model), *(p for i, layer in _layers(model) for p in _in_layer(i, layer))]
    for part, pattern in (parts or {}).items():
        if part not in (*PARTS, "layer"):
            raise MoetraceError(unknown("part", part, (*PARTS, "layer")))
        mapped = [
            Place(m, part, _number(name)) for name, m in model.named_modules() if fnmatchcase(name, pattern)
        ]
        if not mapped:
            raise MoetraceError(f"part {part!r}: no module is named {pattern!r} (see model.named_modules())")
        found = [p for p in found if p.part != part] + mapped
    return tuple(found)


def other_models(recorded: nn.Module | None, called: Iterable[str]) -> list[str]:
    """Classes of models with experts that were not `recorded`: those `called` by name, and those that this process holds.

    Nothing watches other models while they run, so that they cost nothing; of one that is held it is not known whether it ran.
    """
    import gc

    from torch import nn

    # Not isinstance, which would wake lazy objects.
    held = [m for m in gc.get_objects() if issubclass(type(m), nn.Module)]
    inside = {id(c) for m in held for c in m._modules.values() if c is not None}
    inside |= {id(m) for m in recorded.modules()} if recorded is not None else set()
    roots = [m for m in held if id(m) not in inside and not _holds(m, recorded)]
    found = [type(m).__name__ for m in roots if any(p.part == "moe" for p in find_places(m))]
    return sorted({*found, *called})


def _holds(module: nn.Module, model: nn.Module | None) -> bool:
    return model is not None and any(m is model for m in module.modules())


def child(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The first child module that has one of these attribute names."""
    return next((c for c in (getattr(module, n, None) for n in names) if hasattr(c, "named_modules")), None)


def _number(name: str) -> int:
    """Layer number in a qualified name: its first all-digit component; -1 if there is none."""
    return next((int(piece) for piece in name.split(".") if piece.isdigit()), -1)


def _layers(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """The decoder layers: of all lists of modules with attention, one with experts, and the longest."""
    best: tuple[bool, int] = (False, 0)
    layers: list[nn.Module] = []
    for module in model.modules():
        items = list(module.children()) if type(module).__name__ == "ModuleList" else []
        if not items or any(child(item, _ATTENTION) is None for item in items):
            continue
        rank = (any(moe_block(item) is not None for item in items), len(items))
        if rank > best:
            best, layers = rank, items
    return list(enumerate(layers))


def moe_block(layer: nn.Module) -> nn.Module | None:
    """The feed-forward child of a decoder layer if it holds experts."""
    block = child(layer, _FEED_FORWARD)
    return block if block is not None and child(block, _EXPERTS) is not None else None


def _around(model: nn.Module) -> list[Place]:
    """Embedding and final norm beside the layers' list, and the head of the whole model."""
    layers = [layer for _, layer in _layers(model)]
    found: list[Place] = []
    for module in model.modules():
        if layers and any(list(c.children()) == layers for c in module.children()):
            beside = {part: child(module, names) for part, names in _AROUND.items()}
            found += [Place(m, part) for part, m in beside.items() if m is not None]
    head = child(model, _HEAD)
    return [*found, Place(head, "lm_head")] if layers and head is not None else found


def _in_layer(index: int, layer: nn.Module) -> list[Place]:
    found = [Place(layer, "layer", index)]
    for part, names in _LAYER_CHILDREN.items():
        inside = child(layer, names)
        if inside is not None:
            found.append(Place(inside, part, index))
    block = moe_block(layer)
    if block is None:
        dense = child(layer, _FEED_FORWARD)
        return found if dense is None else [*found, Place(dense, "dense_mlp", index)]
    found.append(Place(block, "moe", index))
    for part, names in (("router", _ROUTER), ("experts", _EXPERTS)):
        inside = child(block, names)
        found += [] if inside is None else [Place(m, part, index) for m in _callable_modules(inside)]
    shared = (getattr(block, name, None) for name in _SHARED)
    return found + [Place(m, "shared_expert", index) for m in shared if hasattr(m, "named_modules")]


def _callable_modules(module: nn.Module) -> list[nn.Module]:
    """The module itself, or its children where it is a bare list that is never called."""
    return list(module.children()) if type(module).__name__ in ("ModuleList", "ModuleDict") else [module]


class Ranges:
    """Nested ranges: record_function and, with `nvtx`, NVTX ranges of the same names in domain
    ``moetrace``."""

    def __init__(self, nvtx: bool = True) -> None:
        from torch.profiler import record_function

        self._record_function = record_function
        self._nvtx = _nvtx_module() if nvtx else None
        self._open: list[Any] = []

    @property
    def has_nvtx(self) -> bool:
        return self._nvtx is not None

    def push(self, name: str) -> int:
        """Open a range and return the depth to give to `close_to` for closing it."""
        if self._nvtx is not None:
            self._nvtx.push_range(message=name, domain="moetrace")
        entered = self._record_function(name)
        entered.__enter__()
        self._open.append(entered)
        return len(self._open) - 1

    def close_to(self, depth: int) -> None:
        """Close all ranges at `depth` and deeper, innermost first."""
        while len(self._open) > depth:
            self._open.pop().__exit__(None, None, None)
            if self._nvtx is not None:
                self._nvtx.pop_range(domain="moetrace")


def _nvtx_module() -> Any:
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx


class ModuleHooks:
    """Forward hooks that open each place's range before its module runs and close it after, also when it
    raises.

    They act only while `active()` is true. Nothing is returned to the module, so results cannot change.
    """

    def __init__(self, places: Iterable[Place], ranges: Ranges, active: Callable[[], bool]) -> None:
        self._ranges = ranges
        self._active = active
        self._depths: list[tuple[int, int]] = []  # (id of the module, depth of its range), as opened
        self._handles: list[Any] = []
        for place in places:
            pre, post = self._pair(place)
            self._handles.append(place.module.register_forward_pre_hook(pre))
            self._handles.append(place.module.register_forward_hook(post, always_call=True))

    def _pair(self, place: Place) -> tuple[Callable[..., None], Callable[..., None]]:
        name = place.range_name

        def pre(module: nn.Module, _args: object) -> None:
            if self._active():
                self._depths.append((id(module), self._ranges.push(name)))

        def post(module: nn.Module, _args: object, _output: object) -> None:
            for at in range(len(self._depths) - 1, -1, -1):
                if self._depths[at][0] == id(module):
                    self._ranges.close_to(self._depths[at][1])
                    del self._depths[at:]
                    return

        return pre, post

    def forget(self) -> None:
        """Called when a step ends: modules still open belong to no later step."""
        self._depths.clear()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def has_parts(module: nn.Module, parts: Any) -> bool:
    """Whether the user's patterns all match: it is the model that they were written for."""
    names = [name for name, _ in module.named_modules()] if parts else []
    return bool(parts) and all(any(fnmatchcase(n, pattern) for n in names) for pattern in parts.values())
