"""How much there is to understand: the size of the service's code.

    python dev/size.py

Prints for each file, and for all of them: syntax nodes (as `ast.walk` counts them),
lines of code (without comments, docstrings and blank lines) and nodes a line of code.
tests/tools/test_size.py holds the README to it. No number is a limit on the code.
"""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# An experienced developer read 11,853 nodes of it in 95 minutes.
NODES_READ_A_MINUTE = 125
# Folders that hold no code of the service. A hidden one holds none either.
OTHER_FOLDERS = {"tests", "dev"}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Size:
    nodes: int
    lines: int

    @property
    def nodes_per_line(self) -> float:
        return self.nodes / max(1, self.lines)


def service_files() -> list[Path]:
    """The modules at the top and those of packages, without tests and tools."""
    at_top = ROOT.glob("*.py")
    packages = {path.parent for path in ROOT.glob("*/__init__.py")}
    in_packages = [
        path
        for folder in packages
        if folder.name not in OTHER_FOLDERS
        for path in folder.rglob("*.py")
    ]
    files = [*at_top, *in_packages]
    return sorted(path for path in files if not is_test(path))


def is_test(path: Path) -> bool:
    return path.name.startswith("test_") or path.name == "conftest.py"


def size_of(source: str) -> Size:
    """The size of a module's source."""
    tree = ast.parse(source)
    nodes = sum(1 for _ in ast.walk(tree))
    return Size(nodes, len(lines_of_code(source) - lines_of_docstrings(tree)))


def lines_of_code(source: str) -> set[int]:
    """The numbers of the lines that hold more than a comment; docstrings included."""
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            numbers.update(range(token.start[0], token.end[0] + 1))
    return numbers


def lines_of_docstrings(tree: ast.Module) -> set[int]:
    numbers: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            continue
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            last = docstring.end_lineno or docstring.lineno
            numbers.update(range(docstring.lineno, last + 1))
    return numbers


def total(sizes: list[Size]) -> Size:
    nodes = sum(size.nodes for size in sizes)
    lines = sum(size.lines for size in sizes)
    return Size(nodes, lines)


def hours_to_read(size: Size) -> float:
    return size.nodes / NODES_READ_A_MINUTE / 60


def sizes_by_file() -> dict[str, Size]:
    """The size of each file of the service, by its path in the repository."""
    return {
        str(path.relative_to(ROOT)): size_of(path.read_text("utf-8"))
        for path in service_files()
    }


def main() -> None:
    sizes = sizes_by_file()
    sizes["total"] = total(list(sizes.values()))
    width = max(len(name) for name in sizes)
    print(f"{'':{width}}{'nodes':>8}{'lines':>8}{'nodes/line':>12}")
    for name, size in sizes.items():
        figures = f"{size.nodes:8,}{size.lines:8,}{size.nodes_per_line:12.1f}"
        print(f"{name:{width}}{figures}")
    hours = hours_to_read(sizes["total"])
    print(f"About {hours:.1f} hours to read.")


if __name__ == "__main__":
    main()
