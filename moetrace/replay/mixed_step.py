"""The mixed step of a steady load under attention data parallelism: what the group that works on a prompt has to do.

One prompt is worked through by one group, as each has a scheduler of its own, and what a group does not attend to it waits for
at the experts of the layer. So a step takes as long as in the group with most tokens: its share of the decoding sequences and
as many whole prompts as fall to it where they are dealt out evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetrace.replay import edit
from moetrace.replay.lanes import largest

if TYPE_CHECKING:
    from moetrace.op import Op
    from moetrace.replay.draft import At, Draft

PROMPTS = ("prefill", "mixed")  # phases of steps that work on prompts: of their own, or beside decoding
# Of the ops outside of the layers: those that see the last tokens of each sequence alone.
_LAST = frozenset({"lm_head", "sampling", "elementwise"})


@dataclass(frozen=True, slots=True)
class Busiest:
    """A mixed step of `groups`: its sequences that decode, new tokens of these, prompts (their mean) and new tokens of each.

    Each is one number, or Lanes of many scenarios.
    """

    groups: int
    batch: Any
    decoding: Any
    prompts: Any
    new: Any
    apart: bool = False  # no group decodes beside its own prompts
    # Prompts of a group that has any, where those without decode on; None: each has its share of all.
    each: Any = None

    @property
    def tokens(self) -> Any:
        """Tokens of all groups."""
        return self.decoding + round(self.prompts * self.new)

    @property
    def own_batch(self) -> Any:
        return -(-self.batch // self.groups)

    @property
    def own_prompts(self) -> Any:
        """Those of the group with most, dealt out evenly: a prompt is one group's."""
        return largest(1.0, self.prompts / self.groups) if self.each is None else self.each

    @property
    def differ(self) -> bool:
        """Whether only some groups have prompts."""
        return self.each is not None or bool(self.prompts < self.groups)

    @property
    def own_tokens(self) -> Any:
        """Tokens of the group with most."""
        own = round(self.own_prompts * self.new)
        return own if self.apart else self.decoding // self.batch * self.own_batch + own

    def share(self, op: Op, at: At) -> Op:
        """An op of all groups' tokens, at those of the group with most; it sees all, the prompts' or those decoding."""
        if at.layer < 0 and op.kind in _LAST:
            own, whole = round(self.own_prompts), round(self.prompts)
            return edit.scaled(
                op, own if self.apart else self.own_batch + own, whole if self.apart else self.batch + whole
            )
        seen = round(self.prompts * self.new) if self.apart else self.tokens
        if op.has("prompt") or op.has("pairs"):
            decodes = False
        elif op.has("batch"):
            decodes = not self.apart and op["batch"] == self.batch
        elif op.has("m") and op["m"] != seen:
            # MLA projects into its cache one head at a time in decode. Of prompts of which an indexer picks tokens, too: those
            # are marked, but not in runs saved by earlier versions.
            decodes = not self.apart and op.has("b") and op["m"] == self.decoding
        else:
            return edit.scaled(op, self.own_tokens, seen)
        if decodes:
            return edit.scaled(op, self.own_batch, self.batch)
        return edit.scaled(op, self.own_prompts, self.prompts)


def busiest_groups(draft: Draft, groups: int) -> Mapping[int, Busiest]:
    """The steps of a synthesized steady load that work on prompts, beside decoding or in steps of their own, by index.

    A recorded mixed step does not say how many of its sequences are prompts, and a run whose batch was edited no longer has
    those that it was made with: they are not in here.
    """
    load = draft.run.meta.facts.get("workload", {})
    if "beside" not in load:
        return {}
    prompts, new = load["beside"]
    apart, each = bool(load.get("apart")), load.get("own_prompts")
    return {
        i: Busiest(groups, step.batch, step.tokens - round(prompts * new), prompts, new, apart, each)
        for i, step in enumerate(draft.steps)
        if step.phase in PROMPTS and step.tokens and step.batch == load["batch"]
    }
