"""Coefficients of one op family as a frozen value: how sure they are, and what of them carries over to another chip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from moetrace.hardware.forms import schema
from moetrace.hardware.pace import Pace

FOREIGN = "(its kernels do not carry over)"  # in the provenance of coefficients that another chip's kernels did not follow


def combined_error(one: float, other: float) -> float:
    """Two errors that have nothing to do with each other as one: the root of the sum of their logarithms' squares.

    Between H100 and A100 one figure for all engines' transfer holds more evenly so than by one error times the other
    (docs/accuracy.md).
    """
    return math.expm1(math.hypot(math.log1p(one), math.log1p(other)))


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit says of itself: the rows and the whole shapes that it rests on, and how far off those were that it did not
    see, mean and median (shares, None where only the text says it)."""

    rows: int
    shapes: int
    mean: float | None
    median: float | None
    held_out: str


@dataclass(frozen=True, slots=True)
class Family:
    """Coefficients of one op family on one machine: `form` names the formula (machines/forms), `value` has its parameters.

    `error` is such that 80 % of held-out measurements lie within ``/ (1 + error)`` and ``x (1 + error)``; `error_decades` says
    the same by size, for ops of 1-9 tokens, 10-99 and so on (the last holds beyond), and is empty where it was not found
    apart; `error_terms` is by decade that of an op whose time is all one term of the form, what is between them geometric, by
    each term's share; by `error_rises` their logarithms grow over each decade, half before and half beyond its middle;
    `error_apart` is by decade that of exchanges of low latency or between nodes and of eager all-reduces. Each of these was
    found where it was measured: elsewhere `carried`, what carrying over errs by, is added to it, as to `error` already
    (`combined_error`). `seen` has the least and the most of each size that the fit saw, empty where that is not said. `source`
    says where all this is from, `fit` what it rests on (None: on none). `named` are the parameters that the profile itself
    gives; `value` has the defaults of the others too.
    """

    form: str
    value: Mapping[str, float]
    error: float
    provenance: str
    source: str
    error_decades: tuple[float, ...] = ()
    error_terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    error_rises: tuple[float, ...] = ()
    error_apart: tuple[float, ...] = ()
    carried: float = 0.0
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    fit: Fitted | None = None

    def __getitem__(self, name: str) -> float:
        return self.value[name]

    @property
    def transferred(self) -> bool:
        """Whether the coefficients are another machine's."""
        return self.provenance.startswith("transferred")

    def widened(self, by: float) -> Family:
        """The same coefficients where they err by a further `by`."""
        return replace(self, error=combined_error(self.error, by), carried=combined_error(self.carried, by))

    def on_another(
        self, name: str, paces: tuple[Pace, Pace], widen: Widen, same_processors: bool = False
    ) -> Family:
        """The same on another chip than `name`, whose they are; `paces` of that one and of this (`at_pace`).

        The transfer's error is added (`combined_error`); what did not carry over once does not for the next chip either.
        """
        foreign = widen.foreign or FOREIGN in self.provenance
        label = f"transferred from {name}"
        return replace(
            self.at_pace(*paces, same_processors).widened(widen.by),
            provenance=f"{label} {FOREIGN}" if foreign else label,
        )

    def at_pace(self, one: Pace, other: Pace, same_processors: bool = False) -> Family:
        """The same on a chip of another pace: launches, loops and latencies take as many cycles, whatever the memory's rate,
        and arithmetic of one processor goes by its peak (`Parameter.pace`). A kernel whose arithmetic waits for something else
        than matrix units (`by_cycles`) does as much in a cycle, so that it reaches another share of another peak, at most all.
        On the `same_processors` with other matrix units the same kernels run, and what keeps MoE modules' from a peak takes as
        many cycles: (1 / share - 1) goes with the clock, the peak's part with the peak. Other chips have kernels of their own
        (between H100 and A100 this was no better), other forms a term for what a tile's arithmetic waits for.

        Scored between H100 and A100, in both directions, it is better than seconds that stay (docs/accuracy.md). Unchanged
        where either clock is not known.
        """
        times, parameters = one.times(other), schema(self.form).parameters
        if times is None:
            return self
        value = {
            k: v * times[parameters[k].pace] if parameters[k].is_fixed_time else v
            for k, v in self.value.items()
        }
        if value.get("by_cycles"):
            share = value["eta_flops"] * times["arithmetic"] / times["clock"]
            value["eta_flops"] = min(parameters["eta_flops"].high, share)
        elif same_processors and self.form == "experts":
            slower = times["arithmetic"] / times["clock"]
            for name in (n for n in ("eta_flops", "tuned_flops") if value[n]):
                value[name] = 1.0 / (1.0 + (1.0 / value[name] - 1.0) / slower)
        return replace(self, value=MappingProxyType(value))

    def with_fixed_times(self, factor: float) -> Family:
        """The same with every time that no faster resource saves multiplied by `factor`."""
        parameters = schema(self.form).parameters
        value = {k: v * factor if parameters[k].is_fixed_time else v for k, v in self.value.items()}
        return replace(self, value=MappingProxyType(value))


@dataclass(frozen=True, slots=True)
class Widen:
    """What coefficients err by on another chip beside their own error; `foreign`: other kernels run there."""

    by: float
    foreign: bool = False
