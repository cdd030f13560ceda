"""Directories replaced whole or not at all: what is refused, and what an interrupt leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moetrace import files
from moetrace.errors import OutputError
from moetrace.record import files as recording

Fill = Callable[[Path], None]


def holding(text: str) -> Fill:
    def fill(folder: Path) -> None:
        (folder / "run.json").write_text(text)

    return fill


def old_run(path: Path) -> Path:
    path.mkdir()
    (path / "run.json").write_text("old")
    return path


@pytest.fixture(params=["run", "recording"])
def write(request: pytest.FixtureRequest) -> Callable[[Path, bool], None]:
    """Both parts that write directories, each with its own files."""

    def a_run(root: Path, force: bool = True) -> None:
        files.replace_directory(root, holding("new"), force)

    def a_recording(root: Path, force: bool = True) -> None:
        recording.check_output(root, force)
        made = recording.staging(root)
        (made / "recording.json").write_text("new")
        recording.publish(made, root, force)

    return a_run if request.param == "run" else a_recording


def test_what_is_there_is_replaced_only_with_force(tmp_path: Path) -> None:
    root = old_run(tmp_path / "run")
    with pytest.raises(OutputError, match="--force"):
        files.replace_directory(root, holding("new"), False)
    files.replace_directory(root, holding("new"), True)
    assert (root / "run.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_current_directory_and_those_above_it_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for path in (Path("."), Path(""), here, Path(".."), here.parent, Path("/")):
        with pytest.raises(OutputError, match="current directory") as caught:
            write(path)
        assert "\n" not in str(caught.value)
    assert here.is_dir() and list(tmp_path.rglob("*")) == [tmp_path / "above", here]


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_symbolic_link_is_not_replaced(tmp_path: Path, write: Callable[[Path], None], target: str) -> None:
    there = old_run(tmp_path / "there")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match="symbolic link"):
        write(link)
    assert link.is_symlink() and (there / "run.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="not a directory"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_named_like_one_of_the_files_is_kept_with_what_is_in_it(tmp_path: Path) -> None:
    thesis = tmp_path / "run" / "run.json" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(OutputError, match=r"run\.json"):
        files.replace_directory(tmp_path / "run", holding("new"), True)
    assert thesis.read_text() == "years of work"


def test_what_a_killed_writer_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    root = old_run(tmp_path / "run")
    (root / ".ops.parquet.99.part").write_text("half")
    files.replace_directory(root, holding("new"), True)
    assert [p.name for p in root.iterdir()] == ["run.json"]
    (root / ".notes.txt.99.part").write_text("mine")
    with pytest.raises(OutputError, match="notes"):
        files.replace_directory(root, holding("newer"), True)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 2])
def test_the_old_one_survives_an_interrupt_at_either_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], at: int
) -> None:
    root, rename, calls = old_run(tmp_path / "run"), Path.rename, []

    def fails_once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == at:
            raise stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises((stop, OutputError)):
        files.replace_directory(root, holding("new"), True)
    assert (root / "run.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_old_one_that_cannot_be_removed_does_not_tear_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, remove = old_run(tmp_path / "run"), shutil.rmtree

    def half(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "denied")
        if Path(path).suffix != ".old":
            remove(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", half)
    files.replace_directory(root, holding("new"), True)
    assert (root / "run.json").read_text() == "new"


def test_a_failed_fill_leaves_nothing_beside(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "ops.parquet").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        files.replace_directory(tmp_path / "run", fill, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["t.csv", "t.JSON", "t.xlsx"])
def test_a_table_is_not_written_under_the_name_of_another_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"written as Parquet: give a name such as t\.parquet"):
        files.check_table_output(tmp_path / name, force=True)
    files.check_table_output(tmp_path / "t.parquet", force=False)
    files.check_table_output(tmp_path / "t", force=False)


def test_a_folder_stands_for_the_one_run_that_is_all_it_holds(tmp_path: Path) -> None:
    run = tmp_path / "out" / "h100-sxm.as.recorded"
    run.mkdir(parents=True)
    assert files.lone_run(run.parent) == run.parent
    (run / "run.json").touch()
    assert files.lone_run(run.parent) == files.lone_run(run) == run
    (run.parent / "other").mkdir()
    assert files.lone_run(run.parent) == run.parent
    assert files.lone_run(tmp_path / "none") == tmp_path / "none"
