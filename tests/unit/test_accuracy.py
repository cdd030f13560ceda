from __future__ import annotations

from moetrace.model import load_model
from moetrace.model.accuracy import KNOWN, known_accuracy


def test_published_points_are_of_models_of_the_catalogue_and_within_their_n_a() -> None:
    for point in KNOWN:
        model = load_model(point.model)
        assert 1 <= point.n_a <= model.topk
        assert 0 < point.percent <= 100 and "arXiv" in point.source


def test_points_come_with_the_native_n_a_first_and_unknown_models_have_none() -> None:
    for name in {point.model for point in KNOWN}:
        points = known_accuracy(name)
        assert points[0].n_a == load_model(name).topk
        assert [p.n_a for p in points] == sorted((p.n_a for p in points), reverse=True)
    assert known_accuracy("olmoe-1b-7b") == () == known_accuracy(None)
