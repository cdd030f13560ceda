"""Many scenarios at once that differ in numbers alone: the steps of `simulate`, done once for all of them.

Knobs, synthesis and memory are the very code of one scenario (`shape`); only what it does with arrays of rows (prices, sums
over a step, measures of the load) is done here for [scenarios] at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.cost import PriceContext
from moetrace.errors import MoetraceError
from moetrace.replay import memory
from moetrace.replay.anchor import TOO_LONG
from moetrace.replay.economics import economics
from moetrace.replay.grid.load import Drafted, drafting_s, first_and_rest, measures, spread, weights_of
from moetrace.replay.grid.shape import Case, Drafts, Shape
from moetrace.replay.grid.steps import Steps
from moetrace.replay.grid.times import Pricing
from moetrace.replay.measures import context_of, outrun, prompt_steps
from moetrace.replay.outcome import routing_said
from moetrace.replay.speculate import beside, beside_each_other

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MEASURED = ("ttft", "tpot", "itl", "e2e", "throughput", "output_throughput", "user_speed")
ECONOMICS = ("tokens_per_joule", "cost_per_million_tokens")


@dataclass(slots=True)
class Answers:
    """Figures by scenario. `metrics` [measure][expected, low, high]; seconds by op family, nan where a case has none of it;
    `routing`, `beyond` and `problem` are texts among `words`."""

    metrics: dict[str, FloatArray]
    economics: dict[str, FloatArray]
    decode_s: dict[str, FloatArray]
    prefill_s: dict[str, FloatArray]
    needed_bytes: FloatArray
    largest_batch: FloatArray
    wafers: FloatArray
    fits: IntArray
    in_context: IntArray  # 1: yes, 0: no, -1: not known; as `fits` and `queued`
    queued: IntArray
    gpus: IntArray
    routing: IntArray  # places in `words`, as the next two
    beyond: IntArray
    problem: IntArray
    words: list[str]

    @classmethod
    def empty(cls, size: int) -> Answers:
        """Answers to be filled in: nothing is known yet."""
        unknown, none = np.full(size, np.nan), np.zeros(size, dtype=np.int64)
        metrics = {name: np.full((3, size), np.nan) for name in MEASURED}
        money = {name: unknown.copy() for name in ECONOMICS}
        return cls(
            metrics, money, {}, {}, unknown, unknown.copy(), unknown.copy(), np.full(size, -1),
            np.full(size, -1), np.full(size, -1), none, none.copy(), none.copy(), none.copy(), [""],
        )  # fmt: skip

    def word(self, text: str) -> int:
        """The place of a text among the words, 0 for the empty one."""
        if text not in self.words:
            self.words.append(text)
        return self.words.index(text)

    def families(self, name: str) -> tuple[FloatArray, FloatArray]:
        """(decode, prefill) seconds of a family, to be filled in."""
        for by_family in (self.decode_s, self.prefill_s):
            if name not in by_family:
                by_family[name] = np.full(self.fits.size, np.nan)
        return self.decode_s[name], self.prefill_s[name]

    def refuse(self, which: IntArray, why: str) -> None:
        """Takes back what is said of scenarios that cannot be."""
        for by_name in (self.metrics, self.economics, self.decode_s, self.prefill_s):
            for values in by_name.values():
                values[..., which] = np.nan
        for values in (self.needed_bytes, self.largest_batch, self.wafers):
            values[which] = np.nan
        for flags, unknown in ((self.fits, -1), (self.in_context, -1), (self.queued, -1), (self.gpus, 0)):
            flags[which] = unknown
        self.routing[which] = self.beyond[which] = 0
        self.problem[which] = self.word(why)


class Together:
    """Cases gathered first and answered together, so that their ops are priced at once."""

    def __init__(self, out: Answers) -> None:
        self.out, self.waiting = out, list[_Waiting]()
        self.pricing: dict[Any, Pricing] = {}

    def add(self, case: Case, drafts: Drafts, start: int, price_per_hour: float | None = None) -> None:
        """A case on the scenarios of `drafts`, whose answers begin at `start`."""
        for made in drafts.of(case):
            if not isinstance(made, Shape):
                self.out.problem[start + made[0]] = self.out.word(made[1])
                continue
            try:
                self.waiting.append(_Waiting(made, self._pricing, start + made.some, price_per_hour))
            except MoetraceError as error:
                self.out.problem[start + made.some] = self.out.word(str(error))

    def _pricing(self, law: str, context: PriceContext) -> Pricing:
        """Ops of all GPUs are gathered together; a wafer's times follow from the model beside."""
        key = context if law == "wafer" else "gpu"
        return self.pricing.setdefault(key, Pricing())

    def settle(self) -> None:
        """Fills in the answers of all cases."""
        for waiting in self.waiting:
            waiting.fill(self.out)


class _Waiting:
    """A shape whose ops are gathered to be priced."""

    def __init__(self, shape: Shape, pricing: Any, at: IntArray, price_per_hour: float | None) -> None:
        self.shape, self.at, self.price_per_hour = shape, at, price_per_hour
        self.beside: Steps | None = None
        drafter: memory.Beside | None = None
        if shape.drafting is not None and shape.drafting.shape is not None:
            own = shape.drafting.shape
            drafter, other = beside_each_other(shape.draft, own.draft, shape.drafting.tokens)
            self.beside = Steps(own, pricing, other)
        self.steps = Steps(shape, pricing, drafter)

    def fill(self, out: Answers) -> None:
        """Writes the scenarios' figures into the answers."""
        shape, space = self.shape, self.shape.space
        steps = shape.draft.steps
        weights = weights_of(steps, space)
        self.steps.price()
        by_step, ahead_s = self.steps.seconds, self.steps.ahead_s[0]
        first, rest = first_and_rest(steps, by_step, weights, shape.load, space, self._drafting(), ahead_s)
        for name, values in measures(first, rest, shape.load, space).items():
            out.metrics[name][:, self.at] = values
        self._memory(out)
        self._economics(out)
        out.in_context[self.at] = self._in_context()
        out.queued[self.at] = self._queued()
        out.routing[self.at] = out.word(routing_said(shape.draft.ops, shape.draft) or "")
        texts, which = self._beyond()
        out.beyond[self.at] = np.array([out.word(text) for text in texts], dtype=np.int64)[which]
        out.gpus[self.at] = shape.draft.gpus
        spent = self.steps.spent(weights)
        if self.beside is not None and shape.drafting is not None and shape.drafting.shape is not None:
            own = self.beside.spent(weights_of(shape.drafting.shape.draft.steps, space))
            none = np.zeros(space.size), np.zeros(space.size)
            for family, (decode, prefill) in own.items():
                verified = spent.get(family, none)
                spent[family] = verified[0] + shape.drafting.tokens * decode, verified[1] + prefill
        for family, seconds in spent.items():
            for column, values in zip(out.families(family), seconds, strict=True):
                column[self.at] = values
        too_long = self.steps.too_long if self.beside is None else self.steps.too_long | self.beside.too_long
        if too_long.any():
            out.refuse(self.at[too_long], TOO_LONG)

    def _drafting(self) -> Drafted | None:
        """What a step yields and what drafting takes."""
        drafting, space = self.shape.drafting, self.shape.space
        if drafting is None:
            return None
        none = np.zeros((3, space.size))
        if self.beside is None or drafting.shape is None:
            return Drafted(np.full(space.size, float(drafting.said or 1.0)), 0, (none, none, none, none))
        self.beside.price()
        load, steps = drafting.shape.load, drafting.shape.draft.steps
        seconds = drafting_s(steps, self.beside.seconds, weights_of(steps, space), load, space)
        return Drafted(np.full(space.size, drafting.yielded), drafting.tokens, seconds)

    def _beyond(self) -> tuple[list[str], IntArray]:
        """(texts of what lies beyond the fit, a drafting model's too; which of them holds for each scenario)."""
        texts, which = self.steps.beyond()
        if self.beside is None:
            return texts, which
        others, other = self.beside.beyond()
        return [beside(one, two) for one in texts for two in others], which * len(others) + other

    def _in_context(self) -> IntArray:
        """Whether the model, and one that drafts, is made for sequences as long as each scenario's: 1, 0, or -1 for unknown."""
        drafting = self.shape.drafting.shape if self.shape.drafting is not None else None
        known = np.ones(self.shape.space.size, dtype=np.int64)
        for shape in (self.shape, *((drafting,) if drafting is not None else ())):
            limit = shape.draft.model.max_context if shape.draft.model else 0
            long = np.maximum.reduce([spread(context_of(step), shape.space) for step in shape.draft.steps])
            own = np.where(long <= limit, 1, 0) if limit else np.full_like(known, -1)
            known = np.where((known == 0) | (own == 0), 0, np.minimum(known, own))
        return known

    def _queued(self) -> IntArray:
        """Whether a steady load's prompts are more than its steps work through, of each scenario: 1 or 0."""
        load, space = self.shape.load, self.shape.space
        if not load.served or load.apart:
            return np.zeros(space.size, dtype=np.int64)
        found = outrun(spread(prompt_steps(load), space), spread(load.steps, space))
        return np.asarray(found, dtype=np.int64)

    def _memory(self, out: Answers) -> None:
        need, space, at = self.steps.need, self.shape.space, self.at
        out.needed_bytes[at] = spread(need.needed_bytes, space)
        out.largest_batch[at] = spread(need.largest_batch, space)
        known = spread(need.fits, space)
        out.fits[at] = np.where(np.isnan(known), -1, known)
        out.wafers[at] = spread(need.wafers, space)

    def _economics(self, out: Answers) -> None:
        hw, at = self.shape.draft.hw, self.at
        rate = out.metrics["output_throughput"][0, at]
        devices = (
            np.nan_to_num(out.wafers[at], nan=1.0)
            if hw.device_class == "wafer"
            else np.full(at.size, hw.gpus)
        )
        one = economics(replace(hw, gpus=1), 1.0, 1, self.price_per_hour)
        for name, per_device in (
            ("tokens_per_joule", rate / devices),
            ("cost_per_million_tokens", devices / rate),
        ):
            if one[name] is not None:
                out.economics[name][at] = one[name] * per_device
