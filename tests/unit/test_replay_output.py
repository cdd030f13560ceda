"""Predicted runs are written all or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetrace.cli.replay import save_predictions
from moetrace.errors import OutputError
from moetrace.replay import Prediction, replay, scenarios
from moetrace.run import Run
from tests.unit.replay_runs import H100, decode_run


@pytest.fixture(scope="module")
def predictions() -> list[Prediction]:
    run = decode_run()
    return [replay(run, hw, scenario) for hw, scenario in scenarios(["n_a=8,4"], [H100], run)]


def test_one_row_that_cannot_be_written_leaves_none(
    predictions: list[Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row is written well; the disk is full at the second."""
    out, save = tmp_path / "out", Run.save

    def fails(self: Run, path: Path, force: bool = False) -> Run:
        if "n_a=4" in path.name:
            raise OutputError(f"cannot write {path}: No space left on device")
        return save(self, path, force)

    monkeypatch.setattr(Run, "save", fails)
    with pytest.raises(OutputError) as error:
        save_predictions(predictions, out, False)
    assert str(error.value) == f"cannot write {out / 'h100-sxm.n_a=4'}: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_rows_are_replaced_together(predictions: list[Prediction], tmp_path: Path) -> None:
    paths = save_predictions(predictions, tmp_path / "out", False)
    with pytest.raises(OutputError, match="--force"):
        save_predictions(predictions[:1], tmp_path / "out", False)
    assert save_predictions(predictions, tmp_path / "out", True) == paths
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["h100-sxm.n_a=4", "h100-sxm.n_a=8"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_two_rows_of_one_name_are_refused(predictions: list[Prediction], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="two rows"):
        save_predictions([*predictions, predictions[0]], tmp_path / "out", True)
    assert list(tmp_path.iterdir()) == []
