"""What every form of the gpu law is: a function from coefficients, works and a machine to seconds, column by column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from moetrace.hardware import ANY_ENGINE, Hardware, Schema
from moetrace.op import FloatArray, Works

Cache = Literal["cold", "warm"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the ops run. `peak`: datasheet FLOP/s of each op's arithmetic, [ops], inf where it does none.

    `cache` "warm": an op's bytes are as close as repeats of it leave them, what does not exceed the last-level cache stays
    there (micro-benchmarks); "cold": they come from memory, since a step's other layers passed between (serving).
    """

    hw: Hardware
    peak: FloatArray
    cache: Cache = "cold"
    engine: str = ANY_ENGINE  # whose kernels run, for what a profile says of one alone


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds by what they are spent on, [ops]; parts overlap, so `expected_s` is no more than their sum.

    Twice the bandwidths and peaks halve `memory_s`, `compute_s` and `network_s` and leave `fixed_s`. None: nothing is sent.
    `terms` are the same seconds by the term of the formula, with the names that the form's Schema gives them. `further`: the
    error, beside the coefficients' own, of ops that run another way than those that these were fitted on; None: no op does.
    """

    compute_s: FloatArray
    memory_s: FloatArray
    fixed_s: FloatArray
    expected_s: FloatArray
    network_s: FloatArray | None = None
    terms: Mapping[str, FloatArray] = field(default_factory=dict)
    further: FloatArray | None = None

    def take(self, rows: npt.NDArray[np.int64]) -> Parts:
        """The parts of these ops."""
        return Parts(
            self.compute_s[rows],
            self.memory_s[rows],
            self.fixed_s[rows],
            self.expected_s[rows],
            None if self.network_s is None else self.network_s[rows],
            {name: term[rows] for name, term in self.terms.items()},
            None if self.further is None else self.further[rows],
        )


@dataclass(frozen=True, slots=True)
class Form:
    """One shape of formula: its parameters, its seconds, and the dims that it reads beside those of an op's work."""

    schema: Schema
    seconds: Callable[[Mapping[str, float], Works, Setting], Parts]
    reads: tuple[str, ...] = ()
    network: bool = False  # of collectives: what crosses links, not memory


def smoothmax(power: float, *times: FloatArray) -> FloatArray:
    """p-norm of times: their sum at p = 1, near their maximum at p = 8; never below the largest, nor above the sum."""
    high = np.maximum.reduce(times)
    total = np.zeros_like(high)
    for each in times:
        total += np.divide(each, high, out=np.zeros_like(high), where=high > 0) ** power
    # Rounding must not bring the norm below its largest part.
    return np.asarray(high * np.maximum(1.0, total ** (1.0 / power)), dtype=np.float64)
