"""Parallelism of a replay: how tp, ep, pp and dp share out a machine's devices and a step's work. Light: no numpy here.

``tp x pp x dp`` devices: dp groups of sequences (attention data parallel), in each of them pp stages of layers, each stage cut
over tp ranks. Experts are shared out over the ``tp x dp`` ranks of a stage: ep ways in whole, ``tp x dp / ep`` ways in width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

NAMES = ("tp", "ep", "pp", "dp")


@dataclass(frozen=True, slots=True)
class Parallel:
    """Sizes of the four groups."""

    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1

    @classmethod
    def of(cls, chosen: Mapping[str, int], gpus: int, ran: Parallel) -> Parallel:
        """What a scenario's values make of `gpus` devices; `ran` is what the recording had, which stays where nothing is said.

        With ep, pp or dp alone, tp takes the devices that are left (1 where they do not divide: `problem` says so).
        """
        if not any(name in chosen for name in NAMES):
            return ran
        ep, pp, dp = (chosen.get(name, getattr(ran, name)) for name in ("ep", "pp", "dp"))
        tp = chosen.get("tp")
        if tp is None:
            tp = max(1, gpus // (pp * dp)) if max(ep, pp, dp) > 1 else ran.tp
        return cls(tp, ep, pp, dp)

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def stage(self) -> int:
        """Ranks that hold one stage's layers, and so share its experts."""
        return self.tp * self.dp

    @property
    def expert_tp(self) -> int:
        """Ways in which each expert's width is cut."""
        return self.stage // self.ep

    def __str__(self) -> str:
        said = [f"{name}={getattr(self, name)}" for name in NAMES if getattr(self, name) > 1]
        return " ".join(said) or "tp=1"

    def problem(self, gpus: int, machine: str) -> str | None:
        """Why this does not fit `gpus` devices of `machine`; None if it does."""
        if self.devices != gpus:
            sizes = [
                f"{name}={getattr(self, name)}" for name in ("tp", "pp", "dp") if getattr(self, name) > 1
            ]
            given = " ".join(sizes) or "tp=1"
            more = " (tp x pp x dp must be its GPUs)" if len(sizes) > 1 else ""
            return f"{machine} has {gpus} GPU(s), which {given} does not fill{more}: add --set tp={gpus} or ep={gpus}"
        if self.stage % self.ep:
            ways = "tp" if self.dp == 1 else "tp x dp"
            return f"ep={self.ep} does not divide {ways}={self.stage} on {machine}: experts are shared out over these GPUs"
        return None


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank's ops in a step stand for, where a rank does not work through the whole batch at once.

    `batch` sequences are in the ops, or begun in them where prompts are cut between their tokens. They are those of the largest
    of `groups` that attend apart, `fewer` of which have one sequence less; `times` is the step's time over that of its ops one
    after another (a pipeline that fills and drains), `busy` the share of that in which a rank works; `halves`: the ops are one
    of two halves of the batch, which overlap.
    """

    batch: int
    times: float = 1.0
    busy: float = 1.0
    halves: bool = False
    groups: int = 1
    fewer: int = 0

    @property
    def total(self) -> int:
        """Sequences of all groups."""
        return self.groups * self.batch - self.fewer

    def dealt_out(self, groups: int) -> Share:
        """The sequences dealt out evenly to so many groups."""
        most = -(-self.batch // groups)
        return replace(self, batch=most, groups=groups, fewer=groups * most - self.batch)

    def cut(self, ways: int) -> Share:
        """The first of so many parts of each group's sequences, which is the largest."""
        most, less = -(-self.batch // ways), -(-(self.batch - 1) // ways)
        return replace(self, batch=most, fewer=self.fewer * (most - less))
