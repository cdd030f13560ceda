"""How fast a chip's processors go, from its datasheet: what times that no faster memory or link saves become on another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """The highest clock of a chip's processors, and the dense bf16 FLOP/s of one; None where the datasheet does not say."""

    clock_hz: float | None = None
    processor_flops: float | None = None

    @classmethod
    def of(cls, clock_hz: float | None, peaks: Mapping[str, float], multiprocessors: float | None) -> Pace:
        """Of datasheet figures: `peaks` are dense FLOP/s by dtype; one processor is none that a datasheet counts."""
        known = "bf16" in peaks and multiprocessors is not None and multiprocessors > 1
        return cls(clock_hz, peaks["bf16"] / multiprocessors if known and multiprocessors else None)

    def times(self, other: Pace) -> Mapping[str, float] | None:
        """By what a time goes with (`Parameter.pace`), how many times as long it takes on `other`; None without clocks.

        ``clock``: as many cycles. ``arithmetic``: what a processor's matrix units take, by the peak of one; by the clock where
        that is not known. ``half``: half of each, which is what a block of attention is: 64 rows x 128 tokens x 128 wide are
        0.8 of its 1.4 us on H100, at 0.67 of the peak; loads and softmax take the rest.
        """
        if not self.clock_hz or not other.clock_hz:
            return None
        cycles = self.clock_hz / other.clock_hz
        units = (self.processor_flops, other.processor_flops)
        arithmetic = units[0] / units[1] if units[0] and units[1] else cycles
        return {"clock": cycles, "arithmetic": arithmetic, "half": (cycles + arithmetic) / 2}
