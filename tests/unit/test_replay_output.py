"""Predicted runs are written all or none, and say the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moetrace.cli.replay import save_predictions
from moetrace.errors import OutputError
from moetrace.replay import Prediction, replay, scenarios
from moetrace.run import Run
from tests.conftest import REPO, SHIPPED
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


def test_what_is_said_of_ops_of_equal_size_is_the_same_in_every_process() -> None:
    """The largest of several was the one that a hash of texts put first."""
    code = (
        "from moetrace.parse import parse; from moetrace.replay import Scenario, replay\n"
        f"run = parse({os.fspath(SHIPPED)!r})\n"
        "print(replay(run, 'cpu', Scenario.of('batch=4')).summary['assumptions'])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2, 3, 4)
    }
    assert len(said) == 1 and "the largest is" in said.pop()
