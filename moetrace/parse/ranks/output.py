"""Where the RUNs of ranks go: a folder, or a URL that fsspec writes. What has no ``ranks.json`` is not whole: it comes last."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pyarrow as pa

from moetrace.errors import OutputError
from moetrace.files import (
    RANKS_SUMMARY,
    RUN_FILES,
    check_directory,
    is_run,
    table_facts,
    url_of,
    write_parquet,
    write_whole,
)
from moetrace.formats.remote import file_system, reached
from moetrace.ranks import FOLDER, TABLE
from moetrace.run import Run
from moetrace.scratch import held_directory, remove

_TABLE_FACTS = table_facts("ranks", 1)
_STAGE = ".moetrace-ranks-"
_MADE = ("attribution.parquet", "timeline.json")  # what other verbs put beside
Facts = Mapping[str, Any]


def output_at(place: Path) -> Folder | Bucket:
    """The output at a path, or at the URL that it spells."""
    url = url_of(place)
    return Bucket(url) if url is not None else Folder(place)


def write_run(run: Run, target: str) -> None:
    """Writes a RUN to a folder or a URL; done again, after a worker was lost, it replaces what there is."""
    url = url_of(target)
    if url is None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        run.save(target, force=True)
        return
    fs, path = file_system(url)
    with tempfile.TemporaryDirectory(prefix="moetrace-") as scratch:
        run.save(Path(scratch) / "run")
        names = sorted(p.name for p in (Path(scratch) / "run").iterdir())
        names.sort(key=lambda name: name == "run.json")  # last: without it a folder is not a RUN

        def put() -> None:
            fs.makedirs(path, exist_ok=True)
            for name in (*RUN_FILES, *_MADE):  # run.json first, without which a folder is not a RUN
                if fs.exists(f"{path}/{name}"):
                    fs.rm_file(f"{path}/{name}")
            for name in names:
                fs.put_file(str(Path(scratch) / "run" / name), f"{path}/{name}")

        _reached(url, put)


def check_url(url: str, force: bool) -> None:
    """Refuses a URL for a RUN at which something is, unless it is a RUN and may be replaced."""
    there = Bucket(url).names()
    if there and not force:
        raise OutputError(f"{url} exists: give another name or --force to replace it")
    for name in there:
        if name not in (*RUN_FILES, *_MADE):
            raise OutputError(f"{url}/{name} is not a RUN's: give another name")


class Folder:
    """A folder of this machine, which workers elsewhere must see under the same name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self, force: bool) -> None:
        """Refuses an output that exists, unless it is one of ours and may be replaced, rank by rank."""
        output = self.root
        if (output / "run.json").is_file():
            raise OutputError(f"{output} is a RUN of one rank: give another name for a run of many")
        if not output.exists():
            return
        if not output.is_dir() or output.is_symlink():
            raise OutputError(f"{output} is not a directory: it is not replaced, give another name")
        there = [p for p in output.iterdir() if not p.name.startswith(_STAGE)]
        if there and not force:
            raise OutputError(f"{output} exists: give another name or --force to replace it")
        for path in there:
            if path.is_file() and path.name in (TABLE, RANKS_SUMMARY, *_MADE):
                continue
            if not (path.name.startswith("rank-") and is_run(path)):
                raise OutputError(f"{path} is not moetrace's: give another name")
            check_directory(path, force)

    def stage(self) -> str:
        """A new place for the RUNs while they are made."""
        self._fresh = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        self._stage = held_directory(self.root, _STAGE)
        return str(self._stage)

    def check_made(self, target: str) -> None:
        """Raises OutputError where what a worker wrote is not seen here."""
        if not is_run(Path(target)):
            raise OutputError(
                f"a worker wrote {target}, which is not seen here: give an output in a folder that all share, or a URL"
            )

    def take(self, made: Mapping[int, str]) -> None:
        """Puts the RUNs in place by rank; those of before go."""
        (self.root / RANKS_SUMMARY).unlink(missing_ok=True)
        for old in (*self.root.glob(FOLDER.format("*")), *(self.root / name for name in _MADE)):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        for rank, target in sorted(made.items()):
            Path(target).rename(self.root / FOLDER.format(rank))

    def edit_meta(self, rank: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Changes a rank's run.json."""
        path = self.root / FOLDER.format(rank) / "run.json"
        text = _json(change(orjson.loads(path.read_bytes())))
        write_whole(path, lambda part: part.write_bytes(text))

    def finish(self, table: pa.Table, facts: Facts) -> None:
        """Writes the table of ranks and, last, their summary."""
        write_parquet(table, self.root / TABLE, _TABLE_FACTS)
        write_whole(self.root / RANKS_SUMMARY, lambda path: path.write_bytes(_json(facts)))

    def clean(self) -> None:
        """Removes what is left of the making, the folder itself if it is new and nothing came of it."""
        remove(self._stage)
        if self._fresh and not any(self.root.iterdir()):
            self.root.rmdir()


class Bucket:
    """A URL, such as ``s3://bucket/run``, which workers reach by themselves: no folder is shared."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._path = file_system(self.url)
        self._path = str(self._path).rstrip("/")
        self._stage = f"{_STAGE}{uuid4().hex[:12]}"

    def check(self, force: bool) -> None:
        """Refuses what exists without `force`, and with it whatever is not of ranks."""
        there = self.names()
        if there and not force:
            raise OutputError(f"{self.url} exists: give another name or --force to replace it")
        for name in there:
            ours = name in (TABLE, RANKS_SUMMARY) or name.startswith((_STAGE, "rank-"))
            if not ours:
                raise OutputError(f"{self.url}/{name} is not moetrace's: give another name")

    def stage(self) -> str:
        """A new place for the RUNs while they are made."""
        return f"{self.url}/{self._stage}"

    def check_made(self, target: str) -> None:
        """Raises OutputError where what a worker wrote is not seen here."""
        fs, path = file_system(target)
        if not _reached(target, lambda: fs.exists(f"{path}/run.json")):
            raise OutputError(
                f"a worker wrote {target}, which is not seen here: give a URL that all reach alike"
            )

    def take(self, made: Mapping[int, str]) -> None:
        """Puts the RUNs in place by rank; those of before go."""

        def move() -> None:
            for name in self._names():
                if name == RANKS_SUMMARY or name.startswith("rank-"):
                    self._fs.rm(f"{self._path}/{name}", recursive=True)
            for rank, target in sorted(made.items()):
                source = f"{self._path}/{self._stage}/{target.rsplit('/', 1)[-1]}"
                goal = f"{self._path}/{FOLDER.format(rank)}"
                self._fs.makedirs(goal, exist_ok=True)
                names = sorted(_base(n) for n in self._fs.ls(source, detail=False))
                for name in sorted(names, key=lambda n: n == "run.json"):
                    self._fs.mv(f"{source}/{name}", f"{goal}/{name}")

        _reached(self.url, move)

    def edit_meta(self, rank: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Changes a rank's run.json."""
        path = f"{self._path}/{FOLDER.format(rank)}/run.json"
        _reached(
            self.url,
            lambda: self._fs.pipe_file(path, _json(change(orjson.loads(self._fs.cat_file(path))))),
        )

    def finish(self, table: pa.Table, facts: Facts) -> None:
        """Writes the table of ranks and, last, their summary."""
        with tempfile.TemporaryDirectory(prefix="moetrace-") as scratch:
            local = Path(scratch) / TABLE
            write_parquet(table, local, _TABLE_FACTS)
            _reached(self.url, lambda: self._fs.put_file(str(local), f"{self._path}/{TABLE}"))
        _reached(self.url, lambda: self._fs.pipe_file(f"{self._path}/{RANKS_SUMMARY}", _json(facts)))

    def clean(self) -> None:
        """Removes what is left of the making."""

        def remove() -> None:
            if self._fs.exists(f"{self._path}/{self._stage}"):
                self._fs.rm(f"{self._path}/{self._stage}", recursive=True)

        _reached(self.url, remove)

    def names(self) -> list[str]:
        """What lies at the URL."""
        return list(_reached(self.url, self._names))

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        if not self._fs.exists(self._path):
            return []
        if not self._fs.isdir(self._path):
            raise OutputError(f"{self.url} is a file: it is not replaced, give another name")
        return sorted(_base(name) for name in self._fs.ls(self._path, detail=False) if _base(name))


def _base(name: str) -> str:
    return str(name).rstrip("/").rsplit("/", 1)[-1]


def _json(facts: Facts) -> bytes:
    return orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def _reached(url: str, act: Callable[[], Any]) -> Any:
    """What `act` gives. Raises OutputError with one line where the URL cannot be written."""
    with reached(url, OutputError, "cannot write {}"):
        return act()
