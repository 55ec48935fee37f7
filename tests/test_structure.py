"""The shape of the source tree: rooms, links, import directions, sizes."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tumorchain_agent"
ROOMS = ("tools", "model", "graph", "mcp_server", "training")
SHARED = {"__init__", "__version__", "records", "errors", "settings"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

BELOW: dict[str, set[str]] = {
    "shared": {"shared"},
    "tools": {"shared", "tools"},
    "model": {"shared", "tools", "model"},
    "graph": {"shared", "tools", "model", "graph"},
    "mcp_server": {"shared", "tools", "model", "graph", "mcp_server"},
    "training": {"shared", "tools", "model", "training"},
    "front": {"shared", "tools", "model", "graph", "mcp_server", "training", "front"},
}
"""What each room may import; the front door is the CLI and the report. The evaluation, which runs the whole
agent, may also import graph and mcp_server."""


def room_of(parts: tuple[str, ...]) -> str:
    """Room of a module given by its parts below the package, e.g. ``("tools", "organs")``."""
    if not parts or parts[0] in SHARED:
        return "shared"
    return parts[0] if parts[0] in ROOMS else "front"


def sources() -> list[Path]:
    """Every Python file of the product, once, in its room's real folder."""
    folders = [ROOT / room for room in ROOMS]
    return [*sorted((ROOT / PACKAGE).glob("*.py")), *(p for f in folders for p in sorted(f.rglob("*.py")))]


def parts_of(path: Path) -> tuple[str, ...]:
    relative = path.relative_to(ROOT).with_suffix("")
    return relative.parts[1:] if relative.parts[0] == PACKAGE else relative.parts


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports anywhere, ``from a import b`` as ``a.b``, a relative one as ``.``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." if node.level else f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in sources():
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            head, *rest = name.split(".")
            if head == PACKAGE and room_of(tuple(rest)) not in allowed_for(parts_of(path)):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def allowed_for(parts: tuple[str, ...]) -> set[str]:
    own = room_of(parts)
    evaluates = own == "training" and (any("evaluat" in part for part in parts) or parts[1] == "suite")
    return BELOW[own] | ({"graph", "mcp_server"} if evaluates else set())


def test_rooms_are_imported_by_their_full_name() -> None:
    wrong = []
    for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if name == "." or name.split(".")[0] in ROOMS:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("importer", "imported_room", "allowed"),
    [
        (("tools", "scan"), "model", False),
        (("model", "llm"), "tools", True),
        (("graph", "nodes"), "mcp_server", False),
        (("mcp_server", "server"), "graph", True),
        (("training", "trainer"), "graph", False),
        (("training", "evaluate"), "graph", True),
        (("training", "suite", "talks"), "graph", True),
        (("training", "evaluation", "subjects"), "mcp_server", True),
        (("training", "hco", "trainer"), "graph", False),
        (("errors",), "tools", False),
        (("cli",), "training", True),
    ],
)
def test_direction_rule_tells_allowed_from_forbidden(
    importer: tuple[str, ...], imported_room: str, allowed: bool
) -> None:
    assert (imported_room in allowed_for(importer)) is allowed


def test_each_room_is_a_folder_with_a_link_in_the_package() -> None:
    for room in ROOMS:
        link = ROOT / PACKAGE / room
        assert (ROOT / room).is_dir()
        assert not (ROOT / room).is_symlink()
        assert link.is_symlink(), f"{link} must be a committed link"
        assert link.readlink() == Path("..") / room


def test_packages_mapping_and_folders_agree() -> None:
    found = {PACKAGE}
    for room in ROOMS:
        inits = (ROOT / room).rglob("__init__.py")
        found |= {".".join((PACKAGE, *init.parent.relative_to(ROOT).parts)) for init in inits}
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found
    assert setuptools["package-dir"] == {
        name: name if name == PACKAGE else name.removeprefix(f"{PACKAGE}.").replace(".", "/")
        for name in found
    }


def test_every_folder_of_python_files_is_a_package() -> None:
    folders = {path.parent for path in sources()}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []


def test_no_source_file_is_longer_than_400_lines() -> None:
    lengths = {p.relative_to(ROOT): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}


def test_nothing_is_left_to_do_in_the_source() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError")
    hits = [str(p.relative_to(ROOT)) for p in sources() if words.search(p.read_text(encoding="utf-8"))]
    assert hits == []


def test_nobody_catches_everything_or_validates_by_assert() -> None:
    """But to end in an error of ours that it caused."""
    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ExceptHandler(
                    type=ast.Name(id="Exception"), body=[*_, ast.Raise(exc=ast.Call(), cause=ast.Name())]
                ):
                    continue
                case ast.ExceptHandler(type=None | ast.Name(id="Exception")) | ast.Assert():
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_python_that_runs_the_tests_is_one_that_the_project_names() -> None:
    floor = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert sys.version_info >= tuple(int(part) for part in floor.split("."))
