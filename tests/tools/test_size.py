"""How much there is to read is what the README says."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from size import audit, lines_by_file, lines_of

from conftest import ROOT, service_modules

# Not each commit changes the README.
TOLERANCE_LINES = 50


def test_the_readme_says_how_much_there_is_to_read() -> None:
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    found = re.search(
        r"reads ([\d,]+) lines of our Python.* The next ([\d,]+) reach no file"
        r".* stateful sessions ([\d,]+), the code interpreter ([\d,]+) .*,"
        r" sessions ([\d,]+), published pictures ([\d,]+)",
        readme,
    )
    assert found
    told = [int(figure.replace(",", "")) for figure in found.groups()]
    table = audit()
    to_read = table["audit the default"]
    skipped = table["imported by default"] - to_read
    added = [lines for name, lines in table.items() if name.startswith("adds: ")]
    for figure, lines in zip(told, [to_read, skipped, *added], strict=True):
        assert abs(figure - lines) <= TOLERANCE_LINES, (told, table)


def test_each_line_is_counted_once() -> None:
    table = audit()
    added = [lines for name, lines in table.items() if name.startswith("adds: ")]
    not_imported = (
        table["child processes, with limits"] + table["runs in the sandbox: read last"]
    )
    counted = table["imported by default"] + not_imported + sum(added)
    assert counted == sum(lines_by_file().values())


def test_the_service_is_all_but_tests_and_tools() -> None:
    assert set(lines_by_file()) == service_modules()
    assert {"proxy.py", "gunicorn.conf.py", "code_api/store.py"} <= service_modules()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", 0),
        ("x = 1  # why\n", 1),
        ('"""Three\n\nlines."""\n\n# A comment.\nx = 1\n', 1),
        ('text = """Two\nlines."""\n', 2),
        ("x = (\n    # why\n    1\n)\n", 3),
    ],
    ids=["nothing", "a line", "a docstring", "a text", "a call"],
)
def test_lines_without_comments_docstrings_and_blanks_are_counted(
    source: str, expected: int
) -> None:
    assert lines_of(source) == expected


def test_the_command_prints_each_file_and_the_table() -> None:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "dev" / "size.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, lines in (lines_by_file() | audit()).items():
        row = rf"^ *{re.escape(name.strip())} +{lines:,}$"
        assert not lines or re.search(row, finished.stdout, re.M), name
