"""What a prediction cannot be asked for when it is edited again: it holds its edited ops and not those it was made from."""

from __future__ import annotations

from collections.abc import Mapping

from moetrace.errors import ScenarioError
from moetrace.hardware import ANY_ENGINE
from moetrace.replay.draft import Draft
from moetrace.replay.scenario import Setting

_ONCE = "replay what it was made from, with all edits at once"
# Knobs whose per cent is of the experts, or of their width, that there are: knobs that may have changed these, the last of
# which says the number itself.
_SHARES = {"prune_inter": ("prune_inter", "n_e"), "prune_intra": ("prune_intra", "ffn")}
# Knobs of what each expert does, which follows from them no more once the experts run one by one.
_OF_EXPERTS = frozenset({*_SHARES, "n_e", "ffn", "dtype", "act", "n_a", "batch", "routing", "eplb"})
# Knobs that another number of rows would follow from.
_OF_ROWS = frozenset({"batch", "dp", "pp", "pad", "graph"})
_LAYOUT = ("gpus", "nodes", "tp", "ep")
# Values that ask for what was recorded.
_BACK = {"n_a": "native", "routing": "recorded", "fusion": "recorded", "experts": "fused"}


def check_again(draft: Draft) -> None:
    """Raises ScenarioError where a prediction is to be edited in a way that needs what it was made from."""
    said = draft.made_with
    _check_whole(said)
    padded = draft.run.meta.kind == "predicted" and bool(draft.run.meta.facts.get("padded"))
    for setting in draft.scenario.settings:
        name = setting.name
        if padded and _pads_anew(draft, setting):
            raise ScenarioError(
                f"{setting}: the run is a prediction whose decode steps are padded to sizes of graphs, and other rows, or "
                f"other work of theirs, would follow: {_ONCE}, or edit one made with pad=none"
            )
        before = next((f"{other}={said[other]}" for other in _SHARES.get(name, ()) if other in said), None)
        if before:
            raise ScenarioError(
                f"{setting}: the run is a prediction with {before}, and a per cent would be of what that left: say the number "
                f"with {_SHARES[name][-1]}, or {_ONCE}"
            )
        if name in _OF_EXPERTS and said.get("experts") == "unfused":
            raise ScenarioError(
                f"{setting}: the run is a prediction with experts=unfused, whose experts stay as they are: {_ONCE}"
            )
        was = "runs" if name == "fusion" and was_fused(draft) else said.get(name, setting.text)
        if setting.value == _BACK.get(name) and was != setting.text:
            raise ScenarioError(
                f"{setting}: the run is a prediction with {name}={was} and no longer holds what was recorded: {_ONCE}"
            )


def _pads_anew(draft: Draft, setting: Setting) -> bool:
    """Whether other rows of a padded prediction would follow from this, or other experts of them (`replay/padding`)."""
    before = _sizes_of(draft.made_with.get("engine", ANY_ENGINE))
    if setting.name == "engine":
        return _sizes_of(setting.text) != before
    if setting.name == "overlap":
        return setting.text != "none"
    if before == "sglang" and setting.name in _LAYOUT:  # with ep its padded rows choose no experts
        return (draft.parallel.ep == 1) != (draft.ran.ep == 1)
    return setting.name in _OF_ROWS


def _sizes_of(engine: str) -> str:
    """The engine whose graphs a step runs in under this one: vLLM's where none is named."""
    name = engine.partition("@")[0]
    return "vllm" if name == ANY_ENGINE else name


def _check_whole(said: Mapping[str, str]) -> None:
    """Raises ScenarioError where the ops are a part of each step, which goes through a pipeline or in halves."""
    parts = [f"{name}={said[name]}" for name in ("pp", "overlap") if said.get(name, "1") not in ("1", "none")]
    if parts:
        raise ScenarioError(
            f"the run is a prediction with {' '.join(parts)}, whose ops are one part of each step: edit what it was made from, "
            "with all edits at once"
        )


def made_by(draft: Draft) -> dict[str, str]:
    """Knob name to value as text of all that a prediction is made with, also before it was edited again.

    A count of experts, or their width, replaces the per cent that led to the last one.
    """
    said = {**draft.made_with, **draft.scenario.texts()}
    for share, (_, count) in _SHARES.items():
        if count in draft.scenario.texts():
            said.pop(share, None)
    return said


def fuses(draft: Draft) -> bool:
    """Whether small operators become one kernel without being asked to: those of a CPU's recording, on another class."""
    own = draft.run.meta.device_class
    return own == "cpu" != draft.hw.device_class and "fusion" not in draft.scenario.texts()


def was_fused(draft: Draft) -> bool:
    """Whether the run is a prediction whose small operators became one kernel already, asked for or not."""
    return bool(draft.run.meta.facts.get("fused")) or draft.made_with.get("fusion") == "runs"


__all__ = ["check_again", "fuses", "made_by", "was_fused"]
