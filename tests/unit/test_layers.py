"""The house rules that a parser of Python can hold: who may import whom, and what the package never does."""

from __future__ import annotations

import ast
import gzip
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "moetrace"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the top down; a part imports from rows below its own, never from its own row.
ROWS = (
    {"cli"},
    {"report", "record", "validate"},
    {"attribute", "diff", "replay", "calibrate"},
    {"synthesize", "parse", "cost"},
    {"forward", "ranks"},
    {"formats", "ops", "machines"},
    {"run"},
    {"routing", "model", "hardware"},
    {"op"},
    {"units", "engines", "files", "given", "grouping", "markup", "signals", "cluster"},
    {"errors", "scratch"},
)
DEPTH = {part: depth for depth, row in enumerate(ROWS) for part in row}
TOP = {"__init__", "__main__"}  # the public face: it may name every part
RECORD_ONLY = {"torch", "nvtx", "transformers"}


def _part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """(imported module, line) of every import in the file, those in functions too; made absolute."""
    package = ("moetrace", *path.relative_to(PACKAGE).with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "moetrace":
                yield from ((f"moetrace.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def _upward(part: str, imported: str) -> bool:
    """Whether a part's import of a module breaks the rule."""
    root, _, rest = imported.partition(".")
    if root != "moetrace" or part in TOP:
        return False
    target = rest.split(".")[0]
    if target in ("", part, "__version__"):
        return False
    if part == "cli" and target not in DEPTH:  # a public name of moetrace/__init__.py
        return False
    return DEPTH.get(target, -1) <= DEPTH[part]


def _ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_rule_itself_notices_what_it_forbids() -> None:
    assert _upward("ops", "moetrace.run") is False
    assert _upward("run", "moetrace.ops")
    assert _upward("ops", "moetrace.machines.gpu")
    assert _upward("parse", "moetrace.load_model")
    assert not _upward("cli", "moetrace.load_model")
    assert not _upward("replay", "moetrace.replay.knobs")


def _at_the_head(path: Path, known: set[str]) -> set[str]:
    """Modules that a file imports where it begins, for types too; a name of a package stands for the module that it is."""
    tree = ast.parse(path.read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    found = set()
    for node in (*tree.body, *(n for block in blocks for n in block.body)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found & known


def test_no_module_is_needed_to_understand_itself() -> None:
    """What files import at their heads, for types too, makes no circle; `moetrace` itself names all and knows its version."""
    files = {
        ".".join(("moetrace", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in FILES
    }
    needs = {name: _at_the_head(path, set(files)) - {name, "moetrace"} for name, path in files.items()}
    del needs["moetrace"]
    TopologicalSorter(needs).prepare()  # raises CycleError with the modules of a circle


def test_bytes_make_no_test_ids() -> None:
    from tests.conftest import pytest_make_parametrize_id as make

    assert make(None, gzip.compress(b""), "content") == "content"
    assert make(None, "text", "content") is None


def test_every_part_has_a_row() -> None:
    data = {"models", "hw_profiles", "__pycache__"}
    parts = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert parts - data - TOP <= set(DEPTH)


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_imports_go_down_only(path: Path) -> None:
    part = _part(path)
    assert [f"line {line}: {name}" for name, line in _imports(path) if _upward(part, name)] == []


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_only_record_imports_torch(path: Path) -> None:
    found = {name.split(".")[0] for name, _ in _imports(path)} & RECORD_ONLY
    assert not found or _part(path) == "record"


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_no_print_outside_cli_and_report(path: Path) -> None:
    if _part(path) in ("cli", "report"):
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"] == []


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_no_broad_except_and_no_assert(path: Path) -> None:
    def broad(caught: ast.expr | None) -> bool:
        if isinstance(caught, ast.Tuple):
            return any(map(broad, caught.elts))
        return caught is None or (
            isinstance(caught, ast.Name) and caught.id in ("Exception", "BaseException")
        )

    def cleans_up(handler: ast.ExceptHandler) -> bool:
        """It re-raises what it caught, so nothing is hidden."""
        last = handler.body[-1]
        return isinstance(last, ast.Raise) and last.exc is None

    nodes = list(ast.walk(ast.parse(path.read_text())))
    handlers = [n for n in nodes if isinstance(n, ast.ExceptHandler)]
    assert [h.lineno for h in handlers if broad(h.type) and not cleans_up(h)] == []
    assert [n.lineno for n in nodes if isinstance(n, ast.Assert)] == []


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_no_star_imports(path: Path) -> None:
    names = [
        a.name
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    ]
    assert "*" not in names
