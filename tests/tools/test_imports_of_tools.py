"""The tools in dev/ can be read from the bottom up."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"


def imported_by(path: Path) -> set[str]:
    """The modules that it imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_no_tool_imports_one_that_imports_it() -> None:
    tools = {path.stem: path for path in DEV.glob("*.py")}
    graph = {name: imported_by(path) & set(tools) for name, path in tools.items()}
    assert "bench_files" in graph["bench"]  # it would see one
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", ["check.py", "demo.py", "launch.py", "install.py"])
def test_what_runs_before_requests_is_there_does_not_import_it(name: str) -> None:
    """`make demo` installs no `requests`; check.py is copied to where nothing is."""
    paths = [DEV / name]  # and what these import
    for path in paths:
        found = imported_by(path)
        assert "requests" not in found
        paths += [
            DEV / f"{other}.py" for other in found if (DEV / f"{other}.py").exists()
        ]
