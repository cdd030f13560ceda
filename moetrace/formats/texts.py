"""Texts by code: names of kernels, operators and ranges. A few thousand in any usual trace, which are all held in memory.

Where a trace has more than can be (ranges that are numbered, kernels that are compiled anew), all go to a temporary file in
pages, and of those that are new only the latest are remembered: then a text may have several codes, a code never several texts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from moetrace.formats.piles import Spill

IntArray = npt.NDArray[np.int64]

_PAGE = 256  # texts that are written and read together
_CACHED = 32  # pages that are held once they were read
# Characters of texts of any trace that are remembered throughout, and of later ones for a while.
_HELD = 8 << 20
_MANY = 1 << 15  # and their number


class Texts(Sequence[str]):
    """Texts in the order of their codes; with a `spill` those that are more than memory should hold lie in a file."""

    def __init__(self, spill: Spill | None = None, texts: Iterable[str] = ()) -> None:
        self._spill = spill
        self._tail: list[str] = []  # those that are in no page yet
        self._file: IO[bytes] | None = None
        self._pages: list[int] = []  # where each page begins in the file, and the last one ends
        self._cache: dict[int, list[str]] = {}
        self._weight = self._cached = self._full = 0  # characters of all, bytes of held pages, texts in pages
        for text in texts:
            self.append(text)

    def append(self, text: str) -> int:
        """Adds a text; its code."""
        # A lone half of a surrogate pair, which JSON can spell, is not text that could be written out again.
        self._tail.append(text if text.isascii() else text.encode("utf-8", "replace").decode())
        self._weight += len(text)
        if self._spill is not None and (self._weight > _HELD or self._file is not None):
            self._turn()
        return len(self) - 1

    @property
    def spilled(self) -> bool:
        """Whether they outgrew memory."""
        return self._file is not None

    def _turn(self) -> None:
        """Writes the pages that are full."""
        if self._file is None and self._spill is not None:
            self._file, self._pages = self._spill.file(), [0]
        while len(self._tail) >= _PAGE:
            texts, self._tail = self._tail[:_PAGE], self._tail[_PAGE:]
            self._pages.append(self._write(texts))
            self._full += _PAGE

    def _write(self, texts: list[str]) -> int:
        """Writes a page at the file's end; where it ends."""
        if self._file is None or self._spill is None:
            return 0
        packed = [text.encode() for text in texts]
        sizes = np.array([len(text) for text in packed], dtype=np.uint32).tobytes()
        return self._spill.write(self._file, self._pages[-1], [sizes, *packed])

    def _page(self, page: int) -> list[str]:
        found = self._cache.pop(page, None)
        if found is None:
            found = self._read(page)
            self._cached += self._pages[page + 1] - self._pages[page]
            while self._cache and (len(self._cache) >= _CACHED or self._cached > _HELD):
                oldest = next(iter(self._cache))
                del self._cache[oldest]
                self._cached -= self._pages[oldest + 1] - self._pages[oldest]
        self._cache[page] = found  # the latest stands last
        return found

    def _read(self, page: int) -> list[str]:
        if self._file is None:
            return []
        low, high = self._pages[page], self._pages[page + 1]
        self._file.seek(low)
        data = self._file.read(high - low)
        ends = np.cumsum(np.frombuffer(data, dtype=np.uint32, count=_PAGE)) + 4 * _PAGE
        return [
            data[a:b].decode() for a, b in zip([4 * _PAGE, *ends[:-1].tolist()], ends.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return self._full + len(self._tail)

    def __iter__(self) -> Iterator[str]:
        for page in range(len(self._pages) - 1):
            yield from self._read(page)
        yield from self._tail

    @overload
    def __getitem__(self, code: int) -> str: ...

    @overload
    def __getitem__(self, code: slice) -> list[str]: ...

    def __getitem__(self, code: int | slice) -> str | list[str]:
        if isinstance(code, slice):
            return [self[i] for i in range(*code.indices(len(self)))]
        size = self._full + len(self._tail)
        if not -size <= code < size:
            raise IndexError(f"no text has the code {code}")
        at = int(code) % size
        return self._page(at // _PAGE)[at % _PAGE] if at < self._full else self._tail[at - self._full]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Interned(dict[str, int]):
    """Codes for texts as they come: the same one for the same text, as long as it is remembered. Ask with []."""

    def __init__(self, spill: Spill | None = None) -> None:
        super().__init__()
        self.all = Texts(spill)
        self._bounded = spill is not None
        self.held = self.weight = 0  # characters of the texts in memory, and of all
        self._late: dict[str, int] = {}
        self._late_weight = 0

    def __missing__(self, text: str) -> int:
        code = self._late.get(text)
        if code is not None:
            return code
        code, size = self.all.append(text), len(text)
        self.weight += size
        self.held = 0 if self.all.spilled else self.weight
        if not self._bounded or (self.weight <= _HELD and code < _MANY):
            self[text] = code
            return code
        self._late_weight += size
        if self._late_weight > _HELD or len(self._late) >= _MANY:
            self._late.clear()
            self._late_weight = size
        self._late[text] = code
        return code


class Told:
    """What a function says of texts, by their codes: whole numbers, each found once for as long as it is remembered."""

    def __init__(self, texts: Sequence[str], tell: Callable[[str], int], absent: int = -1) -> None:
        """`absent` is what is said of the code -1."""
        self._texts, self._tell = texts, tell
        self._known: dict[int, int] = {-1: absent}
        self._absent = absent

    def of(self, codes: IntArray) -> IntArray:
        """What is said of each code."""
        used, inverse = np.unique(codes, return_inverse=True)
        if len(self._known) > _MANY:
            self._known = {-1: self._absent}
        known = self._known
        found = []
        for code in used.tolist():
            said = known.get(code)
            if said is None:
                said = known[code] = self._tell(self._texts[code])
            found.append(said)
        return np.array(found, dtype=np.int64)[inverse.reshape(-1)]


def matching(texts: Sequence[str], codes: IntArray, test: Callable[[str], object]) -> npt.NDArray[np.bool_]:
    """Which of the codes stand for a text that passes the test; -1 does not."""
    return Told(texts, lambda text: int(bool(test(text))), 0).of(codes) > 0


def alike(texts: Texts, codes: IntArray) -> IntArray:
    """The codes with one for each text among them: of texts that outgrew memory one may have several."""
    if not texts.spilled:
        return codes
    used, inverse = np.unique(codes, return_inverse=True)
    first: dict[str, int] = {}
    told = [first.setdefault(texts[code], code) if code >= 0 else code for code in used.tolist()]
    return np.array(told, dtype=np.int64)[inverse.reshape(-1)]


def codes_of(values: Iterable[Hashable], wanted: Iterable[Hashable]) -> dict[Any, int]:
    """The (first) code of each text, or other value, that is wanted and there is."""
    asked, found = set(wanted), dict[Any, int]()
    for code, value in enumerate(values):
        if value in asked:
            found.setdefault(value, code)
    return found
