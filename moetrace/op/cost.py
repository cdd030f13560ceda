"""Cost: the seconds of an op on one machine; `Costs`: those of many ops, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from moetrace.op.columns import FloatArray


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that one op takes on one machine, split by what they are spent on.

    `expected_s` is the law's answer at the stated routing; it need not be the sum of the parts, which may overlap.
    `lower_bound_s` is what no correct measurement can beat. The 80 % interval is `expected_s` divided and multiplied by
    ``1 + error``. `provenance` says where the coefficients come from.
    """

    compute_s: float
    memory_s: float
    network_s: float
    fixed_s: float
    expected_s: float
    lower_bound_s: float
    error: float
    provenance: str

    @property
    def bound(self) -> str:
        """The largest part: ``compute``, ``memory``, ``network`` or ``fixed``."""
        parts = {
            "memory": self.memory_s,
            "compute": self.compute_s,
            "network": self.network_s,
            "fixed": self.fixed_s,
        }
        return max(parts, key=lambda name: parts[name])


PARTS = ("memory_s", "compute_s", "network_s", "fixed_s")
BOUNDS = tuple(part.removesuffix("_s") for part in PARTS)


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of many ops as columns (seconds; `error` relative); unknown works cost nan.

    `words[word]` is the provenance of an op.
    """

    compute_s: FloatArray
    memory_s: FloatArray
    network_s: FloatArray
    fixed_s: FloatArray
    expected_s: FloatArray
    lower_bound_s: FloatArray
    error: FloatArray
    words: tuple[str, ...]
    word: npt.NDArray[np.int64]

    def __getitem__(self, index: int) -> Cost:
        figures = {
            f.name: float(getattr(self, f.name)[index]) for f in fields(Cost) if f.name != "provenance"
        }
        return Cost(**figures, provenance=self.words[int(self.word[index])])

    def __len__(self) -> int:
        return len(self.word)

    def take(self, rows: npt.NDArray[np.int64]) -> Costs:
        """The costs of some rows, in the order given."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "words"}
        return Costs(**picked, words=self.words)

    @property
    def provenance(self) -> tuple[str, ...]:
        """Where each op's coefficients come from."""
        return tuple(self.words[i] for i in self.word.tolist())

    @property
    def bound(self) -> npt.NDArray[np.int64]:
        """Index into BOUNDS of the largest part of each op; -1 where the cost is unknown."""
        parts = np.vstack([getattr(self, part) for part in PARTS])
        known = ~np.isnan(self.expected_s)
        return np.where(known, np.argmax(np.nan_to_num(parts), axis=0), -1)
