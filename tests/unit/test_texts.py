"""Texts by code: in memory or in a file they say the same, and what is remembered of them is bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moetrace.formats import texts
from moetrace.formats.piles import Spill
from moetrace.formats.texts import Interned, Texts, Told, codes_of, matching

WORDS = st.lists(st.sampled_from(["a", "b", "gemm <float>", "µ", ""]) | st.text(max_size=4), max_size=60)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three texts, two of them held, and five texts remembered."""
    for name, size in (("_PAGE", 3), ("_CACHED", 2), ("_HELD", 40), ("_MANY", 5)):
        monkeypatch.setattr(texts, name, size)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS, asked=st.lists(st.integers(0, 59)))
def test_texts_in_a_file_are_those_in_memory(small: None, words: list[str], asked: list[int]) -> None:
    held, stored = Texts(), Texts(Spill())
    for word in words:
        assert held.append(word) == stored.append(word)
    assert stored.spilled == (sum(map(len, words)) > 40) and not held.spilled
    assert list(stored) == list(held) and stored == held and len(stored) == len(words)
    for code in asked:
        if code < len(words):
            assert stored[code] == held[code] == stored[code - len(words)]
    assert stored[2:9] == held[2:9]
    with pytest.raises(IndexError, match=f"no text has the code {len(words)}"):
        stored[len(words)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
def test_codes_of_texts_that_outgrow_memory_stand_for_the_text_that_was_asked(
    small: None, words: list[str]
) -> None:
    bounded, every = Interned(Spill()), Interned()
    codes = [bounded[word] for word in words]
    told = [word.encode("utf-8", "replace").decode() for word in words]
    assert [bounded.all[code] for code in codes] == told
    assert len({every[word] for word in words}) == len(set(words)) == len(every.all)
    assert len(bounded) <= 5 and len(bounded._late) <= 5
    assert bounded.held == (0 if bounded.all.spilled else bounded.weight)


def test_the_first_texts_keep_their_codes(small: None) -> None:
    names = Interned(Spill())
    first = [names[f"k{i}"] for i in range(4)]
    for i in range(100):
        names[f"numbered {i}"]
    assert [names[f"k{i}"] for i in range(4)] == first
    assert (
        names["numbered 99"] == 103 and names["numbered 3"] > 103
    )  # the latest is remembered, an old one is not


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    assert list(Texts(texts=["a\ud800"])) == ["a?"]


def test_what_is_said_of_texts_is_found_once_for_as_long_as_it_is_remembered(small: None) -> None:
    asked: list[str] = []

    def size(text: str) -> int:
        asked.append(text)
        return len(text)

    words = ["a", "bb", "ccc", "dddd", "e" * 5, "f" * 6]
    told = Told(words, size)
    assert told.of(np.array([1, -1, 1, 0])).tolist() == [2, -1, 2, 1] and asked == ["a", "bb"]
    assert told.of(np.array([0, 2, 3, 4, 5])).tolist() == [1, 3, 4, 5, 6] and len(asked) == 6
    assert told.of(np.array([0])).tolist() == [1] and len(asked) == 7  # seven were too many to keep
    assert told.of(np.zeros(0, dtype=np.int64)).tolist() == []
    assert matching(words, np.array([5, -1, 0, 5]), lambda text: len(text) > 2).tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert codes_of(["x", "y", "x", "z"], ["x", "z", "w"]) == {"x": 0, "z": 3}


def test_a_full_disk_is_one_line(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moetrace.errors import OutputError
    from moetrace.formats import piles

    monkeypatch.setattr(piles, "_MARGIN", 1 << 60)
    names = Interned(Spill(tmp_path))
    with pytest.raises(OutputError, match="MiB free: a trace of this size needs more"):
        for i in range(100):
            names[f"numbered {i}"]
