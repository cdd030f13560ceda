"""Runs the examples of a page in a folder of their own, in the order of the page."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from tests.conftest import REPO
from tests.examples.inputs import names, provide
from tests.examples.pages import Block, blocks, commands, sessions

MAY_RUN = {"python", "cat", "ls", "head", "tail", "grep", "sed", "echo"}
# A command whose output is not shown is run at small sizes.
SMALL = {"--input-len": "64", "--output-len": "8"}
SMALL_RECORDING = {"--model": "tiny.json", "--layers": "2", "--batch": "2", "--context": "8", "--steps": "2"}
# What depends on the speed of the machine that runs the example: not compared.
SPEED = re.compile(r"(?<= in )[\d.,]+ (?:us|ms|s)\b")


_ENTRIES: dict[tuple[str, ...], list[Any]] = {}


class Failed(Exception):
    """An example did not do what the page says."""


class Page:
    """The examples of one page, run in `folder`, which must be the current directory."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder, self.status = path, folder, 0
        self.names: dict[str, object] = {"__name__": "__main__"}  # shared by the page's blocks of Python

    def outputs(self) -> Iterator[tuple[Block, list[list[str]]]]:
        """Runs all; gives each block that shows output with what came out, command by command."""
        said = ""
        for block in blocks(self.path):
            if block.not_run:
                continue
            if block.shows_commands:
                yield block, [self.command(c).splitlines() for c, _ in sessions(block)]
            elif block.language == "sh":
                for command in commands(block):
                    self.command(command, small=True)
            elif block.language == "python":
                said = self.python(block)
                continue
            elif block.language == "text" and block.follows and said:
                yield block, [said.splitlines()]
            elif block.language in {"toml", "json"} and (named := re.match(r"# ([\w.-]+\.toml)", block.body)):
                (self.folder / named[1]).write_text(block.body)
            said = ""

    def command(self, line: str, small: bool = False) -> str:
        """What one line of shell prints. moetrace runs in this process; a pipe behind it is the shell's."""
        first, _, rest = line.replace("\\\n", " ").partition(" | ")
        words = shlex.split(first, comments=True)
        provide(words, self.folder)
        if words == ["echo", "$?"]:
            return f"{self.status}\n"
        if words[0] != "moetrace":
            if words[0] not in MAY_RUN:
                raise Failed(
                    f"{line!r}: not a command that the tests run; label the block '*not run here: why*'"
                )
            return _shell(line)
        arguments = shrunk(words[1:], self.folder) if small else words[1:]
        self.status, out, err = moetrace_says(tuple(arguments))
        fails = words[1] == "doctor" or "--gate" in words
        if self.status != 0 and not (fails and self.status == 1):
            raise Failed(f"{line!r} ends with {self.status}: {err or out}")
        return _shell(rest, out) if rest else out

    def python(self, block: Block) -> str:
        code = compile(block.body, block.name, "exec")
        text = io.StringIO()
        with contextlib.redirect_stdout(text), recomputed_once():
            provide(re.findall(r"\"([\w./-]+)\"", block.body), self.folder)
            self.names |= names(set(code.co_names) - set(self.names))
            exec(code, self.names)
        return text.getvalue()


def shrunk(arguments: list[str], folder: Path) -> list[str]:
    """The same command on short prompts, the first and last of several batches, and for a recording a tiny model."""
    words = list(arguments)
    small = SMALL_RECORDING if words[0] == "record" else SMALL
    for at, word in enumerate(words[:-1]):
        if word == "--":
            break
        if word in small:
            words[at + 1] = small[word]
        elif word == "--batch":
            batches = words[at + 1].split(",")
            words[at + 1] = ",".join(dict.fromkeys((batches[0], batches[-1])))
    provide(words, folder)
    return words


def moetrace_says(arguments: tuple[str, ...]) -> tuple[int, str, str]:
    """Exit status, output and errors of a command in this process."""
    from moetrace.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), recomputed_once():
        try:
            status = run(arguments)
        except SystemExit as done:  # a program under `moetrace record` passes its own on
            status = int(done.code or 0)
    return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def recomputed_once() -> Iterator[None]:
    """The ledger takes half a minute and several pages ask for it: the entries of equal figures are kept."""
    module = import_module("moetrace.validate")
    recompute = module.entries

    def entries(figures: Sequence[Any]) -> list[Any]:
        key = tuple(f.id for f in figures)
        if key not in _ENTRIES:
            _ENTRIES[key] = list(recompute(figures))
        return _ENTRIES[key]

    with mock.patch.object(module, "entries", entries):
        yield


def _shell(line: str, given: str = "") -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPO), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["sh", "-c", line], input=given, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failed(f"{line!r} ends with {done.returncode}: {done.stderr}")
    return done.stdout


def kept(said: list[str], shown: list[str]) -> list[str]:
    """What a block shows of an output: all of it, or as many lines as it shows before a line of dots."""
    return [*said[: len(shown) - 1], "..."] if shown[-1:] == ["..."] else said


def same(said: list[str], shown: list[str]) -> bool:
    """Whether a block shows what was said, but for figures of this machine's speed."""
    return [SPEED.sub("_", line).rstrip() for line in kept(said, shown)] == [
        SPEED.sub("_", line).rstrip() for line in shown
    ]
