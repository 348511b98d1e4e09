"""How much there is to read: lines of the service's code, by what they are for.

    python dev/size.py

A line of code is one that holds more than a comment or a docstring. What a process
imports with default settings has to be read by whoever audits it, but for rooms that
can do no harm; each setting that turns something on adds a room. The README says the
figures, to which tests/tools/test_size.py holds it. No number is a limit on the code.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Folders that hold no code of the service. A hidden one holds none either.
OTHER_FOLDERS = {"tests", "dev"}
# What each option adds, by the start of a file's path. Nothing of it is imported while
# the option is off: tests/service/test_imports.py looks.
OPTIONS = {
    "stateful code sessions (FILES_DIR and SESSION_IDLE_S)": ("code_api/stateful.py",),
    "code interpreter (FILES_DIR)": ("code_api/", "sandboxes/files.py"),
    "sessions, sandboxes kept ready (SESSION_IDLE_S, WARM_SANDBOXES)": (
        "sandboxes/keeping.py",
    ),
    "published pictures (IMAGE_DIR)": ("pictures/publishing.py",),
}
# The order in which to read what is to be read: as a request goes.
READING_ORDER = (
    "config.py",
    "gunicorn.conf.py",
    "proxy.py",
    "access.py",
    "in_flight.py",
    "caller.py",
    "sandboxes/",
    "pictures/",
    "process/",
    "metrics.py",
)
# They are run as programs of their own, in limits, and imported by nobody.
CHILDREN = ("pictures/shrink_pictures.py", "pictures/svg_to_png.py")
# Sent to the sandbox and run there, where nothing that the service holds is in reach:
# it can do nothing that the caller's code cannot.
IN_SANDBOX = ("in_sandbox/",)
# What an auditor of the default reads after the rest, and why.
SKIPPED = {
    # Their docstrings say "Pure.", and tests/service/test_imports.py holds them to it:
    # they reach no file, no socket and no secret. They still decide what code is run
    # and how its output is quoted, so they come next.
    "what only computes, pure by test": (
        "texts/",
        "formatter.py",
        "json_body.py",
        "mcp_server.py",
        "pictures/picture.py",
        "run.py",
    ),
    "the worker, which `gthread` behind a proxy replaces": ("process/worker.py",),
}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


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


def lines_of(source: str) -> int:
    """How many lines of code a module's source has."""
    tree = ast.parse(source)
    return len(lines_of_code(source) - lines_of_docstrings(tree))


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


def lines_by_file() -> dict[str, int]:
    """The lines of each file of the service, by its path in the repository."""
    return {
        path.relative_to(ROOT).as_posix(): lines_of(path.read_text("utf-8"))
        for path in service_files()
    }


def audit() -> dict[str, int]:
    """The table that the README has: lines by what they are for."""
    left = lines_by_file()

    def taken(starts: tuple[str, ...]) -> int:
        names = [name for name in left if name.startswith(starts)]
        return sum(left.pop(name) for name in names)

    options = {f"adds: {name}": taken(starts) for name, starts in OPTIONS.items()}
    not_imported = {
        "child processes, with limits": taken(CHILDREN),
        "runs in the sandbox: read last": taken(IN_SANDBOX),
    }
    skipped = {
        f"  of these, next: {name}": taken(starts) for name, starts in SKIPPED.items()
    }
    to_read = sum(left.values())
    return {
        "audit the default": to_read,
        "imported by default": to_read + sum(skipped.values()),
        **skipped,
        **not_imported,
        **options,
    }


def by_use() -> dict[str, dict[str, int]]:
    """The lines of each file, under what it is for, in an order to read them in."""
    others = {
        **{f"next: {name}": starts for name, starts in SKIPPED.items()},
        "child processes, with limits": CHILDREN,
        "runs in the sandbox: read last": IN_SANDBOX,
        **{f"option: {name}": starts for name, starts in OPTIONS.items()},
    }
    first = "to be read, in this order"
    found: dict[str, dict[str, int]] = {use: {} for use in (first, *others)}
    for path, lines in sorted(lines_by_file().items(), key=lambda row: _place(row[0])):
        uses = [use for use, starts in others.items() if path.startswith(starts)]
        if lines:
            found[uses[0] if uses else first][path] = lines
    return found


def _place(path: str) -> tuple[int, str]:
    places = [n for n, start in enumerate(READING_ORDER) if path.startswith(start)]
    return min(places, default=len(READING_ORDER)), path


def main() -> None:
    for use, files in by_use().items():
        print(f"{use}:")
        for path, lines in files.items():
            print(f"  {path:28} {lines:6,}")
    print()
    table = audit()
    width = max(map(len, table))
    for name, lines in table.items():
        print(f"{name:{width}} {lines:6,}")


if __name__ == "__main__":
    main()
