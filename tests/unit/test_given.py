from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from moetrace.errors import RunError
from moetrace.given import columns_of, misfit, several


def test_a_value_is_named_by_its_type() -> None:
    for given, said in ((None, "None"), (int, "the class int"), (3, "an int"), ({}, "a dict")):
        assert misfit(given, "Run", "load one") == f"{said} is not a Run: load one"


@pytest.mark.parametrize(
    ("given", "found"), [("a", ["a"]), ((), []), (["a", "b"], ["a", "b"]), (iter("ab"), ["a", "b"])]
)
def test_one_alone_is_a_list_of_one(given: Any, found: list[str]) -> None:
    assert several(given, str, "name", "write one", RunError) == found


@pytest.mark.parametrize("given", [None, 3, b"ab", {"a": 1}, ["a", 3], pd.DataFrame({"a": []})])
def test_other_types_are_refused_alone_and_among_others(given: Any) -> None:
    with pytest.raises(RunError, match=r"^(None|an? \w+) is not a name: write one$"):
        several(given, str, "name", "write one", RunError)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, None),
        ([], None),
        ("op", ["op"]),
        (("op", "kind"), ["op", "kind"]),
        ((name for name in ("op", "kind")), ["op", "kind"]),
    ],
)
def test_one_column_is_a_list_of_one_and_none_is_all(given: Any, found: list[str] | None) -> None:
    assert columns_of(given, ["op", "kind"], RunError) == found
    with pytest.raises(RunError, match="unknown column 'kinds': did you mean 'kind'"):
        columns_of("kinds", ["op", "kind"], RunError)


@pytest.mark.parametrize("given", [3, slice(None), ["op", 3]])
def test_what_is_no_column_is_an_error_in_words(given: Any) -> None:
    with pytest.raises(RunError, match=r"^an? \w+ is not a column: expected its name$"):
        columns_of(given, ["op"], RunError)
