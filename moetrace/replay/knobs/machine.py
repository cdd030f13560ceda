"""Knobs that choose how many devices of a machine there are. They change no op: `scenarios` and `replay` read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetrace.replay.grammar import one_whole
from moetrace.replay.knobs.registry import knob

if TYPE_CHECKING:
    from moetrace.replay.draft import Draft


@knob("gpus", "devices of the machine: h100-sxm with gpus=8 is h100-sxm-x8", "a whole number", one_whole)
def gpus(draft: Draft, value: int) -> Draft:
    """Changes no op: the draft's machine has so many devices already."""
    return draft


@knob("nodes", "nodes of the machine, each of the devices that fast links join", "a whole number", one_whole)
def nodes(draft: Draft, value: int) -> Draft:
    """Changes no op, as `gpus`."""
    return draft
