"""The documentation builds as a site without a warning, and its references hold every verb and every public name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import moetrace
from moetrace.cli import VERBS
from tests.conftest import REPO


def test_the_site_builds_and_its_references_are_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path / "site"],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    verbs = (tmp_path / "site" / "cli.html").read_text()
    assert [verb for verb in VERBS if f">{verb}<" not in verbs and f"moetrace {verb}" not in verbs] == []
    names = (tmp_path / "site" / "api.html").read_text()
    listed = {f"{module}.{name}" for module, name in moetrace._PUBLIC.values()}
    assert [name for name in listed if f'id="{name}"' not in names] == []
    methods = {
        f"{m}.{n}.{method}"
        for m, n in moetrace._PUBLIC.values()
        for method in _methods(getattr(moetrace, n, None))
    }
    assert len(methods) > 30
    assert [name for name in methods if f'id="{name}"' not in names] == []


def _methods(value: object) -> list[str]:
    """The public methods that a value's own class defines."""
    if not isinstance(value, type) or issubclass(value, Exception):
        return []
    return [name for name, found in vars(value).items() if not name.startswith("_") and callable(found)]
